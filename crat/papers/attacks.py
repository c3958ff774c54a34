"""Notebook 02: the attacks side by side. It claims nothing."""

from __future__ import annotations

from crat.config import Selection
from crat.papers.common import (
    MAIN_SEEDS,
    USUAL,
    Runs,
    base_of,
    evidence_profile,
    seeded,
    shown_live,
)

LIVE = ("live",)


def plan(profile_name: str, seed: int = 0, selection: Selection = USUAL) -> Runs:
    """A live adversarial training, whose net is attacked, and the runs of notebook 01."""
    live = shown_live(profile_name, selection).but(defense="pgd_at", seed=seed)
    evidence = base_of(evidence_profile(profile_name), selection).but(defense="pgd_at")
    return {"live": live} | seeded("pgd_at", evidence, selection.repeated(MAIN_SEEDS))
