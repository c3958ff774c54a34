"""Runs of notebook 07 (Benz et al. 2021, class-wise universal perturbations)."""

from __future__ import annotations

from typing import Any

from crat.config import RunConfig, profile
from crat.defenses import preset
from crat.plans.common import EMA, SEEDS, Runs, evidence, shown_live, sweep

COMPARED: dict[str, dict[str, Any]] = {
    "standard": preset("standard"),
    "universal AT": preset("universal_at", class_wise=False),
    "class-wise universal AT": preset("universal_at"),
    "AT": preset("pgd_at"),
}


def universal(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 07: a live training against one perturbation a class, then the four trainings
    that are compared.
    """
    return {"live": live(profile_name, seed)} | universal_evidence(evidence(profile_name))


def live(profile_name: str, seed: int) -> RunConfig:
    """Class-wise universal adversarial training, trained in the notebook. Laptop: what
    figures/laptop shows.
    """
    base = profile("quick") if profile_name == "laptop" else shown_live(profile_name)
    return base.but(**preset("universal_at")).but(seed=seed)


def universal_evidence(profile_name: str) -> Runs:
    """Keys "standard-s0" ... "class-wise universal AT-s2", of the sweeps; "AT-s0" ..., the
    control.
    """
    base = sweep(profile_name)
    return {
        f"{name}-s{s}": base.but(**changes | EMA).but(seed=s)
        for name, changes in COMPARED.items()
        for s in SEEDS
    }
