"""Runs of notebook 09: questions that none of the papers answers."""

from __future__ import annotations

from crat.config import RunConfig, profile
from crat.plans.all_methods import all_methods_evidence
from crat.plans.cfa import GATED, NONE
from crat.plans.common import SEEDS, Runs, at_and_trades, evidence, sweep

# a worst-class number is also made of these: what is averaged, and whether a gate chooses the epochs that are
AVERAGED = {"AT, plain": NONE, "AT, FAWA": GATED}


def beyond(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 09: AT, live; then the methods of notebook 06, and AT's averages on all seeds of the sweeps."""
    return {"live": live(profile_name, seed)} | beyond_evidence(evidence(profile_name))


def live(profile_name: str, seed: int) -> RunConfig:
    """AT, trained in the notebook."""
    return profile(profile_name).but(defense="pgd_at", seed=seed)


def beyond_evidence(profile_name: str) -> Runs:
    """Keys of notebook 06, "AT+EMA-s0" ..., and "short AT+EMA-s0", "short AT, plain-s0", "short AT, FAWA-s0"."""
    runs = all_methods_evidence(profile_name)
    base = sweep(profile_name)
    short = {f"short AT+EMA-s{s}": run for s, run in enumerate(at_and_trades(profile_name).values()) if s in SEEDS}
    for name, changes in AVERAGED.items():
        short |= {f"short {name}-s{s}": base.but(**changes).but(seed=s) for s in SEEDS}
    return runs | short
