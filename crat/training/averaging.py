"""Weight averaging: of everything in state_dict, BatchNorm's statistics included (CFA's code
does the same).
"""

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
    """theta_bar <- decay theta_bar + (1 - decay) theta; the first update copies (CFA's code does
    the same).

    One class serves both habits, which differ in when `update` is called: once an epoch (CFA; decay
    0.85 in the paper, 0.88 in its code) or once an optimizer update (decay near 0.999). warm_up:
    the decay of update t is at most (1 + t) / (10 + t), so that a short run does not keep its first
    weights. Integer buffers are copied.
    """

    def __init__(self, decay: float, *, warm_up: bool = False):
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of a moving average lies in [0, 1), not {decay!r}")
        self.decay = decay
        self.warm_up = warm_up
        self.updates = 0
        self.state: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the model's present weights into the average; no host synchronisation."""
        new = model.state_dict()
        self.updates += 1
        if not self.state:
            self.state = {name: value.clone() for name, value in new.items()}
            return
        floating = [name for name, value in new.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.state[n] for n in floating], [new[n] for n in floating], 1 - self.keep()
        )
        for name in new.keys() - set(floating):
            self.state[name].copy_(new[name])

    def keep(self) -> float:
        """The decay of this update."""
        if not self.warm_up:
            return self.decay
        return min(self.decay, (1 + self.updates) / (10 + self.updates))


class SWA(EMA):
    """The plain mean of the weights at the ends of epochs (Izmailov et al. 2018), from
    `average_start` on.

    As in that paper BatchNorm's statistics are not averaged but taken anew from the training
    images, by the trainer.
    """

    def __init__(self) -> None:
        super().__init__(0.0)

    def keep(self) -> float:
        """(n - 1) / n."""
        return (self.updates - 1) / self.updates


class Gate:
    """FAWA's filter (Wei et al. 2023, Algorithm 1): an epoch enters the average where its worst
    class is good enough.

    threshold: the paper's delta (0.2; 0.24 in the code's defaults) on the worst class's robust
    accuracy on validation. None: the median of all epochs' minima so far, this one's included; in a
    short schedule, or on harder data, a fixed threshold may never be reached, and the released code
    then returns a random initialisation.
    """

    def __init__(self, threshold: float | None, start: int):
        self.threshold, self.start = threshold, start
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
    """The average that a config asks for, with its default decay; None for none."""
    if config.average == "none":
        return None
    if config.average == "swa":
        return SWA()
    default = 0.999 if config.average == "ema_update" else scaled_decay(config.epochs)
    decay = default if config.average_decay is None else config.average_decay
    return EMA(decay, warm_up=config.average == "ema_update")


def make_gate(config: TrainConfig) -> Gate | None:
    """FAWA's gate, from a quarter of the epochs on, as in the paper; for SWA one that time alone
    opens.
    """
    if config.average not in ("swa", "fawa"):
        return None
    swa = config.average == "swa"
    start = config.average_start
    if start is None:
        start = math.floor((0.5 if swa else CFA_START / CFA_EPOCHS) * config.epochs)
    return Gate(0.0 if swa else config.fawa_threshold, start)


def scaled_decay(epochs: int) -> float:
    """CFA's decay an epoch, 0.85 of 200, at the same share of a shorter training: 0.85^(200 /
    epochs).
    """
    return CFA_DECAY ** max(1.0, CFA_EPOCHS / epochs)
