"""The flags of `crat train`, one for each field of the config; and the flags of a config."""

from __future__ import annotations

import argparse
import ast
import shlex
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import Field, fields, replace
from typing import Any

from crat import config as c
from crat.cli.parsing import positive
from crat.cli.recipes import recipe
from crat.config import PROFILES, ConfigError, RunConfig, profile

KNOWN = {
    "data": c.DATASETS,
    "model": c.MODELS,
    "head": c.HEADS,
    "schedule": c.SCHEDULES,
    "average": c.AVERAGES,
    "defense": ("one that crat methods lists", "file.py:Class"),
    "split": ("stratified", "first"),
    "padding": ("reflect", "zero"),
    "augment": c.AUGMENTATIONS,
    "batch_norm": c.BATCH_NORMS,
    "dtype": c.DTYPES,
    "start_from": ("a run that crat runs lists", "a file: .pth, .pt, .safetensors"),
    "teacher": ("a run that crat runs lists", "a file: .pth, .pt, .safetensors"),
}
METAVARS = {str: "TEXT", float: "X", int: "N"}
WORDS = {"true": True, "false": False, "none": None}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each field of the config; its help shows the values of the profiles."""
    for part, setting, name in settings():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=_help(part, setting, name),
            **_kind(setting),
        )


def settings() -> Iterator[tuple[str, Field, str]]:
    """The part of the config, the field, and its name in `RunConfig.but`, for each setting."""
    for part in ("data", "model", "train"):
        for setting in fields(getattr(RunConfig(), part)):
            yield part, setting, part if setting.name == "name" else setting.name


def _help(part: str, setting: Field, name: str) -> str:
    """The help of a setting: its known values, and its value in each profile."""
    values = []
    for profile_name in PROFILES:
        value = getattr(getattr(profile(profile_name), part), setting.name)
        values.append(str(value).replace("None", "its own") or "none")
    if len(set(values)) == 1:
        text = values[0]
    else:
        text = ", ".join(map(" ".join, zip(PROFILES, values, strict=True)))
    return f"{' | '.join(KNOWN[name])}: {text}" if name in KNOWN else text


def _kind(setting: Field) -> dict[str, Any]:
    """The arguments of `add_argument` that make a field's value of a text; "8/255" stays a text."""
    annotation = str(setting.type)
    if annotation == "Options":
        return {"type": option, "nargs": "*", "metavar": "NAME=VALUE"}
    if annotation.startswith("tuple"):
        return {"type": int, "nargs": "*", "metavar": "LABEL"}
    kind: type = int
    if "str" in annotation:
        kind = str
    elif "float" in annotation:
        kind = float
    return {"type": kind, "metavar": METAVARS[kind]}


def option(text: str) -> tuple[str, Any]:
    """The name and value of a method's setting such as "lambda_1=0.5"."""
    name, _, value = text.partition("=")
    try:
        return name, WORDS[value] if value in WORDS else ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def data_named(
    name: str, size: int | None, eps: str | None = None, streamed: bool | None = None
) -> str:
    """The name of the data set that --data means; the rest is for images of one's own.

    Raises ConfigError where --size or --stream is given to another data set.
    """
    if not c.is_path(name):
        try:
            known = c.dataset_named(name)
        except ConfigError as error:
            raise ConfigError(f"{error}; nor is there a folder {name}") from None
        if size or streamed:
            raise ConfigError(f"--size and --stream are for a folder's images, not for {name}")
        return known
    from crat.data import own

    return own.register(name, size=size, eps=eps, streamed=streamed)


def add_own_images(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of images of one's own."""
    add = parser.add_argument
    add("--size", type=positive, metavar="N", help="scale the images of a folder to N x N pixels")
    add(
        "--stream",
        action="store_true",
        default=None,
        help="decode the images of a folder when they are needed (default: where they would take "
        "more than 4 GB)",
    )


def words_for(config: RunConfig) -> str:
    """The flags with which `crat train` trains the run of a config.

    They are the settings that differ from the profile and the method's preset.
    """
    from crat.training.run import Run

    chosen: dict[str, Any] = {"defense": config.train.defense}
    # the first turn makes the method's preset known, the second undoes what differs from it
    for _ in range(2):
        asked = Namespace(profile="quick", recipe=None, preset=None, **chosen)
        made = Run.of(asked_for(asked)).config
        for part, setting, name in settings():
            value = getattr(getattr(config, part), setting.name)
            if value != getattr(getattr(made, part), setting.name):
                chosen[name] = value
    words = (f"--{name.replace('_', '-')} {_typed(value)}" for name, value in chosen.items())
    return " ".join(map(str.rstrip, words))


def _typed(value: Any) -> str:
    """A setting as a user types it after its flag."""
    if not isinstance(value, tuple):
        return str(value)
    words = ("=".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return " ".join(map(shlex.quote, words))


def asked_for(a: Namespace) -> RunConfig:
    """The config of the flags: profile or recipe, then preset, then single settings."""
    names = {name for _, _, name in settings()} | {"beta"}
    given = {name: value for name, value in vars(a).items() if name in names}
    config = recipe(a.recipe) if a.recipe else profile(a.profile)
    if "data" in given:
        given["data"] = data_named(
            given["data"], getattr(a, "size", None), given.get("eps"), getattr(a, "stream", None)
        )
        if c.OWN.fullmatch(given["data"]):  # split by their number, not by the profile's
            config = replace(config, data=c.images_of(given["data"]))
    if a.preset or "defense" in given:
        config = _with_preset(config, a.preset or "crat", given)
    elif "options" in given:  # beside those of a recipe
        given["options"] = dict(config.train.options) | dict(given["options"])
    return config.but(**given)


def _with_preset(config: RunConfig, name: str, given: dict[str, Any]) -> RunConfig:
    """The config with a method's preset; removes its settings from `given`."""
    from crat.defenses import known_name, preset

    defense = known_name(given.get("defense", config.train.defense))
    given["defense"] = defense
    options = dict(given.pop("options", ()))
    return config.but(**preset(defense, name, **options))
