"""The leaderboard: each method of notebook 06 with published runs, clean and under PGD.

Also the table of methods beside a base, in percent, as a terminal, a paper and a page show it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crat.analysis.metrics import class_accuracy, per_run
from crat.config import DATASETS, profile
from crat.outcomes.batteries import protocol_pgd
from crat.outcomes.evaluation import evaluate
from crat.papers.all_methods import TRIED, evidence_runs
from crat.papers.common import evidence_profile
from crat.papers.evidence import Evidence
from crat.store import Store, StoreError
from crat.text import Bold, booktabs, percent
from crat.training.run import Run

BASELINE = "AT+EMA"  # no class-wise policy, only an average of the weights: the one to beat
ROBUST = ("average", "worst", "crossfit", "tail", "spread", "gap")  # functionals under PGD
NUMBERS = tuple(f"{name}{suffix}" for name in ("clean", *ROBUST) for suffix in ("", "_sd"))
# the columns of a table of methods beside a base, and those of its functionals that are compared
METHODS_HEADER = ("method", "seeds", "clean", "average", "difference", "worst class", "difference")
COMPARED = ("average", "worst")


def leaderboard(profile_name: str, store: Store | None = None) -> pd.DataFrame:
    """The table of methods: method, seeds, and mean and sd (<name>_sd) of clean and each of ROBUST.

    Fractions; the sd is nan for one seed. Rows are `ranked`. Only published runs are read, for
    quick the laptop's; nothing is trained or attacked. Empty where no run is published.
    """
    rows = [
        {"method": method, "seeds": len(runs)} | numbers(*correct(runs))
        for method, runs in published_runs(profile_name, store).items()
    ]
    return ranked(pd.DataFrame(rows, columns=["method", "seeds", *NUMBERS]))


def published_runs(profile_name: str, store: Store | None = None) -> dict[str, list[Run]]:
    """The published runs of each method that has any, for quick the laptop's."""
    shown = evidence_profile(profile_name)
    runs = {key: Run.of(config, store=store) for key, config in evidence_runs(shown).items()}
    published = {}
    for method in TRIED:
        own = [run for key, run in runs.items() if key.rpartition("-s")[0] == method]
        published[method] = [run for run in own if run.published]
    return {method: own for method, own in published.items() if own}


def by_class(profile_name: str, store: Store | None = None) -> pd.DataFrame:
    """The robust accuracy of each class (columns) by method (index): mean over runs, a fraction.

    Methods in the order of `leaderboard`, classes from the one with the lowest mean on. Empty where
    no run is published.
    """
    accuracies = {}
    for method, runs in published_runs(profile_name, store).items():
        y, _, attacked = correct(runs)
        classes = runs[0].card()["classes"]
        mean = class_accuracy(y, attacked, len(classes)).mean(0)
        accuracies[method] = dict(zip(classes, mean, strict=True))
    table = pd.DataFrame.from_dict(accuracies, orient="index")
    return table[table.mean().sort_values().index].loc[
        list(leaderboard(profile_name, store).method)
    ]


def board(profile_name: str) -> tuple[pd.DataFrame, str]:
    """The published methods, the best average first, and the images in words.

    Columns: those of `Evidence.against`, and those of `leaderboard` that it lacks, as fractions.
    Raises StoreError where no run of the profile is published.
    """
    whole = leaderboard(profile_name)
    if whole.empty:
        raise StoreError(
            f"no run of the profile {profile_name} is published: crat runs lists those"
        )
    evidence = Evidence.of("06", profile_name)
    every = evidence.planned(*whole.method)
    keys = [key for key in every if evidence.run(key).published]
    attack, pgd = next(iter(evidence.battery.items()))
    test = evidence.judge({attack: pgd}, keys)
    table = test.against(BASELINE)
    known = [name for name in table.columns if name != "method"]
    further = whole.drop(columns=known, errors="ignore")
    table = whole[["method"]].merge(table, on="method").merge(further, on="method")
    return table, f"{test.dataset}, {test.labels(BASELINE).size} test images"


def correct(runs: Sequence[Run]) -> tuple[NDArray, NDArray, NDArray]:
    """Labels (N,), and bool (S, N) of S runs: right when clean; right when clean and under PGD."""
    attack = {"PGD": protocol_pgd(runs[0].config.data.name)}
    outcomes = [evaluate(run, attack, tell=None) for run in runs]
    clean = np.stack([outcome.robust("clean") for outcome in outcomes])
    attacked = np.stack([outcome.robust("PGD") for outcome in outcomes])
    return outcomes[0].y, clean, attacked


def numbers(y: NDArray, clean: NDArray, attacked: NDArray) -> dict[str, float]:
    """The mean and sd over runs of clean accuracy, and of each of ROBUST under attack."""
    values = {"clean": per_run(y, clean, "average")}
    values |= {name: per_run(y, attacked, name) for name in ROBUST}
    row = {name: float(value.mean()) for name, value in values.items()}
    several = len(clean) > 1
    for name, value in values.items():
        row[f"{name}_sd"] = float(value.std(ddof=1)) if several else float("nan")
    return row


def ranked(board: pd.DataFrame) -> pd.DataFrame:
    """Sorts the methods: those with several seeds first, then by average under attack."""
    several = board.assign(several=board.seeds > 1)
    order = several.sort_values(["several", "average"], ascending=False, ignore_index=True)
    return order.drop(columns="several")


def attack_name(profile_name: str) -> str:
    """The attack that judges, such as "PGD-20"."""
    return f"PGD-{DATASETS[profile(evidence_profile(profile_name)).data.name].protocol.test_steps}"


def methods_latex(table: pd.DataFrame, what: str, base: str) -> str:
    """A table of methods beside a base for a paper (booktabs), in percent.

    what: the images and the attack, for the caption.
    """
    caption = f"{what}: percent, mean over seeds ± sd; differences to {base} with 95 % intervals"
    return booktabs(METHODS_HEADER, [method_cells(table)], caption)


def method_cells(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """The rows of METHODS_HEADER, in percent; the best average and worst class are bold."""
    best = {f: table[f].idxmax() for f in COMPARED}
    rows = []
    for i, row in table.iterrows():
        cells = [str(row["method"]), str(row["seeds"]), _mean_sd(row, "clean")]
        for f in COMPARED:
            mean = _mean_sd(row, f)
            cells += [Bold(mean) if best[f] == i else mean, _difference(row, f)]
        rows.append(tuple(cells))
    return rows


def _mean_sd(row: pd.Series, name: str) -> str:
    sd = row[f"{name}_sd"]
    return percent(row[name]) + ("" if sd != sd else f" ± {percent(sd)}")  # nan: one seed


def _difference(row: pd.Series, f: str) -> str:
    value = row[f"{f}_difference"]
    if value != value:  # nan: the base itself
        return "-"
    ends = f"{percent(row[f'{f}_low'])}, {percent(row[f'{f}_high'])}"
    return f"{100 * value:+.1f} [{ends}]"
