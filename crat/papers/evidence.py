"""Evidence: the object that gives a notebook its paper's runs, comparisons and verdicts.

    evidence = Evidence.of("04", profile, seed=seed, data=data, seeds=seeds, recompute=recompute)
    PGD, CW = evidence.battery                # the names of the attacks, such as "PGD-20"
    test = evidence.judge(evidence.battery)   # reads the outcomes, or trains and attacks

    test.runs("main AT", CW)                  # bool (seeds, images): right when clean and under CW
    test.each("main AT", "worst", "clean")    # (seeds,): clean accuracy of the worst class
    test.cell("main AT", "worst")             # text: the same under PGD, mean ± sd in percent

    test.add("AT + bias-s0", answers, network="main AT-s0")  # answers of a run under a bias

    gain = test.compare("main CFA (AT)", "main AT", "worst")
    test.decide("at worst", gain)             # the verdict on a claim of the paper, by its key
    test.settle(folder)                       # the correction for their number; claims.json
    test.recheck(folder)                      # an error where the published verdicts differ

The name of a method is that of its runs without the seed: "main AT" means "main AT-s0",
"main AT-s1" ... The name of one run means that run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from crat import store
from crat.analysis import claims
from crat.analysis.claims import Claim, Verdict
from crat.analysis.comparisons import Estimate, compare, contrast
from crat.analysis.metrics import Functional, class_accuracy, confusion, per_run
from crat.config import DATASETS, ConfigError, RunConfig, Selection, profile
from crat.defenses.head_norms import fit_norms
from crat.defenses.tian2021 import fit_bias
from crat.device import describe, pick_device
from crat.names import one_of, unknown
from crat.outcomes.ask import outcomes, sampled_autoattack
from crat.outcomes.batteries import Battery, usual_battery
from crat.outcomes.cache import Outcomes
from crat.outcomes.sampled import Sampled
from crat.papers import PAPERS
from crat.papers.common import Runs, claims_file, evidence_profile, h100_runs
from crat.store import Store
from crat.training.run import Run
from crat.training.start import MissingStart
from crat.training.trainer import train

Made = TypeVar("Made")


def mean_sd(values: ArrayLike) -> str:
    """The mean and sd of several runs' fractions in percent, "71.6 ± 0.4"; of one run "71.6"."""
    fractions = np.atleast_1d(np.asarray(values, float))
    if fractions.size == 1:
        return f"{100 * fractions[0]:.1f}"
    return f"{100 * fractions.mean():.1f} ± {100 * fractions.std(ddof=1):.1f}"


@dataclass
class Evidence:
    """The runs of a paper, the outcomes of the judged ones, and the verdicts so far."""

    number: str  # of the notebook
    profile: str
    asked: Runs  # key -> the settings of a run; "live" is the one that the notebook trains
    selection: Selection  # the data set and the seeds, where a reader chose them
    store: Store
    claims: Mapping[str, Claim]  # of the paper, by key
    decided: list[Verdict] = field(default_factory=list)
    seen: dict[str, Outcomes] = field(default_factory=dict)  # key -> a network's answers
    added: dict[str, str] = field(default_factory=dict)  # key of `add` -> that of its network

    @classmethod
    def of(
        cls,
        number: str,
        profile: str,
        *,
        seed: int = 0,
        data: str = "",
        seeds: str = "",
        further: str = "",
        start_from: str = "",
        recompute: bool = False,
    ) -> Evidence:
        """The evidence of a notebook with these parameters; nothing is read or trained yet.

        seed: of the live run.
        data: another data set for all runs; "" is each plan's own.
        seeds: of the repeated runs; "" is as many as each plan has.
        further: methods of notebook 06 besides its own, with spaces between them.
        start_from: weights of yours that the runs start from (`Selection`); "" is none.
        recompute: trains all runs again, in another store.
        Raises ConfigError.
        """
        paper = PAPERS[one_of("notebook", number, PAPERS)]
        selection = Selection.read(data, seeds, further, start_from)
        asked = paper.plan(profile, seed, selection)
        claimed = getattr(paper, "CLAIMS", {})
        return cls(number, profile, asked, selection, Store.chosen(recompute), claimed)

    @property
    def live(self) -> RunConfig:
        """The settings of the run that the notebook trains while its reader waits."""
        return self.asked["live"]

    @property
    def dataset(self) -> str:
        """The data set of the main runs: the profile's, where any run is on it."""
        used = [self.asked[key].data.name for key in self._repeated]
        main = profile(evidence_profile(self.profile)).data.name
        return main if main in used else used[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the repeated runs; some methods have the first few of them only."""
        return tuple(sorted({self.asked[key].train.seed for key in self._repeated}))

    @property
    def battery(self) -> Battery:
        """The judging attacks PGD and CW at the data set's protocol, by name."""
        return usual_battery(self.dataset)

    @property
    def setting(self) -> str:
        """A line on device, versions and evidence, for the head of a notebook."""
        used = sorted({self.asked[key].data.name for key in self._repeated})
        where = f"{describe(pick_device())}; torch {torch.__version__}; profile {self.profile}"
        return f"{where}; evidence on {', '.join(used)}; seeds {' '.join(map(str, self.seeds))}"

    def planned(self, *methods: str) -> list[str]:
        """The keys of the plan's runs of these methods, whether they are judged or not."""
        return [key for key in self.asked if _method(key) in methods]

    def run(self, key: str) -> Run:
        """The run of a key: card, history and weights; raises ConfigError on an unknown key."""
        if key not in self.asked:
            raise ConfigError(unknown("run", key, self.asked))
        return Run.of(self.asked[key], store=self.store)

    def train(self, key: str = "live", progress: str | None = "line") -> Run:
        """Trains the run of a key, unless its weights are in the store.

        A run that starts from another of the plan is trained after that one.
        """
        config = self.run(key).config
        return self._after_its_start(
            lambda: train(config, progress=progress, store=self.store), progress
        )

    def history(self, key: str, split: str = "valid") -> pd.DataFrame:
        """The history of a run: clean_acc, robust_acc, loss, eps ... for each epoch and class."""
        every = self.run(key).history()
        return every[every.split == split]

    def by_epoch(self, key: str, column: str = "robust_acc", split: str = "valid") -> pd.DataFrame:
        """One column of the history as a table of epochs (rows) and classes (columns)."""
        return self.history(key, split).pivot(index="epoch", columns="class", values=column)

    def outcomes(self, key: str, battery: Battery, **settings: Any) -> Outcomes:
        """The answers of one network under a battery, read from the store or computed.

        settings of `crat.outcomes.evaluation.outcomes`: split, which, crafted_on, keep_classes,
        bias, temperature, first, spread, dtype, progress.
        """
        config = self.run(key).config
        return self._after_its_start(
            lambda: outcomes(config, battery, store=self.store, **settings),
            settings.get("progress"),
        )

    def sampled(self, key: str, **settings: Any) -> Sampled:
        """The estimates of each class's accuracy from AutoAttack on a sample of the images.

        settings of `crat.outcomes.sampled_autoattack`. A run that has no network is trained first.
        """
        if not self.run(key).has_network():
            self.train(key)
        return sampled_autoattack(self.run(key), **settings)

    def _after_its_start(self, work: Callable[[], Made], progress: str | None) -> Made:
        """The result of a work; a run of the plan that it lacks as a start is trained first.

        Raises MissingStart where the plan has no such run.
        """
        try:
            return work()
        except MissingStart as missing:
            keys = [key for key in self.asked if self.run(key).name == missing.start]
            if not keys:
                raise
            self.train(keys[0], progress)
            return self._after_its_start(work, progress)

    def judge(
        self, battery: Battery | Callable[[str], Battery], keys: Iterable[str] = (), **settings: Any
    ) -> Evidence:
        """This evidence with the outcomes of some runs as `seen`.

        All share the list of verdicts, and what `add` was told.

        battery: the attacks, or a function that gives those of a key.
        keys: the runs; without them all but the live one and those on data of another protocol.
        settings: as in `outcomes`.
        """
        seen = {}
        for key in keys or self._alike:
            attacks = battery(key) if callable(battery) else battery
            seen[key] = self.outcomes(key, attacks, **settings)
        return replace(self, seen=seen)

    def add(self, key: str, answers: Outcomes, network: str) -> None:
        """Adds answers that were not asked for as a run, such as those under a bias, as judged.

        key: their name, with a seed as the runs' keys have it.
        network: the key of the run that gave them. They belong to its stratum, and as the network
            may be judged itself, they lend no variance to a comparison of others.
        Raises ConfigError where the network was not asked for, or the key was.
        """
        if network not in self.asked:
            raise ConfigError(unknown("run", network, self.asked))
        if key in self.asked:
            raise ConfigError(f"{key!r} is a run of notebook {self.number}: choose another key")
        self.seen[key] = answers
        self.added[key] = network

    def h100(self) -> Evidence:
        """The two published runs on CIFAR-10 at the papers' network, judged by PGD-20 and CW-20.

        They have one seed and are undertrained, so they are shown and decide nothing. They are read
        whatever this evidence's data set, and never trained.
        """
        apart = replace(self, asked=h100_runs(), store=Store.usual(), decided=[], added={})
        return apart.judge(usual_battery("cifar10"), apart.asked, dtype="bfloat16")

    def bias(self, key: str, max_drop: float) -> list[float]:
        """The bias on the class logits that lifts the weakest class under PGD on validation.

        It costs at most max_drop of the average there (`crat.defenses.tian2021.fit_bias`).
        """
        fitted = fit_bias(*self._attacked_validation(key), max_drop=max_drop)
        return [round(b, 2) for b in fitted.tolist()]

    def norms(self, key: str, max_drop: float) -> list[float]:
        """The temperatures of the class logits that lift the weakest class, fitted as the bias is.

        They stand for the norms of the head's rows (`crat.defenses.head_norms.fit_norms`).
        """
        fitted = fit_norms(*self._attacked_validation(key), max_drop=max_drop)
        return [round(t, 3) for t in fitted.tolist()]

    def _attacked_validation(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits (N, K) of a run's validation images under PGD, and their labels (N,)."""
        attack, pgd = next(iter(self.battery.items()))
        valid = self.outcomes(key, {attack: pgd}, split="valid")
        return torch.from_numpy(valid.logits[attack]).float(), torch.from_numpy(valid.y)

    @property
    def methods(self) -> list[str]:
        """The names of the judged methods, in the plan's order."""
        return list(dict.fromkeys(_method(key) for key in self.seen))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return next(iter(self.seen.values())).classes

    def keys(self, method: str) -> list[str]:
        """The keys of a method's judged runs, or of one run; raises ConfigError on another name."""
        if method in self.seen:
            return [method]
        keys = [key for key in self.seen if _method(key) == method]
        if not keys:
            raise ConfigError(unknown("judged method", method, self.methods))
        return keys

    def labels(self, method: str) -> NDArray:
        """The true classes (N,) of the images."""
        return self.seen[self.keys(method)[0]].y

    def runs(self, method: str, *under: str) -> NDArray:
        """Right answers of S runs, bool (S, N): when clean and under all attacks (none: PGD)."""
        attacks = under or tuple(self.battery)[:1]
        seen = [self.seen[key] for key in self.keys(method)]
        return np.stack([np.logical_and.reduce([o.robust(a) for a in attacks]) for o in seen])

    def each(self, method: str, functional: Functional = "average", *under: str) -> NDArray:
        """The functional of each run, (S,): average, worst, crossfit, tail, spread or gap."""
        return per_run(self.labels(method), self.runs(method, *under), functional)

    def cell(self, method: str, functional: Functional = "average", *under: str) -> str:
        """The mean and sd of the functional over runs, in percent: "71.6 ± 0.4"."""
        return mean_sd(self.each(method, functional, *under))

    def class_accuracy(self, method: str, *under: str) -> NDArray:
        """The accuracy of each class, (K,), as mean over runs."""
        runs = self.runs(method, *under)
        return class_accuracy(self.labels(method), runs, len(self.classes)).mean(0)

    def class_table(self, methods: Iterable[str], *under: str) -> pd.DataFrame:
        """The table with a row for each method and class: method, class, robust_acc."""
        tables = []
        for method in methods:
            columns = {"class": self.classes, "robust_acc": self.class_accuracy(method, *under)}
            tables.append(pd.DataFrame({"method": method, **columns}))
        return pd.concat(tables, ignore_index=True)

    def confusions(self, method: str, under: str) -> NDArray:
        """The counts (S, K, K) of each run by true class (rows) and answer under an attack."""
        seen = [self.seen[key] for key in self.keys(method)]
        return np.stack([confusion(o.y, o.predictions[under], len(self.classes)) for o in seen])

    def compare(
        self,
        a: str | Sequence[str],
        b: str | Sequence[str],
        functional: Functional = "average",
        under: str | tuple[str, ...] = (),
        only: Any = slice(None),
    ) -> Estimate:
        """The difference of methods a minus b, with its interval (`crat.analysis.comparisons`).

        a, b: a method, or several of one stratum, for their mean over the seeds that all have.
        functional: as in `each`.
        under: an attack, or several of which each must leave the answer right; () is PGD.
        only: a mask or slice of the images.
        The variance over seeds is pooled with the judged methods of a's stratum and of b's.
        """
        attacks = (under,) if isinstance(under, str) else under
        of_a, of_b = ([m] if isinstance(m, str) else list(m) for m in (a, b))
        same = self._stratum(of_a[0]) == self._stratum(of_b[0])
        lent_a = self._lenders(of_a[0], attacks, without=(*of_a, *of_b))
        lent_b = None if same else self._lenders(of_b[0], attacks, without=(*of_a, *of_b))
        return compare(
            self.labels(of_a[0])[only],
            self._stacked(of_a, attacks)[..., only],
            self._stacked(of_b, attacks)[..., only],
            functional,
            like_a=[runs[:, only] for runs in lent_a],
            like_b=None if lent_b is None else [runs[:, only] for runs in lent_b],
        )

    def _stacked(self, methods: Sequence[str], attacks: tuple[str, ...]) -> NDArray:
        """The right answers (M, S, N) of methods on their first seeds, as many as all have."""
        of_each = [self.runs(m, *attacks) for m in methods]
        fewest = min(map(len, of_each))
        return np.stack([runs[:fewest] for runs in of_each])

    def against(self, base: str) -> pd.DataFrame:
        """A row for each judged method: means and sds, and differences to the base under PGD.

        Columns, as fractions: method, seeds, clean, clean_sd, average, average_sd, worst, worst_sd,
        and for both functionals <f>_difference, <f>_low, <f>_high, <f>_p (nan for the base).
        """
        functionals: tuple[Functional, ...] = ("average", "worst")
        rows = []
        for method in self.methods:
            row: dict[str, object] = {"method": method, "seeds": len(self.keys(method))}
            values = {"clean": self.each(method, "average", "clean")}
            values |= {str(f): self.each(method, f) for f in functionals}
            for name, of_each in values.items():
                row[name] = of_each.mean()
                row[f"{name}_sd"] = of_each.std(ddof=1) if len(of_each) > 1 else float("nan")
            for f in functionals if method != base else ():
                gain = self.compare(method, base, f)
                row |= {f"{f}_difference": gain.value, f"{f}_low": gain.low}
                row |= {f"{f}_high": gain.high, f"{f}_p": gain.p}
            rows.append(row)
        return pd.DataFrame(rows)

    def contrast(
        self,
        method: str,
        functional: Functional = "average",
        under: str = "clean",
        against: str = "",
    ) -> Estimate:
        """The functional of a method under an attack minus that under another one ("": PGD).

        The variance over seeds is pooled with the methods of its stratum that both attacks judged.
        """
        second = against or next(iter(self.battery))
        both = {key: o for key, o in self.seen.items() if {under, second} <= o.predictions.keys()}
        by_both = replace(self, seen=both)
        lent = (by_both._lenders(method, (attack,), (method,)) for attack in (under, second))
        return contrast(
            self.labels(method),
            self.runs(method, under),
            self.runs(method, second),
            functional,
            siblings=list(zip(*lent, strict=True)),
        )

    def _stratum(self, method: str) -> tuple[Any, ...]:
        """What methods share whose seeds vary alike: data, network, length, an average or none."""
        key = self.keys(method)[0]
        config = self.asked.get(self.added.get(key, key))
        if config is None:  # nobody said which network gave these answers
            return (method,)
        averaged = config.train.average == "ema_update"
        return config.data, config.model.name, config.train.epochs, averaged

    def _lenders(
        self, method: str, attacks: tuple[str, ...], without: tuple[str, ...]
    ) -> list[NDArray]:
        """The runs (S, N) under attacks of the other judged methods in a method's stratum.

        A network lends once: neither those of the methods without, nor added answers, lend.
        """
        needed = set(attacks or tuple(self.battery)[:1])
        stratum = self._stratum(method)
        compared = {self.added.get(key, key) for name in without for key in self.keys(name)}
        lenders = []
        for other in self.methods:
            keys = self.keys(other)
            judged = all(needed <= self.seen[key].predictions.keys() for key in keys)
            once = compared.isdisjoint(keys) and self.added.keys().isdisjoint(keys)
            if once and judged and len(keys) > 1 and self._stratum(other) == stratum:
                lenders.append(self.runs(other, *needed))
        return lenders

    def decide(self, claim: str | Claim, estimate: Estimate | None) -> None:
        """Adds the verdict of an estimate (None: not run) on a claim, or on the claim of a key."""
        declared = self.claims[claim] if isinstance(claim, str) else claim
        self.decided.append(claims.decide(declared, estimate))

    def settle(self, folder: Path) -> str:
        """Corrects the verdicts, writes claims.json, and returns the table in markdown, by role.

        A claim of the paper that was not decided is a row "not run". The primary claims stand
        first, each role in the order of the paper's claims.
        """
        decided = {verdict.claim for verdict in self.decided}
        for claim in self.claims.values():
            if claim not in decided:
                self.decide(claim, None)
        self.decided.sort(key=self._place)
        claims.write(self.decided, folder / "claims.json")
        return claims.folded(claims.claims_table(self.decided))

    def recheck(self, folder: Path) -> str:
        """The counts of verdicts in the folder's claims.json, in lines.

        Raises AssertionError where the published runs were asked for and the verdicts are others.
        """
        now = claims.read(folder / "claims.json")
        if self._is_the_published:
            pd.testing.assert_frame_equal(claims.read(self._published), now, rtol=1e-6)
        return now.verdict.value_counts().to_string()

    def _place(self, verdict: Verdict) -> tuple[int, int]:
        """Where a verdict stands in the table; claims that the notebook makes itself come last."""
        order = list(self.claims.values())
        claim = verdict.claim
        place = order.index(claim) if claim in order else len(order)
        return claims.ROLES.index(claim.role), place

    @property
    def _repeated(self) -> list[str]:
        return [key for key in self.asked if key != "live"]

    @property
    def _alike(self) -> list[str]:
        """The repeated runs on data with the main data set's protocol, which one battery judges."""
        protocol = DATASETS[self.dataset].protocol
        return [k for k in self._repeated if DATASETS[self.asked[k].data.name].protocol == protocol]

    @property
    def _is_the_published(self) -> bool:
        """Whether the published verdicts are of these runs; other seeds may decide otherwise."""
        chosen = self.selection
        if chosen.seeds or chosen.further or chosen.start_from or not self._published.exists():
            return False
        return all(self.run(key).published for key in self._repeated)

    @property
    def _published(self) -> Path:
        return store.results_home() / self.dataset / claims_file(self.number, self.profile)


def _method(key: str) -> str:
    """The method of a key, without the seed: "main AT-s0" -> "main AT"; "beta 6" stays."""
    name, _, seed = key.rpartition("-s")
    return name if name and seed.isdecimal() else key
