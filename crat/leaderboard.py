"""The leaderboard: every method of notebook 06 that has published runs, clean, under the
protocol's PGD, by class.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from crat.analysis import metrics
from crat.config import PROTOCOLS, profile
from crat.outcomes.batteries import protocol_pgd
from crat.outcomes.evaluation import evaluate
from crat.plans import TRIED, all_methods_evidence
from crat.plans.common import evidence
from crat.training.run import Run

BASELINE = "AT+EMA"  # no class-wise policy, only an average of the weights: the one to beat
ROBUST = ("average", "worst", "crossfit", "tail", "spread", "gap")  # functionals under PGD


def leaderboard(profile_name: str) -> pd.DataFrame:
    """A row per method: method, seeds, then for clean and each of ROBUST the mean and, as
    <name>_sd, the sd of seeds.

    Fractions; the sd is nan for one seed. Methods with several seeds come first, then by average
    under attack. Only published runs are read (quick shows the laptop's), nothing is trained or
    attacked. Empty where none is published.
    """
    runs = {
        key: Run.of(config) for key, config in all_methods_evidence(evidence(profile_name)).items()
    }
    dataset = profile(evidence(profile_name)).data.name
    rows = []
    for method in TRIED:
        published = [
            run for key, run in runs.items() if key.rpartition("-s")[0] == method and run.published
        ]
        if published:
            rows.append({"method": method, "seeds": len(published)} | _numbers(published, dataset))
    board = pd.DataFrame(
        rows,
        columns=["method", "seeds", *(f"{c}{s}" for c in ("clean", *ROBUST) for s in ("", "_sd"))],
    )
    return board.sort_values(
        ["seeds", "average"],
        key=lambda c: c > 1 if c.name == "seeds" else c,
        ascending=False,
        ignore_index=True,
    )


def attack_name(profile_name: str) -> str:
    """The attack that judges, such as "PGD-20"."""
    return f"PGD-{PROTOCOLS[profile(evidence(profile_name)).data.name].test_steps}"


def _numbers(runs: list[Run], dataset: str) -> dict[str, float]:
    """Mean and sd over runs of clean accuracy and of each functional under PGD."""
    seen = [evaluate(run, {"PGD": protocol_pgd(dataset)}, tell=None) for run in runs]
    correct = {name: np.stack([s.robust(name) for s in seen]) for name in ("clean", "PGD")}
    values = {"clean": metrics.per_run(seen[0].y, correct["clean"], "average")}
    values |= {name: metrics.per_run(seen[0].y, correct["PGD"], name) for name in ROBUST}
    spread = {f"{name}_sd": v.std(ddof=1) if v.size > 1 else np.nan for name, v in values.items()}
    return {name: float(v.mean()) for name, v in values.items()} | spread
