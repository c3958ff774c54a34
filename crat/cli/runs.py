"""`crat runs`: the list of trained and published runs; the search for one by its name."""

from __future__ import annotations

import contextlib
from argparse import ArgumentParser, Namespace
from pathlib import Path

from crat import store
from crat.names import ConfigError, did_you_mean
from crat.store import Store
from crat.text import aligned, percent
from crat.training.run import Run, card_config


def add_to(parser: ArgumentParser) -> None:
    """Adds no flags, as the command has none."""
    parser.set_defaults(command=run)


def run(a: Namespace) -> None:
    """Prints all runs with their epochs and best accuracy."""
    rows = [_row(folder) for folder in run_folders(Store.usual())]
    print(f"trained here: {store.home()}")
    header = ("run", "epochs", "best, valid average", "where")
    print(aligned(header, rows) if rows else "no runs yet: crat train")


def _row(folder: Path) -> tuple[str, str, str, str]:
    where = "here" if folder.parent == store.home() else "results/"
    try:
        card = store.read_json(_card(folder))
        epochs = f"{card['epochs_done']} of {card['config']['train']['epochs']}"
        best = f"{card['best']['epoch']}: {percent(card['best']['average'])} %"
    except (store.StoreError, KeyError, TypeError):
        return folder.name, "damaged", "-", where
    return folder.name, epochs, best, where


def _card(folder: Path) -> Path:
    """The card of a run, checked where it is published."""
    published = None
    if store.published_home() in folder.parents:
        published = store.published_file(folder, "card.json")
    return published or folder / "card.json"


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
