"""Trained and published runs, and the search for one by its name."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from crat import store
from crat.config import DataConfig, RunConfig
from crat.defenses import method_named, preset
from crat.names import ConfigError, did_you_mean
from crat.store import Store
from crat.training.run import Run, card_config


def run_folders(where: Store) -> list[Path]:
    """The folders of all runs: the published ones, then those of a store."""
    published: list[Path] = []
    with contextlib.suppress(store.StoreError):  # an installed package ships none
        published = sorted(store.results_home().glob("*/*/card.json"))
    return [card.parent for card in [*published, *sorted(where.root.glob("*/card.json"))]]


def find_run(text: str, recompute: bool = False) -> Run:
    """The run of a folder, of a name, or of a part of one name.

    recompute: the run as it was trained again, with published results left aside. New outcomes of a
    published run go to the store, not to results/. Raises ConfigError where no run or more than one
    is meant.
    """
    where = Store.chosen(recompute)
    folder = Path(text)
    if not (folder / "card.json").exists():
        folder = _folder_named(text, where)
    config = card_config(store.read_json(folder / "card.json"), folder)
    published = store.published_home() in folder.resolve().parents
    place = where.root / folder.name if published else folder
    return Run(config, place, where.published_run(config.data.name, folder.name))


def _folder_named(text: str, where: Store) -> Path:
    by_name = {folder.name: folder for folder in run_folders(where)}
    if text in by_name:
        return by_name[text]
    names = [name for name in by_name if text in name]
    if len(names) > 1:
        raise ConfigError(f"{len(names)} runs have {text!r} in their name: crat runs lists them")
    if not names:
        raise ConfigError(f"no run {text!r}: crat runs lists them{did_you_mean(text, by_name)}")
    return by_name[names[0]]


def label(config: RunConfig) -> str:
    """A run's method in words: "cfa on trades", "pgd_at + ema_update, eps 4/255", "codat, rho 1.0".

    After the method stand the average of the weights and the settings that are not the method's
    usual ones; data set, network, length and seed are left out.
    """
    method = config.train.defense
    options = dict(config.train.options)
    base = options.pop("base", "")
    usual = RunConfig(config.data).but(**preset(method, **({"base": base} if base else {})))
    plain = usual.resolved().train
    words = f"{method} on {base}" if base else method
    if config.train.average != plain.average:
        words += " + ema" if config.train.average == "ema_update" else f" + {config.train.average}"
    known = dict(plain.options) | method_named(method).options()
    changed = [f"{name} {value}" for name, value in options.items() if value != known.get(name)]
    settings = ("eps", "steps", "awp", "average_decay", "start_from", "teacher")
    pairs: list[tuple[Any, Any, tuple[str, ...]]] = [(config.train, plain, settings)]
    pairs += [(config.model, usual.model, ("scale",))]
    pairs += [(config.data, DataConfig(), ("drop_classes", "imbalance_ratio"))]
    for part, expected, names in pairs:
        for name in names:
            value = getattr(part, name)
            if value is not None and value != getattr(expected, name):
                changed.append(f"{name} {value}")
    return ", ".join([words, *changed])
