"""Notebook 07: Benz et al. 2021, the abstract on universal perturbations and training."""

from __future__ import annotations

from typing import Any

from crat.analysis.claims import Claim
from crat.config import RunConfig, Selection
from crat.defenses import preset
from crat.papers.common import (
    EMA,
    LOOKS,
    USUAL,
    Runs,
    base_of,
    evidence_profile,
    seeded,
    shown_live,
    sweep,
)

COMPARED: dict[str, dict[str, Any]] = {
    "standard": preset("standard"),
    "universal AT": preset("universal_at", class_wise=False),
    "class-wise universal AT": preset("universal_at"),
    "AT": preset("pgd_at"),
}

SEEDS = 8  # a training takes seconds
LIVE = ("live",)  # the network itself is used


def plan(profile_name: str, seed: int = 0, selection: Selection = USUAL) -> Runs:
    """A live training against one perturbation per class, then the four compared trainings."""
    evidence = evidence_runs(evidence_profile(profile_name), selection)
    return {"live": live(profile_name, seed, selection)} | evidence


def live(profile_name: str, seed: int, selection: Selection) -> RunConfig:
    """The live class-wise universal adversarial training; in laptop the one in figures/laptop.

    In the larger profiles it is a run of the profile, without an average of the weights.
    """
    base = shown_live(profile_name, selection)
    if profile_name == "laptop":
        base = base_of("quick", selection)
    return base.but(**preset("universal_at")).but(seed=seed)


def evidence_runs(profile_name: str, selection: Selection = USUAL) -> Runs:
    """The runs "standard-s0", "class-wise universal AT-s0" ...; the control "AT-s0" ..."""
    base = sweep(profile_name, selection)
    runs: Runs = {}
    for name, changes in COMPARED.items():
        runs |= seeded(name, base.but(**changes | EMA), selection.repeated(SEEDS))
    return runs


def _claim(
    statement: str, functional: str, where: str = "abstract", smallest: float = 0.01
) -> Claim:
    paper = "Benz et al. 2021"
    return Claim(
        paper,
        where,
        statement,
        functional,
        family="07",
        smallest_difference=smallest,
        looks=LOOKS,
    )


EQUAL, HELPS = (
    "abstract, read as: the source of unbalanced robustness",
    "abstract, read as: a defence",
)
CLASS_WISE, ONE = "training against one perturbation a class", "training against one for all"

CLAIMS = {
    "unequal": _claim(
        "of the images that a single perturbation fools, more than their share lie in the three "
        "classes that it fools "
        "most on other images (undefended network)",
        "share",
        smallest=0.05,
    ),
    "spread": _claim(
        "under a single perturbation the classes lie further apart than on clean images "
        "(undefended network, sd)",
        "spread",
        EQUAL,
        0.005,
    ),
    "clean": _claim(f"{CLASS_WISE} is more accurate on clean images than {ONE}", "average"),
    "robust": _claim(f"{CLASS_WISE} is more robust to a single perturbation than {ONE}", "average"),
    "worst": _claim(
        f"{CLASS_WISE} leaves a better worst class under a single perturbation than {ONE}",
        "worst",
        EQUAL,
        0.02,
    ),
    "class-wise attack": _claim(
        f"{CLASS_WISE} is more robust to one perturbation a class than {ONE}",
        "average",
        "abstract, read as: each kind of perturbation",
    ),
    "defence": _claim(
        f"{ONE} is more robust to a single perturbation than standard training", "average", HELPS
    ),
}
