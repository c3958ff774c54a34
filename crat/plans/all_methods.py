"""Runs of notebook 06: every method at one protocol."""

from __future__ import annotations

from typing import Any

from crat.config import profile
from crat.defenses import preset
from crat.plans.common import EMA, SEEDS, Runs, at_and_trades, evidence, sweep

# changes of the profile's base run, and seeds. One seed is never a verdict.
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
RADII = (0.25, 1.0)  # rho of CODAT's ball of class distributions


def all_methods(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 06: one live training with a class-wise policy, every method at one protocol, then CODAT's sweep."""
    live = {"live": profile(profile_name).but(**preset("cfa", base="trades")).but(seed=seed)}
    shown = evidence(profile_name)
    return live | all_methods_evidence(shown) | {f"codat {key}": run for key, run in codat_sweep(shown).items()}


def all_methods_evidence(profile_name: str) -> Runs:
    """Keys "AT-s0" ... "CFA (TRADES)-s2"."""
    base = profile(profile_name)
    return {f"{m}-s{s}": base.but(**changes).but(seed=s) for m, (changes, seeds) in TRIED.items() for s in seeds}


def codat_sweep(profile_name: str) -> Runs:
    """Keys "rho 0.25-s0" and, for rho = 0, "AT-s0", of the sweeps."""
    base = sweep(profile_name)
    runs = {key: run for key, run in at_and_trades(profile_name).items() if key == "AT-s0"}
    return runs | {f"rho {rho:g}-s0": base.but(**preset("codat", rho=rho) | EMA) for rho in RADII}
