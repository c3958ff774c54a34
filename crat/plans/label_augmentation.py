"""Runs of notebook 05 (Amerehi and Healy 2025, Adv and Adv+; 2024, LA)."""

from __future__ import annotations

from typing import Any

from crat.config import RunConfig, profile
from crat.defenses import preset
from crat.plans.common import EMA, SEEDS, Runs, evidence, shown_live, sweep

# the paper's three, LA of 2024, and two controls on the half-clean batches of Adv+: smooth labels,
# and hard ones
COMPARED: dict[str, dict[str, Any]] = {
    "base": preset("standard"),
    "LA": preset("label_augmentation", adversarial=False),
    "Adv": preset("pgd_at"),
    "Adv+": preset("label_augmentation"),
    "smoothing": preset("label_smoothing"),
    "half clean": preset("label_smoothing", delta=0.0),
}
DELTAS = (0.05, 0.2, 0.4)  # of Adv+, beside 0.1
MAIN = {"Adv": preset("pgd_at"), "Adv+": preset("label_augmentation")}


def label_augmentation(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 05: a short live training of Adv+, then what is compared, and the sweep over
    delta.
    """
    return {"live": live(profile_name, seed)} | label_augmentation_evidence(evidence(profile_name))


def live(profile_name: str, seed: int) -> RunConfig:
    """Adv+, trained in the notebook; it demonstrates only. Laptop: the training that
    figures/laptop shows.
    """
    base = (
        profile("quick").but(train_per_class=300)
        if profile_name == "laptop"
        else shown_live(profile_name)
    )
    return base.but(**preset("label_augmentation")).but(seed=seed)


def label_augmentation_evidence(profile_name: str) -> Runs:
    """Keys "base-s0", "Adv+-s0", "delta 0.4" of the sweeps; "main base-s0" ... "main Adv+-s2" of
    the profile.
    """
    base, main = sweep(profile_name), profile(profile_name)
    runs = {
        f"{name}-s{s}": base.but(**changes | EMA).but(seed=s)
        for name, changes in COMPARED.items()
        for s in SEEDS
    }
    runs |= {
        f"delta {d:g}": base.but(**preset("label_augmentation", delta=d) | EMA) for d in DELTAS
    }
    runs |= {f"main base-s{s}": main.but(defense="standard", seed=s) for s in SEEDS}
    return runs | {
        f"main {name}-s{s}": main.but(**changes | EMA).but(seed=s)
        for name, changes in MAIN.items()
        for s in SEEDS
    }
