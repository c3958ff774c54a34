"""Notebook 00: standard and adversarial training of a tiny net, live. It claims nothing."""

from __future__ import annotations

from crat.config import Selection
from crat.papers.common import USUAL, Runs, shown_live

LIVE = ("standard", "pgd_at")


def plan(profile_name: str, seed: int = 0, selection: Selection = USUAL) -> Runs:
    """The runs "standard" and "pgd_at"."""
    base = shown_live(profile_name, selection).but(seed=seed)
    return {name: base.but(defense=name) for name in LIVE}
