"""Evidence: the one object that a notebook asks for its paper's runs, for comparisons of them, and for verdicts.

    evidence = Evidence.of("04", profile, seed=seed, data=data, seeds=seeds, recompute=recompute)
    test = evidence.judge(evidence.battery)             # clean, PGD and CW: read, or trained and
    attacked test.runs("main AT")                                # (seeds, images) bool: right under
    PGD test.each("main AT", "worst", "clean")              # (seeds,) accuracy of the worst class
    gain = test.compare("main CFA (AT)", "main AT", "worst", pool=methods) evidence.decide("at
    worst", gain)                   # joined to the claim that the paper's file declares table =
    evidence.settle(folder)                     # Holm's correction; claims.json
    evidence.recheck(folder)                            # the same as was published, or an error

A method is the name of a run without its seed: "main AT" stands for the runs "main AT-s0", "main
AT-s1" ...; the name of one run stands for that run.
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

from crat import claims, metrics, store
from crat.claims import Claim, Verdict
from crat.comparisons import Estimate, compare
from crat.config import ConfigError, RunConfig, Selection, profile
from crat.defenses.tian2021 import fit_bias
from crat.device import describe, pick_device
from crat.evaluate import outcomes, standard_battery
from crat.metrics import Functional
from crat.names import one_of, unknown
from crat.papers import PAPERS
from crat.papers.common import Runs, evidence_profile
from crat.run import Run
from crat.store import Store
from crat.train import train
from crat.verdicts import Battery, Outcomes


def mean_sd(values: ArrayLike) -> str:
    """Fractions of several runs as a table's cell in percent: "71.6 ± 0.4"; of one run its number."""
    percent = 100 * np.atleast_1d(np.asarray(values, float))
    if percent.size == 1:
        return f"{percent[0]:.1f}"
    return f"{percent.mean():.1f} ± {percent.std(ddof=1):.1f}"


@dataclass
class Evidence:
    """The runs of one paper, their outcomes as far as they are judged, and the verdicts so far.

    number: of the notebook. asked: key -> settings of a run, the live one among them. claims: the
    paper's, by key. seen: key -> what that network answers on each image (`judge`). decided: the
    verdicts, in the order of `decide`.
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

        data: another data set for all runs. seeds: of what the paper's plan repeats. recompute: the
        published runs are left aside. Raises ConfigError on an unknown paper, profile, data set or
        seed.
        """
        paper = PAPERS[one_of("notebook", number, PAPERS)]
        selection = Selection.read(data, seeds)
        asked = paper.plan(profile, seed, selection)
        claims_of = getattr(paper, "CLAIMS", {})
        return cls(number, profile, asked, selection.seeds, Store.chosen(recompute), claims_of)

    # ---- what there is

    @property
    def live(self) -> RunConfig:
        """The run that the notebook trains while its reader waits."""
        return self.asked["live"]

    @property
    def dataset(self) -> str:
        """The data set of the paper's main runs: the profile's, where any run is on it."""
        used = [config.data.name for key, config in self.asked.items() if key != "live"]
        main = profile(evidence_profile(self.profile)).data.name
        return main if main in used or not used else used[0]

    @property
    def battery(self) -> Battery:
        """The attacks that judge, PGD and CW at the protocol; `PGD, CW = evidence.battery` names them."""
        attacks = standard_battery(self.dataset)
        return {name: attack for name, attack in attacks.items() if name != "FGSM"}

    @property
    def setting(self) -> str:
        """A line on device, versions and evidence, for the head of a notebook."""
        used = sorted({config.data.name for key, config in self.asked.items() if key != "live"})
        return (
            f"{describe(pick_device())}; torch {torch.__version__}; profile {self.profile}; "
            f"evidence on {', '.join(used)}; seeds {' '.join(map(str, self.seeds))}"
        )

    @property
    def methods(self) -> list[str]:
        """The methods that are judged here, in the plan's order."""
        return list(dict.fromkeys(_method(key) for key in self.seen))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return next(iter(self.seen.values())).classes

    # ---- the runs

    def run(self, key: str) -> Run:
        """The run of a key: its card, history and weights."""
        return Run.of(self._config(key), store=self.store)

    def train(self, key: str = "live", progress: str | None = "line") -> Run:
        """The run of a key with its weights, trained where it is not yet."""
        return train(self._config(key), progress=progress, store=self.store)

    def history(self, key: str, split: str = "valid") -> pd.DataFrame:
        """A row for each epoch and class of a run on one split: clean_acc, robust_acc, loss, eps ..."""
        every = self.run(key).history()
        return every[every.split == split]

    def by_epoch(self, key: str, column: str = "robust_acc", split: str = "valid") -> pd.DataFrame:
        """One column of the history as a table: a row for each epoch, a column for each class."""
        return self.history(key, split).pivot(index="epoch", columns="class", values=column)

    def outcomes(self, key: str, battery: Battery, **settings: Any) -> Outcomes:
        """What one network answers under a battery, read or computed: `crat.evaluate.outcomes` with its settings.

        Settings: split, which, crafted_on, keep_classes, bias, first, spread, dtype, progress.
        """
        return outcomes(self._config(key), battery, store=self.store, **settings)

    def judge(
        self,
        battery: Battery | Callable[[str], Battery],
        keys: Iterable[str] | None = None,
        **settings: Any,
    ) -> Evidence:
        """The same evidence with the outcomes of these runs (all but the live one) under a battery, or each its own.

        Settings are those of `outcomes`; verdicts go to the same list.
        """
        if keys is None:
            keys = [key for key in self.asked if key != "live"]
        seen = {}
        for key in keys:
            own = battery(key) if callable(battery) else battery
            seen[key] = self.outcomes(key, own, **settings)
        return replace(self, seen=seen)

    def bias(self, key: str, max_drop: float, attack: str = "") -> list[float]:
        """The change of the class logits that lifts the weakest class on validation images under attack most.

        It costs at most max_drop of their average accuracy (`crat.defenses.tian2021.fit_bias`).
        """
        name = attack or next(iter(self.battery))
        held = self.outcomes(key, {name: self.battery[name]}, split="valid")
        logits = torch.from_numpy(held.logits[name]).float()
        fitted = fit_bias(logits, torch.from_numpy(held.y), max_drop=max_drop)
        return [round(b, 2) for b in fitted.tolist()]

    def _config(self, key: str) -> RunConfig:
        if key not in self.asked:
            raise ConfigError(unknown("run", key, self.asked))
        return self.asked[key]

    # ---- what is counted, on the judged runs

    def keys(self, method: str) -> list[str]:
        """The judged runs of a method, or the one run of this name; raises ConfigError without any."""
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
        """(S, N) bool of S runs: right on the clean image and under all these attacks (PGD where none is named)."""
        under = under or tuple(self.battery)[:1]
        seen = [self.seen[key] for key in self.keys(method)]
        return np.stack([np.logical_and.reduce([o.robust(a) for a in under]) for o in seen])

    def each(self, method: str, functional: Functional = "average", *under: str) -> NDArray:
        """(S,) the functional of each run: average, worst, crossfit, tail, spread or gap."""
        return metrics.per_run(self.labels(method), self.runs(method, *under), functional)

    def cell(self, method: str, functional: Functional = "average", *under: str) -> str:
        """The same as a table's cell, mean and standard deviation over runs in percent."""
        return mean_sd(self.each(method, functional, *under))

    def class_accuracy(self, method: str, *under: str) -> NDArray:
        """(K,) accuracy of each class, mean over runs."""
        runs = self.runs(method, *under)
        return metrics.class_accuracy(self.labels(method), runs, len(self.classes)).mean(0)

    def class_table(self, methods: Iterable[str], *under: str) -> pd.DataFrame:
        """A row for each method and class: method, class, robust_acc (mean over runs)."""
        rows = [
            (method, *pair)
            for method in methods
            for pair in zip(self.classes, self.class_accuracy(method, *under), strict=True)
        ]
        return pd.DataFrame(rows, columns=["method", "class", "robust_acc"])

    def confusions(self, method: str, under: str) -> NDArray:
        """(S, K, K) counts of each run: true class down, answer under the attack across."""
        k = len(self.classes)
        seen = [self.seen[key] for key in self.keys(method)]
        return np.stack([metrics.confusion(o.y, o.predictions[under], k) for o in seen])

    def compare(
        self,
        a: str,
        b: str,
        functional: Functional = "average",
        under: str = "",
        pool: Iterable[str] = (),
        only: Any = slice(None),
    ) -> Estimate:
        """Method a minus method b, with its interval (`crat.comparisons.compare`).

        under: the attack (PGD). pool: methods whose seeds' variance is pooled with that of the two;
        the two themselves are left out of it. only: a mask or slice of the images.
        """
        attacks = (under,) if under else ()
        others = [self.runs(m, *attacks)[:, only] for m in pool if m not in (a, b)]
        first, second = (self.runs(m, *attacks)[:, only] for m in (a, b))
        return compare(self.labels(a)[only], first, second, functional, others=others)

    # ---- the claims

    @property
    def published_claims(self) -> str:
        """The table "paper / ours / verdict" as it was last published, in markdown."""
        path = self._published
        return (
            claims.markdown(claims.read(path))
            if path.exists()
            else "None published for this profile."
        )

    def decide(self, claim: str | Claim, estimate: Estimate | None) -> Verdict:
        """The verdict on a claim of the paper, named by its key (or one of the notebook's own); None: not run."""
        verdict = claims.decide(self.claims[claim] if isinstance(claim, str) else claim, estimate)
        self.decided.append(verdict)
        return verdict

    def settle(self, folder: Path) -> str:
        """The table of all verdicts so far, after Holm's correction, in markdown; claims.json in the folder holds it."""
        claims.write(self.decided, folder / "claims.json")
        return claims.markdown(claims.claims_table(self.decided))

    def recheck(self, folder: Path) -> str:
        """The number of each verdict in the folder's claims.json.

        Raises AssertionError where the table differs from the published one and all runs are the
        published ones.
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
    name, dash, seed = key.rpartition("-s")
    return name if dash and seed.isdecimal() else key
