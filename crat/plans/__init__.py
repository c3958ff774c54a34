"""Which runs each notebook asks for, by profile: one list for the notebook, the plan that is shown,
and publishing.

Each plan is a function (profile, seed) -> {key: RunConfig}; notebooks ask by key. A run that two
notebooks ask for is one run: its name is the hash of its settings.
"""

from __future__ import annotations

from collections.abc import Callable

from crat.config import profile
from crat.plans.all_methods import STRONG, TRIED, all_methods, all_methods_evidence, codat_sweep
from crat.plans.beyond import beyond, beyond_evidence
from crat.plans.cfa import cfa, cfa_evidence
from crat.plans.common import EMA, SEEDS, Runs, evidence, shown_live, sweep
from crat.plans.label_augmentation import label_augmentation, label_augmentation_evidence
from crat.plans.long_tail import long_tail, long_tail_evidence
from crat.plans.spat import spat, spat_evidence
from crat.plans.tian2021 import METHODS, REMOVED, tian2021, tian2021_evidence
from crat.plans.universal import universal, universal_evidence

__all__ = [
    "EMA",
    "LIVE",
    "METHODS",
    "PLANS",
    "REMOVED",
    "SEEDS",
    "STRONG",
    "TRIED",
    "Runs",
    "all_methods",
    "all_methods_evidence",
    "attacks_side_by_side",
    "beyond",
    "beyond_evidence",
    "cfa",
    "cfa_evidence",
    "codat_sweep",
    "label_augmentation",
    "label_augmentation_evidence",
    "long_tail",
    "long_tail_evidence",
    "shown_live",
    "spat",
    "spat_evidence",
    "start_here",
    "sweep",
    "tian2021",
    "tian2021_evidence",
    "universal",
    "universal_evidence",
]


def start_here(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 00: standard and adversarial training of a tiny net, live."""
    base = shown_live(profile_name).but(seed=seed)
    return {name: base.but(defense=name) for name in ("standard", "pgd_at")}


def attacks_side_by_side(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 02: one adversarially trained net to look into, and the published ones of
    notebook 01 to count on.
    """
    live = {"live": shown_live(profile_name).but(defense="pgd_at", seed=seed)}
    base = profile(evidence(profile_name))
    return live | {f"pgd_at-s{s}": base.but(defense="pgd_at", seed=s) for s in SEEDS}


# runs of a notebook whose networks are used themselves, so that published outcomes are not enough
LIVE = {"00": ("standard", "pgd_at"), "02": ("live",), "05": ("live",), "07": ("live",)}

# number of the notebook -> (profile, seed) -> its runs; 01 takes another data set, too
PLANS: dict[str, Callable[..., Runs]] = {
    "00": start_here,
    "01": tian2021,
    "02": attacks_side_by_side,
    "03": spat,
    "04": cfa,
    "05": label_augmentation,
    "06": all_methods,
    "07": universal,
    "08": long_tail,
    "09": beyond,
}
