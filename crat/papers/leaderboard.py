"""The leaderboard: each method of notebook 06 with published runs, clean and under PGD.

The data set is the profile's own, or one that notebook 06 has some methods on, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crat.analysis.metrics import class_accuracy, per_run
from crat.config import DATASETS, dataset_named, profile
from crat.outcomes.batteries import protocol_pgd
from crat.outcomes.evaluation import evaluate
from crat.papers.all_methods import board_runs
from crat.papers.common import evidence_profile
from crat.store import Store
from crat.training.run import Run

ROBUST = ("average", "worst", "crossfit", "tail", "spread", "gap")  # functionals under PGD
NUMBERS = tuple(f"{name}{suffix}" for name in ("clean", *ROBUST) for suffix in ("", "_sd"))


def leaderboard(profile_name: str, store: Store | None = None, dataset: str = "") -> pd.DataFrame:
    """The table of methods: method, seeds, and mean and sd (<name>_sd) of clean and each of ROBUST.

    Fractions; the sd is nan for one seed. Rows are `ranked`. Only published runs are read, for
    quick the laptop's; nothing is trained or attacked. Empty where no run is published.
    dataset: as in `crat.papers.all_methods.board_runs`. Raises ConfigError.
    """
    rows = [
        {"method": method, "seeds": len(runs)} | numbers(*correct(runs))
        for method, runs in published_runs(profile_name, store, dataset).items()
    ]
    return ranked(pd.DataFrame(rows, columns=["method", "seeds", *NUMBERS]))


def published_runs(
    profile_name: str, store: Store | None = None, dataset: str = ""
) -> dict[str, list[Run]]:
    """The published runs of each method that has any, for quick the laptop's."""
    published: dict[str, list[Run]] = {}
    for key, config in board_runs(evidence_profile(profile_name), dataset).items():
        run = Run.of(config, store=store)
        if run.published:
            published.setdefault(key.rpartition("-s")[0], []).append(run)
    return published


def by_class(profile_name: str, store: Store | None = None, dataset: str = "") -> pd.DataFrame:
    """The robust accuracy of each class (columns) by method (index): mean over runs, a fraction.

    Classes from the one with the lowest mean over methods on. Empty where no run is published.
    """
    accuracies = {}
    for method, runs in published_runs(profile_name, store, dataset).items():
        y, _, attacked = correct(runs)
        classes = runs[0].card()["classes"]
        mean = class_accuracy(y, attacked, len(classes)).mean(0)
        accuracies[method] = dict(zip(classes, mean, strict=True))
    table = pd.DataFrame.from_dict(accuracies, orient="index")
    return table[table.mean().sort_values().index]


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


def data_of(profile_name: str, dataset: str = "") -> str:
    """The leaderboard's data set: the one that is named, else the profile's own."""
    return dataset_named(dataset) if dataset else profile(evidence_profile(profile_name)).data.name


def attack_name(profile_name: str, dataset: str = "") -> str:
    """The attack that judges, such as "PGD-20"."""
    return f"PGD-{DATASETS[data_of(profile_name, dataset)].protocol.test_steps}"
