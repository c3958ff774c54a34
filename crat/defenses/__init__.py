"""Training methods, one file a paper. A new one is a file and a line in DEFENSES."""

from __future__ import annotations

from collections.abc import Callable

from crat.attacks import PGD
from crat.config import ConfigError, TrainConfig, number
from crat.defenses.base import ClassStats, Defense
from crat.defenses.pgd_at import PGDAT
from crat.defenses.standard import Standard
from crat.defenses.trades import TRADES

__all__ = ["DEFENSES", "ClassStats", "Defense", "make_defense"]


def _pgd(config: TrainConfig, start: str, batch_norm: str) -> PGD:
    """The training attack; `batch_norm` is the method's own mode, unless the config names another."""
    if config.eps is None or config.step_size is None or config.steps is None:
        raise ConfigError("eps, step_size and steps are unset: use RunConfig.resolved() first")
    mode = batch_norm if config.batch_norm == "auto" else config.batch_norm
    return PGD(number(config.eps), number(config.step_size), config.steps, start=start, batch_norm=mode)


# name -> (config, number of classes) -> the method with its paper's attack
DEFENSES: dict[str, Callable[[TrainConfig, int], Defense]] = {
    "standard": lambda config, n_classes: Standard(),
    "pgd_at": lambda config, n_classes: PGDAT(_pgd(config, "uniform", "train")),
    "trades": lambda config, n_classes: TRADES(_pgd(config, "gaussian", "eval"), config.beta),
}


def make_defense(config: TrainConfig, n_classes: int) -> Defense:
    """The method that a resolved config names; raises ConfigError with the known names."""
    if config.defense not in DEFENSES:
        raise ConfigError(f"unknown defense {config.defense!r}; known: {', '.join(DEFENSES)}")
    return DEFENSES[config.defense](config, n_classes)
