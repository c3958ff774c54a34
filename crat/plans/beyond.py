"""Runs of notebook 09: questions that none of the papers answers."""

from __future__ import annotations

from crat.config import RunConfig
from crat.plans.all_methods import all_methods_evidence
from crat.plans.cfa import GATED, NONE
from crat.plans.common import SEEDS, Runs, evidence, shown_live, sweep

# what a bias may cost on average, on validation; fitted on all seeds, the others on the first
TWO_POINTS = 0.02
DROPS = (0.005, 0.01, TWO_POINTS, 0.05)  # the points of its frontier
RADII = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # shares of the protocol's eps at which AT+EMA is attacked
FEW = 5000  # test images of that

# a worst-class number is also made of these: what is averaged, and whether a gate chooses the
# epochs that are
AVERAGED = {"AT, plain": NONE, "AT, FAWA": GATED}


def beyond(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 09: AT, live; then the methods of notebook 06, and AT's averages at the sweeps'
    length.
    """
    return {"live": live(seed)} | beyond_evidence(evidence(profile_name))


def live(seed: int) -> RunConfig:
    """AT, trained in the notebook, small in every profile: it only shows the idea, and its
    weights are needed.
    """
    return shown_live("quick").but(defense="pgd_at", seed=seed)


def beyond_evidence(profile_name: str) -> Runs:
    """Keys of notebook 06, "AT+EMA-s0" ..., and "short AT+EMA-s0", "short AT, plain-s0", "short
    AT, FAWA-s0".
    """
    runs = all_methods_evidence(profile_name)
    base = sweep(profile_name)
    for s in SEEDS:
        runs[f"short AT+EMA-s{s}"] = base.but(seed=s)
        runs |= {
            f"short {name}-s{s}": base.but(**changes).but(seed=s)
            for name, changes in AVERAGED.items()
        }
    return runs
