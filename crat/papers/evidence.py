"""Evidence: the one object that a notebook asks for its paper's runs, comparisons and verdicts.

    evidence = Evidence.of("04", profile, seed=seed, data=data, seeds=seeds, recompute=recompute)
    PGD, CW = evidence.battery
    test = evidence.judge(evidence.battery)         # clean, PGD, CW: read, or trained and attacked
    test.runs("main AT")                            # (seeds, images) bool: right under PGD
    test.each("main AT", "worst", "clean")          # (seeds,) clean accuracy of the worst class
    gain = test.compare("main CFA (AT)", "main AT", "worst", pool=methods)
    test.decide("at worst", gain)                   # joined to the claim in the paper's file
    test.settle(folder)                             # Holm's correction; claims.json
    test.recheck(folder)                            # as it was published, or an error

A method is the name of runs without their seed: "main AT" stands for "main AT-s0", "main AT-s1" ...
The name of one run stands for that run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from crat import store
from crat.analysis import claims
from crat.analysis.claims import Claim, Verdict
from crat.analysis.comparisons import Estimate, compare
from crat.analysis.metrics import Functional, class_accuracy, confusion, per_run
from crat.config import ConfigError, RunConfig, Selection, profile
from crat.defenses.tian2021 import fit_bias
from crat.device import describe, pick_device
from crat.names import one_of, unknown
from crat.outcomes.ask import outcomes
from crat.outcomes.batteries import Battery, standard_battery
from crat.outcomes.cache import Outcomes
from crat.papers import PAPERS
from crat.papers.common import Runs, evidence_profile
from crat.store import Store
from crat.training.run import Run
from crat.training.trainer import train


def mean_sd(values: ArrayLike) -> str:
    """Fractions of several runs as a table's cell in percent, "71.6 ± 0.4"; of one run "71.6"."""
    fractions = np.atleast_1d(np.asarray(values, float))
    if fractions.size == 1:
        return f"{100 * fractions[0]:.1f}"
    return f"{100 * fractions.mean():.1f} ± {100 * fractions.std(ddof=1):.1f}"


@dataclass
class Evidence:
    """The runs of one paper, the outcomes of those that were judged, and the verdicts so far.

    number: of the notebook. asked: key -> settings of a run, the live one among them. claims: the
    paper's, by key. seen: key -> a network's answers on each image. decided: verdicts, in order.
    """

    number: str
    profile: str
    asked: Runs
    seeds: tuple[int, ...]
    store: Store
    claims: Mapping[str, Claim]
    decided: list[Verdict] = field(default_factory=list)
    seen: dict[str, Outcomes] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        number: str,
        profile: str,
        *,
        seed: int = 0,
        data: str = "",
        seeds: str = "0 1 2",
        recompute: bool = False,
    ) -> Evidence:
        """What a notebook's parameters ask for; nothing is read or trained yet.

        seed: of the live run. data: another data set for all runs. seeds: of the repeated runs.
        recompute: published runs are left aside. Raises ConfigError.
        """
        paper = PAPERS[one_of("notebook", number, PAPERS)]
        selection = Selection.read(data, seeds)
        asked = paper.plan(profile, seed, selection)
        claimed = getattr(paper, "CLAIMS", {})
        return cls(number, profile, asked, selection.seeds, Store.chosen(recompute), claimed)

    @property
    def live(self) -> RunConfig:
        """The run that the notebook trains while its reader waits."""
        return self.asked["live"]

    @property
    def dataset(self) -> str:
        """The data set of the paper's main runs: the profile's, where any run is on it."""
        used = [config.data.name for key, config in self.asked.items() if key != "live"]
        main = profile(evidence_profile(self.profile)).data.name
        return main if main in used else used[0]

    @property
    def battery(self) -> Battery:
        """PGD and CW at the data set's protocol, which judge; `PGD, CW = evidence.battery`."""
        attacks = standard_battery(self.dataset)
        return {name: attack for name, attack in attacks.items() if name != "FGSM"}

    @property
    def setting(self) -> str:
        """A line on device, versions and evidence, for the head of a notebook."""
        used = sorted({config.data.name for key, config in self.asked.items() if key != "live"})
        where = f"{describe(pick_device())}; torch {torch.__version__}; profile {self.profile}"
        return f"{where}; evidence on {', '.join(used)}; seeds {' '.join(map(str, self.seeds))}"

    def run(self, key: str) -> Run:
        """The run of a key: its card, history and weights. Raises ConfigError on an unknown key."""
        if key not in self.asked:
            raise ConfigError(unknown("run", key, self.asked))
        return Run.of(self.asked[key], store=self.store)

    def train(self, key: str = "live", progress: str = "line") -> Run:
        """The run of a key with its weights, trained where it is not yet."""
        return train(self.run(key).config, progress=progress, store=self.store)

    def history(self, key: str, split: str = "valid") -> pd.DataFrame:
        """A row for each epoch and class of a run: clean_acc, robust_acc, loss, eps ..."""
        every = self.run(key).history()
        return every[every.split == split]

    def by_epoch(self, key: str, column: str = "robust_acc", split: str = "valid") -> pd.DataFrame:
        """One column of the history as a table: a row for each epoch, a column for each class."""
        return self.history(key, split).pivot(index="epoch", columns="class", values=column)

    def outcomes(self, key: str, battery: Battery, **settings: Any) -> Outcomes:
        """What one network answers under a battery, read or computed
        (`crat.outcomes.evaluation.outcomes`).

        Settings: split, which, crafted_on, keep_classes, bias, first, spread, dtype, progress.
        """
        return outcomes(self.run(key).config, battery, store=self.store, **settings)

    def judge(
        self, battery: Battery | Callable[[str], Battery], keys: Iterable[str] = (), **settings: Any
    ) -> Evidence:
        """This evidence with the outcomes of these runs (all but the live one), as `seen`.

        A function gives each key its own battery. Settings: of `outcomes`. OutcomeCache of all such
        views go to one list.
        """
        seen = {}
        for key in keys or [key for key in self.asked if key != "live"]:
            own = battery(key) if callable(battery) else battery
            seen[key] = self.outcomes(key, own, **settings)
        return replace(self, seen=seen)

    def bias(self, key: str, max_drop: float) -> list[float]:
        """Numbers to add to the class logits, which lift the weakest class under PGD on validation.

        They cost at most max_drop of the average there (`crat.defenses.tian2021.fit_bias`).
        """
        attack, pgd = next(iter(self.battery.items()))
        valid = self.outcomes(key, {attack: pgd}, split="valid")
        logits = torch.from_numpy(valid.logits[attack]).float()
        fitted = fit_bias(logits, torch.from_numpy(valid.y), max_drop=max_drop)
        return [round(b, 2) for b in fitted.tolist()]

    @property
    def methods(self) -> list[str]:
        """The judged methods, in the plan's order."""
        return list(dict.fromkeys(_method(key) for key in self.seen))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return next(iter(self.seen.values())).classes

    def keys(self, method: str) -> list[str]:
        """The judged runs of a method, or the one run of this name. Raises ConfigError."""
        if method in self.seen:
            return [method]
        keys = [key for key in self.seen if _method(key) == method]
        if not keys:
            raise ConfigError(unknown("judged method", method, self.methods))
        return keys

    def labels(self, method: str) -> NDArray:
        """The images' classes y, (N,)."""
        return self.seen[self.keys(method)[0]].y

    def runs(self, method: str, *under: str) -> NDArray:
        """(S, N) bool of S runs: right when clean and under all these attacks (none named: PGD)."""
        attacks = under or tuple(self.battery)[:1]
        seen = [self.seen[key] for key in self.keys(method)]
        return np.stack([np.logical_and.reduce([o.robust(a) for a in attacks]) for o in seen])

    def each(self, method: str, functional: Functional = "average", *under: str) -> NDArray:
        """(S,) the functional of each run: average, worst, crossfit, tail, spread or gap."""
        return per_run(self.labels(method), self.runs(method, *under), functional)

    def cell(self, method: str, functional: Functional = "average", *under: str) -> str:
        """The same as a table's cell: mean and standard deviation over runs, in percent."""
        return mean_sd(self.each(method, functional, *under))

    def class_accuracy(self, method: str, *under: str) -> NDArray:
        """(K,) accuracy of each class, mean over runs."""
        runs = self.runs(method, *under)
        return class_accuracy(self.labels(method), runs, len(self.classes)).mean(0)

    def class_table(self, methods: Iterable[str], *under: str) -> pd.DataFrame:
        """A row for each method and class: method, class, robust_acc (mean over runs)."""
        tables = []
        for method in methods:
            acc = self.class_accuracy(method, *under)
            tables.append(
                pd.DataFrame({"method": method, "class": self.classes, "robust_acc": acc})
            )
        return pd.concat(tables, ignore_index=True)

    def confusions(self, method: str, under: str) -> NDArray:
        """(S, K, K) counts of each run: true class down, answer under the attack across."""
        seen = [self.seen[key] for key in self.keys(method)]
        return np.stack([confusion(o.y, o.predictions[under], len(self.classes)) for o in seen])

    def compare(
        self,
        a: str,
        b: str,
        functional: Functional = "average",
        under: str | tuple[str, ...] = (),
        pool: Iterable[str] = (),
        only: Any = slice(None),
    ) -> Estimate:
        """Method a minus method b, with its interval (`crat.analysis.comparisons.compare`).

        under: an attack, or all of several (none: PGD). pool: methods whose variance over seeds is
        pooled with that of the two, which may be among them. only: a mask or slice of the images.
        """
        attacks = (under,) if isinstance(under, str) else under
        first, second = (self.runs(m, *attacks)[:, only] for m in (a, b))
        others = [self.runs(m, *attacks)[:, only] for m in pool if m not in (a, b)]
        return compare(self.labels(a)[only], first, second, functional, others=others)

    @property
    def published_claims(self) -> str:
        """The table "paper / ours / verdict" as it was last published, in markdown."""
        path = self._published
        return claims.markdown(claims.read(path)) if path.exists() else "None published."

    def decide(self, claim: str | Claim, estimate: Estimate | None) -> None:
        """Joins an estimate (None: not run) to a claim of the paper, by its key, or to another."""
        declared = self.claims[claim] if isinstance(claim, str) else claim
        self.decided.append(claims.decide(declared, estimate))

    def settle(self, folder: Path) -> str:
        """Holm's correction of all verdicts: the table in markdown, and claims.json in folder."""
        claims.write(self.decided, folder / "claims.json")
        return claims.markdown(claims.claims_table(self.decided))

    def recheck(self, folder: Path) -> str:
        """The number of each verdict in the folder's claims.json.

        Raises AssertionError where all runs are the published ones and the claims are not.
        """
        now = claims.read(folder / "claims.json")
        evidence = (key for key in self.asked if key != "live")
        if self._published.exists() and all(self.run(key).published for key in evidence):
            pd.testing.assert_frame_equal(claims.read(self._published), now, rtol=1e-6)
        return now.verdict.value_counts().to_string()

    @property
    def _published(self) -> Path:
        return store.results_home() / self.dataset / f"claims_{self.number}.json"


def _method(key: str) -> str:
    """The key without its seed: "main AT-s0" -> "main AT"; "beta 6" stays."""
    name, _, seed = key.rpartition("-s")
    return name if name and seed.isdecimal() else key
