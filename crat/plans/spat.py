"""Runs of notebook 03 (Hou et al. 2023, SPAT)."""

from __future__ import annotations

from typing import Any

from crat.config import RunConfig, profile
from crat.defenses import preset
from crat.plans.common import EMA, SEEDS, Runs, evidence, shown_live, sweep

# The two terms, each with what it replaces, and seeds; all on the cosine head. "CE + KL" is TRADES
# on that head: the control
TERMS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "CE + KL": ({"form": "plain", "squares": False}, SEEDS),
    # what L_hcp leaves without its squares
    "CE + n KL": ({"form": "plain", "squares": False, "beta": 1.2}, (0,)),
    "L_sp + KL": ({"squares": False}, (0,)),
    "CE + L_hcp": ({"form": "plain"}, (0,)),
    "L_sp + L_hcp": ({}, SEEDS),
    "L_sp alone": ({"beta": 0.0}, (0,)),
}
FORMS = ("detached", "clamped", "circle")  # of the self-paced weights, beside the released one
# one setting at a time, beside s = 8, m = 0.2, n = 0.2, beta = 6
SWEPT = {"scale": (4.0, 16.0), "m": (0.0, 0.5), "n": (0.0, 1.0), "beta": (1.0, 12.0)}
# the methods on the usual head
LINEAR = {"undefended": "standard", "AT": "pgd_at", "TRADES": "trades"}
MAIN: dict[str, dict[str, Any]] = {
    "undefended": preset("standard"),
    "AT without EMA": preset("pgd_at"),
    "AT": preset("pgd_at") | EMA,
    "TRADES": preset("trades") | EMA,
    "SPAT": preset("spat") | EMA,
}


def spat(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 03: a short live training, the methods of notebook 06 that it compares, ablation
    and sweeps.
    """
    return {"live": live(profile_name, seed)} | spat_evidence(evidence(profile_name))


def live(profile_name: str, seed: int) -> RunConfig:
    """SPAT, trained in the notebook; in the larger profiles it is one of the runs that are
    compared.
    """
    return (
        shown_live(profile_name)
        .but(**preset("spat") | ({} if profile_name == "quick" else EMA))
        .but(seed=seed)
    )


def spat_evidence(profile_name: str) -> Runs:
    """Keys "AT-s0", "CE + KL-s0", "form detached", "scale 4" of the sweeps; "main SPAT-s0" of
    the profile.
    """
    base, main = sweep(profile_name), profile(profile_name)
    runs = {f"{name}-s0": base.but(**preset(method)) for name, method in LINEAR.items()}
    for name, (options, seeds) in TERMS.items():
        for s in seeds:
            runs[f"{name}-s{s}"] = base.but(**preset("spat", **options)).but(seed=s)
    runs |= {f"form {form}": base.but(**preset("spat", form=form)) for form in FORMS}
    for name, values in SWEPT.items():
        for value in values:
            changes = {"scale": value} if name == "scale" else {}
            options = {} if name == "scale" else {name: value}
            runs[f"{name} {value:g}"] = base.but(**preset("spat", **options)).but(**changes)
    return runs | {
        f"main {name}-s{s}": main.but(**changes).but(seed=s)
        for name, changes in MAIN.items()
        for s in SEEDS
    }
