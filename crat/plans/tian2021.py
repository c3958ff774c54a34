"""Runs of notebook 01 (Tian et al. 2021)."""

from __future__ import annotations

from crat.config import RunConfig, profile
from crat.defenses import preset
from crat.plans.common import EMA, SEEDS, Runs, at_and_trades, evidence, sweep

METHODS = ("standard", "pgd_at", "trades")
# Class removal (Tian et al.): the top confuser of each of the two hardest classes, and a dissimilar class as control.
REMOVED: dict[str, tuple[int, ...]] = {"fashion_mnist_mini": (), "fashion_mnist": (0, 4, 9), "cifar10": (3, 5, 1)}
# the lift of the most vulnerable class in training, ours in two forms; the first on all seeds
LIFTS = ("weight", "temperature")


def tian2021(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 01: one live run of the profile, then the evidence.

    The quick profile decides nothing, so its figures are drawn from the laptop profile's published runs.
    """
    live = {"live": profile(profile_name).but(defense="pgd_at", seed=seed)}
    return live | tian2021_evidence(evidence(profile_name))


def tian2021_evidence(profile_name: str) -> Runs:
    """Keys "pgd_at-s0" ..., "without-3-s0": AT on all classes but number 3; of the sweeps "AT-s0", "lift weight-s0"."""
    base = profile(profile_name)
    runs = {f"{m}-s{s}": base.but(defense=m, seed=s) for m in METHODS for s in SEEDS}
    runs |= {f"without-{c}-s0": base.but(defense="pgd_at", drop_classes=(c,)) for c in REMOVED[base.data.name]}
    return runs | lifts(profile_name)


def lifts(profile_name: str) -> Runs:
    """AT+EMA of the sweeps and the same with a factor that grows for the weakest class."""
    runs = {key: run for key, run in at_and_trades(profile_name).items() if key.startswith("AT")}
    for form in LIFTS:
        for s in SEEDS if form == LIFTS[0] else SEEDS[:1]:
            runs[f"lift {form}-s{s}"] = sweep(profile_name).but(**preset("tian2021", form=form) | EMA).but(seed=s)
    return runs


def removed(config: RunConfig) -> tuple[int, ...]:
    """The classes that are left out in turn, of a run's data set."""
    return REMOVED[config.data.name]
