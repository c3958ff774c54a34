"""Training methods, one file a paper. A new one is a file and a line in DEFENSES."""

from __future__ import annotations

from dataclasses import Field, fields
from math import inf
from typing import Any

import torch

from crat.attacks.gradient import PGD
from crat.config import ConfigError, RunConfig, TrainConfig, number
from crat.defenses import foreign
from crat.defenses.absld import ABSLD
from crat.defenses.alp import ALP
from crat.defenses.at_bsl import ATBSL
from crat.defenses.base import METHODS, Defense, Row, Task, Words, checked
from crat.defenses.bat import BAT
from crat.defenses.cfa import CFA
from crat.defenses.cfol import CFOL
from crat.defenses.codat import CODAT
from crat.defenses.csr import CSR
from crat.defenses.dafa import DAFA
from crat.defenses.faal import FAAL
from crat.defenses.fair_ard import FairARD
from crat.defenses.fair_tat import FairTAT
from crat.defenses.fat import FAT
from crat.defenses.fgsm import FGSM, FGSMPGI, FGSMRS, NFGSM, GradAlign
from crat.defenses.free_at import FreeAT
from crat.defenses.frl import FRL
from crat.defenses.ham import HAM
from crat.defenses.he import HE
from crat.defenses.label_augmentation import LabelAugmentation, LabelSmoothing
from crat.defenses.mart import MART
from crat.defenses.pgd_at import PGDAT
from crat.defenses.reat import REAT
from crat.defenses.robal import RoBal
from crat.defenses.self_distillation import SelfDistillation
from crat.defenses.spat import SPAT
from crat.defenses.standard import Standard
from crat.defenses.stats import ClassStats
from crat.defenses.tian2021 import Tian2021
from crat.defenses.trades import TRADES
from crat.defenses.universal_at import UniversalAT
from crat.defenses.wat import WAT
from crat.names import did_you_mean, one_of

__all__ = [
    "DEFENSES",
    "PRESETS",
    "ClassStats",
    "Defense",
    "Row",
    "Task",
    "base",
    "fit_bias",
    "fit_norms",
    "known_name",
    "make_defense",
    "method_named",
    "preset",
    "stats",
    "tables",
]


class _Methods(dict[str, type[Defense]]):
    """The methods by name; one of the user's is looked up among those registered before."""

    def __missing__(self, name: str) -> type[Defense]:
        method = foreign.recall(name)
        if method is None:
            raise KeyError(name)
        self[name] = method
        return method

    def __contains__(self, name: object) -> bool:
        known = super().__contains__(name)
        return known or (isinstance(name, str) and foreign.recall(name) is not None)


DEFENSES: dict[str, type[Defense]] = _Methods()
DEFENSES |= {
    "standard": Standard,
    "pgd_at": PGDAT,
    "trades": TRADES,
    "fat": FAT,
    "cfa": CFA,
    "spat": SPAT,
    "label_augmentation": LabelAugmentation,
    "label_smoothing": LabelSmoothing,
    "tian2021": Tian2021,
    "mart": MART,
    "alp": ALP,
    "he": HE,
    "frl": FRL,
    "wat": WAT,
    "bat": BAT,
    "cfol": CFOL,
    "dafa": DAFA,
    "faal": FAAL,
    "codat": CODAT,
    "universal_at": UniversalAT,
    "robal": RoBal,
    "reat": REAT,
    "at_bsl": ATBSL,
    "csr": CSR,
    "fair_tat": FairTAT,
    "ham": HAM,
    "absld": ABSLD,
    "fair_ard": FairARD,
    "self_distillation": SelfDistillation,
    "fgsm": FGSM,
    "fgsm_rs": FGSMRS,
    "n_fgsm": NFGSM,
    "grad_align": GradAlign,
    "fgsm_pgi": FGSMPGI,
    "free_at": FreeAT,
}
# the bases of policies stay crat's own, whatever a user puts into DEFENSES under their names
METHODS.update(DEFENSES)
PRESETS = ("paper", "released", "crat")


def make_defense(config: TrainConfig, task: Task | int) -> Defense:
    """The method that a resolved config names, ready to train on a task.

    task: a number stands for so many classes, equally large.

    Raises ConfigError, one line with the known names, on an unknown method or setting.
    """
    method = method_named(config.defense)
    if config.eps is None or config.step_size is None or config.steps is None:
        raise ConfigError("eps, step_size and steps are unset: use RunConfig.resolved() first")
    own, given = method.options(), dict(config.options)
    if stray := [name for name in given if name not in own]:
        known = ", ".join(own) or "no options"
        raise ConfigError(
            f"{config.defense} has no option {stray[0]!r}; it has: "
            f"{known}{did_you_mean(stray[0], own)}"
        )
    given = {
        f.name: _typed(config.defense, f, given[f.name]) for f in fields(method) if f.name in given
    }
    start, mode = method.crafting(**given)
    mode = mode if config.batch_norm == "auto" else config.batch_norm
    attack = PGD(
        number(config.eps), number(config.step_size), config.steps, start=start, batch_norm=mode
    )
    if "beta" in given:
        checked(
            f"beta of {config.defense}",
            given["beta"],
            lambda b: 0 <= b < inf,
            "at least 0 and finite",
        )
    defense = method(attack, **given)
    if config.awp and given.get("overwrites"):
        raise ConfigError(
            "overwrites and awp both move the weights of the head in one step: choose one"
        )
    defense.prepare(Task(torch.ones(task)) if isinstance(task, int) else task)
    return defense


def preset(defense: str, which: str = "crat", **chosen: Any) -> dict[str, Any]:
    """A method's settings by its paper, its released code or crat: `RunConfig.but(**preset(...))`.

    "crat" holds what a method needs beyond the profile, such as CFA's gated average.
    chosen: options that decide between variants, such as base="trades" of CFA; they stay as they
        are given.
    """
    defense, which = known_name(defense), one_of("preset", which, PRESETS)
    method = method_named(defense)
    said = {
        row.name: value
        for row in method.table(**chosen)
        if (value := getattr(row, which)) is not None
    }
    said = {name: value for name, value in said.items() if not isinstance(value, Words)}
    own = method.options()
    config = RunConfig()
    of_the_run = {
        f.name for part in (config.data, config.model, config.train) for f in fields(part)
    } - {"name"}
    of_the_run |= {"data", "model"}
    options = {name: value for name, value in said.items() if name in own}
    changes = {
        name: value for name, value in said.items() if name in of_the_run and name not in own
    }
    return {"defense": defense, **changes, "options": options | chosen}


def _typed(defense: str, field: Field, value: Any) -> Any:
    """An option's value in the type of its annotation: "no" becomes False, and 1 the float 1.0."""
    kinds: dict[str, Any] = {
        "bool": bool,
        "int": int,
        "float": (int, float),
        "str": str,
        "None": type(None),
    }
    # a class, or text where annotations are postponed
    annotation = getattr(field.type, "__name__", str(field.type))
    for kind in annotation.split(" | "):
        of = kinds.get(kind, tuple)
        if isinstance(value, of) and (kind == "bool" or not isinstance(value, bool)):
            return float(value) if kind == "float" else value
    raise ConfigError(f"{field.name} of {defense} is of type {annotation}, not {value!r}")


def known_name(name: str) -> str:
    """The name of the method that is meant; "file.py:Class" is registered (crat.defenses.foreign).

    Raises ConfigError with the known names.
    """
    if foreign.is_file(name):
        name, method = foreign.register(name)
        DEFENSES[name] = method
    return one_of("defense", name, DEFENSES)


def method_named(name: str) -> type[Defense]:
    """The class of a method, which may be "file.py:Class"; raises as `known_name`."""
    return DEFENSES[known_name(name)]
