"""The learning rate as a function of the update's number: no state to save or resume."""

from __future__ import annotations

import math

from crat.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of update `step`, counted from 0 over all epochs.

    piecewise: a tenth from 50 % of the epochs on, a hundredth from 75 % on (CFA).
    one_cycle: linearly up over the first 30 %, then linearly down to 0.
    cosine: half a cosine down to 0.
    constant: the config's lr.
    """
    progress = step / (config.epochs * steps_per_epoch)
    if config.schedule == "piecewise":
        epoch = step // steps_per_epoch
        if epoch < config.epochs * 0.5:
            return config.lr * 1.0
        if epoch < config.epochs * 0.75:
            return config.lr * 0.1
        return config.lr * 0.01
    if config.schedule == "one_cycle":
        rising = (step + 1) / (0.3 * config.epochs * steps_per_epoch)
        falling = (1 - progress) / 0.7
        return config.lr * min(rising, falling, 1.0)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr
