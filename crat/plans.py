"""Which runs each notebook asks for, by profile: one list for the notebook, the plan that is shown, and publishing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crat.config import RunConfig, profile
from crat.defenses import preset

SEEDS = (0, 1, 2)
METHODS = ("standard", "pgd_at", "trades")


def start_here(profile_name: str, seed: int = 0) -> dict[str, RunConfig]:
    """Notebook 00: standard and adversarial training of a tiny net, live."""
    base = profile(profile_name).but(seed=seed)
    return {name: base.but(defense=name) for name in ("standard", "pgd_at")}


def tian2021(profile_name: str, seed: int = 0) -> dict[str, RunConfig]:
    """Notebook 01: one live run of the profile, then the evidence: three methods x seeds, and class removal.

    The quick profile decides nothing, so its figures are drawn from the laptop profile's published runs.
    """
    live = {"live": profile(profile_name).but(defense="pgd_at", seed=seed)}
    return live | tian2021_evidence("laptop" if profile_name == "quick" else profile_name)


def tian2021_evidence(profile_name: str) -> dict[str, RunConfig]:
    """Keys "pgd_at-s0" ... and "without-3-s0": AT on all classes but number 3."""
    base = profile(profile_name)
    runs = {f"{m}-s{s}": base.but(defense=m, seed=s) for m in METHODS for s in SEEDS}
    return runs | {f"without-{c}-s0": base.but(defense="pgd_at", drop_classes=(c,)) for c in REMOVED[base.data.name]}


# Class removal (Tian et al.): the top confuser of each of the two hardest classes, and a dissimilar class as control.
REMOVED: dict[str, tuple[int, ...]] = {"fashion_mnist_mini": (), "fashion_mnist": (0, 4, 9), "cifar10": (3, 5, 1)}

def attacks_side_by_side(profile_name: str, seed: int = 0) -> dict[str, RunConfig]:
    """Notebook 02: one adversarially trained net to look into, and the published ones of notebook 01 to count on."""
    live = {"live": profile(profile_name).but(defense="pgd_at", seed=seed)}
    base = profile("laptop" if profile_name == "quick" else profile_name)
    return live | {f"pgd_at-s{s}": base.but(defense="pgd_at", seed=s) for s in SEEDS}


# What notebook 06 compares: changes of the profile's base run, and seeds. One seed is never a verdict.
EMA = {"average": "ema_update"}
TRIED: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "AT": (preset("pgd_at"), SEEDS),
    "AT+EMA": (preset("pgd_at") | EMA, SEEDS),
    "CFA (AT)": (preset("cfa"), SEEDS),
    "TRADES": (preset("trades"), SEEDS),
    "TRADES+EMA": (preset("trades") | EMA, SEEDS),
    "CFA (TRADES)": (preset("cfa", base="trades"), SEEDS),
    "SPAT+EMA": (preset("spat") | EMA, SEEDS),
    "Adv+ +EMA": (preset("label_augmentation") | EMA, SEEDS),
    "WAT+EMA": (preset("wat") | EMA, (0,)),
    "FRL+EMA": (preset("frl") | EMA, (0,)),
}
# runs of it that AutoAttack judged
STRONG = ("AT-s0", "SPAT+EMA-s0", "Adv+ +EMA-s0")


def all_methods(profile_name: str, seed: int = 0) -> dict[str, RunConfig]:
    """Notebook 06: one live training with a class-wise policy, then every method at one protocol."""
    live = {"live": profile(profile_name).but(**preset("cfa", base="trades")).but(seed=seed)}
    return live | all_methods_evidence("laptop" if profile_name == "quick" else profile_name)


def all_methods_evidence(profile_name: str) -> dict[str, RunConfig]:
    """Keys "AT-s0" ... "CFA (TRADES)-s2"."""
    base = profile(profile_name)
    return {f"{m}-s{s}": base.but(**changes).but(seed=s) for m, (changes, seeds) in TRIED.items() for s in seeds}


# runs of a notebook whose networks are used themselves, so that published outcomes are not enough
LIVE = {"00": ("standard", "pgd_at"), "02": ("live",)}

# number of the notebook -> (profile, seed) -> its runs
PLANS: dict[str, Callable[[str, int], dict[str, RunConfig]]] = {
    "00": start_here,
    "01": tian2021,
    "02": attacks_side_by_side,
    "06": all_methods,
}
