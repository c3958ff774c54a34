"""Runs of notebook 08: adversarial training on a long tail."""

from __future__ import annotations

from typing import Any

from crat.config import RunConfig
from crat.defenses import preset
from crat.plans.common import EMA, SEEDS, SMALL, Runs, evidence, sweep

# images of the largest class over those of the smallest; the authors' code writes it as 0.02
RATIO = 50.0
BALANCED = 196  # images a class that hold as many in all as the tail of 700, 453 ... 14
# live: the largest class as in evidence
TAIL: dict[str, Any] = {"train_per_class": 700, "epochs": 4, "dtype": "auto"}
COMPARED: dict[str, dict[str, Any]] = {
    "AT": preset("pgd_at"),
    "TRADES": preset("trades"),
    "AT-BSL": preset("at_bsl"),
    "RoBal": preset("robal"),
    "REAT": preset("reat"),
}


def tailed(profile_name: str) -> RunConfig:
    """The sweeps' base on a long tail: a quarter of the images, so more and smaller steps on
    them.
    """
    base = sweep(profile_name).but(imbalance_ratio=RATIO)
    return base if profile_name == "paper" else base.but(epochs=15, batch_size=64)


def long_tail(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 08: AT on a long tail, live; then the methods made for it beside AT and TRADES."""
    return {"live": live(profile_name, seed)} | long_tail_evidence(evidence(profile_name))


def live(profile_name: str, seed: int) -> RunConfig:
    """AT-BSL on the tail, trained in the notebook: the evidence's images, a smaller net, fewer
    epochs, no average.
    """
    base = (
        tailed(evidence(profile_name)).but(**preset("at_bsl") | {"average": "none"}).but(seed=seed)
    )
    return base if profile_name == "paper" else base.but(**SMALL | TAIL)


def long_tail_evidence(profile_name: str) -> Runs:
    """Keys "AT-s0" ... "REAT-s0"; "balanced AT-s0": as many images in all, as many of each
    class.
    """
    base = tailed(profile_name)
    runs = {
        f"{name}-s{s}": base.but(**changes | EMA).but(seed=s)
        for name, changes in COMPARED.items()
        for s in SEEDS
    }
    # the tail's images spread evenly: what is lost by their number, what by the tail
    if profile_name != "paper":
        even = base.but(imbalance_ratio=1.0, train_per_class=BALANCED, **EMA)
        runs |= {f"balanced AT-s{s}": even.but(seed=s) for s in SEEDS}
    return runs
