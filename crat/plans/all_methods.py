"""Runs of notebook 06: every method at one protocol."""

from __future__ import annotations

from typing import Any

from crat.config import profile
from crat.defenses import preset
from crat.plans.common import EMA, SEEDS, Runs, evidence, shown_live, sweep

TRIED: dict[str, dict[str, Any]] = {
    "AT": preset("pgd_at"),
    "AT+EMA": preset("pgd_at") | EMA,
    "CFA (AT)": preset("cfa"),
    "TRADES": preset("trades"),
    "TRADES+EMA": preset("trades") | EMA,
    "CFA (TRADES)": preset("cfa", base="trades"),
    "SPAT+EMA": preset("spat") | EMA,
    "Adv+ +EMA": preset("label_augmentation") | EMA,
    "WAT+EMA": preset("wat") | EMA,
    "FRL+EMA": preset("frl") | EMA,
}
# runs of it that AutoAttack judged
STRONG = ("AT-s0", "SPAT+EMA-s0", "Adv+ +EMA-s0")
RADII = (0.25, 1.0)  # rho of CODAT's ball of class distributions


def all_methods(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 06: one live training with a class-wise policy, every method at one protocol,
    then CODAT's sweep.
    """
    live = {"live": shown_live(profile_name).but(**preset("cfa", base="trades")).but(seed=seed)}
    shown = evidence(profile_name)
    return (
        live
        | all_methods_evidence(shown)
        | {f"codat {key}": run for key, run in codat_sweep(shown).items()}
    )


def all_methods_evidence(profile_name: str) -> Runs:
    """Keys "AT-s0" ... "CFA (TRADES)-s2"."""
    base = profile(profile_name)
    return {
        f"{m}-s{s}": base.but(**changes).but(seed=s) for m, changes in TRIED.items() for s in SEEDS
    }


def codat_sweep(profile_name: str) -> Runs:
    """Keys "rho 0.25-s0" and, for rho = 0, "AT-s0", of the sweeps."""
    base = sweep(profile_name)
    return {"AT-s0": base} | {
        f"rho {rho:g}-s0": base.but(**preset("codat", rho=rho) | EMA) for rho in RADII
    }
