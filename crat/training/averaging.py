"""Averages of everything in a state_dict, BatchNorm's statistics included (as in CFA's code)."""

from __future__ import annotations

import math
from statistics import quantiles

import torch
from torch import Tensor, nn

from crat.config import TrainConfig

# Wei et al. 2023: one step an epoch, of 200, from epoch 50
CFA_DECAY = 0.85
CFA_EPOCHS = 200
CFA_START = 50


class EMA:
    """An exponential moving average: theta_bar <- decay theta_bar + (1 - decay) theta.

    The first update copies, as in CFA's code; integer buffers are always copied.
    The caller decides how often `update` runs: after each epoch (CFA; decay 0.85 in the paper, 0.88
    in its code) or after each optimizer step (decay near 0.999).
    warm_up: limits the decay of update t to (1 + t) / (10 + t), so that the first weights do not
    dominate a short run.
    Raises ValueError on a decay outside [0, 1).
    """

    def __init__(self, decay: float, *, warm_up: bool = False):
        if not 0 <= decay < 1:
            raise ValueError(f"decay of a moving average lies in [0, 1), not {decay!r}")
        self.decay = decay
        self.warm_up = warm_up
        self.updates = 0
        self.state: dict[str, Tensor] = {}

    def update(self, model: nn.Module) -> None:
        """Adds the model's present weights to the average; no host synchronisation."""
        self.begin(model)
        self.mix(model, torch.tensor(self.advance(), dtype=torch.float64))

    def begin(self, model: nn.Module) -> None:
        """Gives the average its tensors, if it has none yet."""
        if not self.state:
            self.state = {name: value.clone() for name, value in model.state_dict().items()}

    def advance(self) -> float:
        """Counts an update; returns the share of the new weights in it, 1 in the first."""
        self.updates += 1
        return 1.0 if self.updates == 1 else 1 - self.keep()

    @torch.no_grad()
    def mix(self, model: nn.Module, share: Tensor) -> None:
        """Moves the average, in its place, by `share` (a number on any device) to the weights."""
        new = model.state_dict()
        for name, average in self.state.items():
            if average.is_floating_point():
                average.lerp_(new[name], share.to(average))
            else:
                average.copy_(new[name])

    def keep(self) -> float:
        """The decay of the present update."""
        if not self.warm_up:
            return self.decay
        return min(self.decay, (1 + self.updates) / (10 + self.updates))


class SWA(EMA):
    """The plain mean of the weights at the ends of epochs, from `average_start` on.

    BatchNorm's statistics are not averaged: the trainer computes them anew from training images.
    Source: Izmailov et al. 2018.
    """

    def __init__(self) -> None:
        super().__init__(0.0)

    def keep(self) -> float:
        """The weight of the previous mean: (n - 1) / n at update n."""
        return (self.updates - 1) / self.updates


class Gate:
    """FAWA's filter: an epoch enters the average where its worst class is robust enough.

    threshold: the least robust validation accuracy of the worst class, the paper's delta (0.2; 0.24
    in the code's defaults). None: the median of the worst accuracies of all epochs so far, the
    present one included. A short schedule or harder data may never reach a fixed threshold, and the
    released code then returns a random initialisation.
    start: the number of first epochs that never enter.
    Source: Wei et al. 2023, Algorithm 1.
    """

    def __init__(self, threshold: float | None, start: int):
        self.threshold = threshold
        self.start = start
        self.minima: list[float] = []
        self.accepted: list[int] = []

    def opens(self, worst: float) -> bool:
        """Notes the epoch's worst accuracy; whether the epoch (counted from 1) is accepted."""
        self.minima.append(worst)
        needed = self.threshold if self.threshold is not None else _median(self.minima)
        if len(self.minima) <= self.start or worst < needed:
            return False
        self.accepted.append(len(self.minima))
        return True


def _median(values: list[float]) -> float:
    return quantiles(values, n=2)[0] if len(values) > 1 else values[0]


def make_average(config: TrainConfig) -> EMA | None:
    """The average that a config asks for, with the default decay of its kind; None for "none"."""
    if config.average == "none":
        return None
    if config.average == "swa":
        return SWA()
    default = 0.999 if config.average == "ema_update" else scaled_decay(config.epochs)
    decay = default if config.average_decay is None else config.average_decay
    return EMA(decay, warm_up=config.average == "ema_update")


def make_gate(config: TrainConfig) -> Gate | None:
    """The gate that decides which epochs enter the average of "swa" or "fawa"; else None.

    FAWA's starts after a quarter of the epochs, as in the paper. SWA's starts after half of them,
    and every later epoch enters.
    """
    if config.average not in ("swa", "fawa"):
        return None
    if config.average == "swa":
        default_start = 0.5
        threshold: float | None = 0.0
    else:
        default_start = CFA_START / CFA_EPOCHS
        threshold = config.fawa_threshold
    start = config.average_start
    if start is None:
        start = math.floor(default_start * config.epochs)
    return Gate(threshold, start)


def scaled_decay(epochs: int) -> float:
    """CFA's decay per epoch for a training shorter than its 200 epochs: 0.85^(200 / epochs)."""
    return CFA_DECAY ** max(1.0, CFA_EPOCHS / epochs)
