"""`crat runs`: the list of trained and published runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from crat import store
from crat.store import Store
from crat.text import aligned, percent
from crat.training.named import run_folders
from crat.training.run import WEIGHTS


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
    if where != "here" and (folder / WEIGHTS).exists():
        where = "results/, its network too"
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
