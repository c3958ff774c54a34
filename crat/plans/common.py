"""What the plans of several notebooks share: seeds, the average, where the evidence is, the base
of the sweeps.
"""

from __future__ import annotations

from typing import Any

from crat.config import DataConfig, RunConfig, TrainConfig, chosen_seeds, on_chosen_data, profile

Runs = dict[str, RunConfig]

SEEDS = chosen_seeds()  # 0, 1, 2, or those that `crat reproduce --seeds` names
EMA: dict[str, Any] = {"average": "ema_update"}


def evidence(profile_name: str) -> str:
    """The profile whose runs the figures are drawn from: quick decides nothing, so it shows the
    laptop's.
    """
    return "laptop" if profile_name == "quick" else profile_name


# Of what the quick profile trains live. Small batches: an update counts for more here than a calm
# gradient.
SMALL: dict[str, Any] = {
    "train_per_class": 200,
    "valid_per_class": 50,
    "width": 8,
    "batch_size": 32,
    "lr": 0.05,
}


def shown_live(profile_name: str) -> RunConfig:
    """The base of what a notebook trains while its reader waits: 15 s of one core in quick, else
    the profile's own.

    A slow laptop has twice that. The gap between the classes shows at this size already; nothing is
    decided by it.
    """
    base = profile(profile_name)
    return base.but(**SMALL) if profile_name == "quick" else base


def sweep(profile_name: str) -> RunConfig:
    """The base of ablations and sweeps, which take dozens of runs: AT+EMA on the shipped images,
    two minutes a run.

    The weights are averaged in all of them, unless averaging is what is studied: single epochs of
    so short a training jump by more than the settings move. The paper profile sweeps in the paper's
    own setting.
    """
    if profile_name == "paper":
        return profile("paper").but(**EMA)
    short = TrainConfig(epochs=6, eps_warmup=1, dtype="bfloat16", average="ema_update")
    return on_chosen_data(RunConfig(DataConfig("fashion_mnist_mini"), train=short))
