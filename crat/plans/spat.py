"""Runs of notebook 03 (Hou et al. 2023, SPAT)."""

from __future__ import annotations

from crat.config import RunConfig, profile
from crat.defenses import preset
from crat.plans.common import EMA, SEEDS, Runs, at_and_trades, evidence, sweep

# the two terms, each with what it replaces; all on the cosine head. "CE, KL" is TRADES on that head: the control
TERMS = {
    "CE + KL": {"form": "plain", "squares": False},
    "L_sp + KL": {"squares": False},
    "CE + L_hcp": {"form": "plain"},
    "L_sp + L_hcp": {},
    "L_sp alone": {"beta": 0.0},
}
REPEATED = ("CE + KL", "L_sp + L_hcp")  # trained on all seeds, the others on one
FORMS = ("detached", "clamped", "circle")  # of the self-paced weights, beside the released one
SWEPT = {"scale": (4.0, 16.0), "m": (0.0, 0.5), "n": (0.0, 1.0), "beta": (1.0, 12.0)}  # around 8, 0.2, 0.2, 6


def spat(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 03: a short live training, the methods of notebook 06 that it compares, ablation and sweeps."""
    return {"live": live(profile_name, seed)} | spat_evidence(evidence(profile_name))


def live(profile_name: str, seed: int) -> RunConfig:
    """SPAT, trained in the notebook."""
    return profile(profile_name).but(**preset("spat")).but(seed=seed)


def spat_evidence(profile_name: str) -> Runs:
    """Keys "AT-s0", "CE + KL-s0", "form detached", "scale 4" of the sweeps; "main SPAT-s0" of the profile."""
    base, main = sweep(profile_name), profile(profile_name)
    runs = at_and_trades(profile_name)
    for name, options in TERMS.items():
        for s in SEEDS if name in REPEATED else SEEDS[:1]:
            runs[f"{name}-s{s}"] = base.but(**preset("spat", **options)).but(seed=s)
    runs |= {f"form {form}": base.but(**preset("spat", form=form)) for form in FORMS}
    for name, values in SWEPT.items():
        for value in values:
            changes = {"scale": value} if name == "scale" else {}
            options = {} if name == "scale" else {name: value}
            runs[f"{name} {value:g}"] = base.but(**preset("spat", **options)).but(**changes)
    for name, method in {"AT": "pgd_at", "TRADES": "trades", "SPAT": "spat"}.items():
        runs |= {f"main {name}-s{s}": main.but(**preset(method) | EMA).but(seed=s) for s in SEEDS}
    return runs
