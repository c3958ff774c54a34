"""The learning rate of every update, as a function of its place: nothing to save, nothing to
resume.
"""

from __future__ import annotations

import math

from crat.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The rate of one update. piecewise: /10 at 50 % and 75 % of the epochs (CFA); one_cycle:
    linear up over the first 30 %, linear down to 0; cosine: half a cosine to 0; constant.
    """
    progress = step / (config.epochs * steps_per_epoch)
    if config.schedule == "piecewise":
        epoch = step // steps_per_epoch
        return config.lr * (
            1.0 if epoch < config.epochs * 0.5 else 0.1 if epoch < config.epochs * 0.75 else 0.01
        )
    if config.schedule == "one_cycle":
        return config.lr * min(
            (step + 1) / (0.3 * config.epochs * steps_per_epoch), (1 - progress) / 0.7, 1.0
        )
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr
