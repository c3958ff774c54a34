"""Training methods, one file a paper. A new one is a file and a line in METHODS."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from crat.attacks import PGD
from crat.config import ConfigError, RunConfig, TrainConfig, number
from crat.defenses.base import Defense, Row, Task, Words
from crat.defenses.cfa import CFA
from crat.defenses.fat import FAT
from crat.defenses.pgd_at import PGDAT
from crat.defenses.standard import Standard
from crat.defenses.stats import ClassStats
from crat.defenses.trades import TRADES

__all__ = ["DEFENSES", "PRESETS", "ClassStats", "Defense", "Row", "Task", "make_defense", "preset"]

DEFENSES: dict[str, type[Defense]] = {
    "standard": Standard,
    "pgd_at": PGDAT,
    "trades": TRADES,
    "fat": FAT,
    "cfa": CFA,
}
PRESETS = ("paper", "released", "crat")


def make_defense(config: TrainConfig, task: Task | int) -> Defense:
    """The method that a resolved config names, ready to train on a task (a number: so many classes, equally large).

    Raises ConfigError, one line with what is known, on an unknown method or setting.
    """
    method = _method(config.defense)
    if config.eps is None or config.step_size is None or config.steps is None:
        raise ConfigError("eps, step_size and steps are unset: use RunConfig.resolved() first")
    own, given = method.options(), dict(config.options)
    if stray := [name for name in given if name not in own]:
        known = ", ".join(own) or "no options"
        raise ConfigError(f"{config.defense} has no option {stray[0]!r}; it has: {known}")
    start, mode = method.crafting(**given)
    mode = mode if config.batch_norm == "auto" else config.batch_norm
    attack = PGD(number(config.eps), number(config.step_size), config.steps, start=start, batch_norm=mode)
    defense = method(attack, **({"beta": config.beta} if "beta" in own else {}) | given)
    defense.prepare(Task(torch.ones(task)) if isinstance(task, int) else task)
    return defense


def preset(defense: str, which: str = "crat", **chosen: Any) -> dict[str, Any]:
    """The settings of a method as its paper, its released code or we have them, for `RunConfig.but(**preset(...))`.

    "crat" holds what a method needs beyond the profile, such as CFA's gated average.
    chosen: options that decide between variants, such as base="trades" of CFA; they stay as they are given.
    """
    method = _method(defense)
    if which not in PRESETS:
        raise ConfigError(f"unknown preset {which!r}; known: {', '.join(PRESETS)}")
    said = {row.name: value for row in method.table(**chosen) if (value := getattr(row, which)) is not None}
    said = {name: value for name, value in said.items() if not isinstance(value, Words)}
    own = method.options()
    config = RunConfig()
    of_the_run = {f.name for part in (config.data, config.model, config.train) for f in fields(part)} - {"name"}
    of_the_run |= {"data", "model"}
    options = {name: value for name, value in said.items() if name in own and name not in of_the_run}
    changes = {name: value for name, value in said.items() if name in of_the_run}
    return {"defense": defense, **changes, "options": options | chosen}


def _method(name: str) -> type[Defense]:
    if name not in DEFENSES:
        raise ConfigError(f"unknown defense {name!r}; known: {', '.join(DEFENSES)}")
    return DEFENSES[name]
