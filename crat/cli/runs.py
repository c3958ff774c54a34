"""`crat runs`: the list of trained and published runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from crat import store
from crat.store import Store
from crat.text import aligned, percent
from crat.training.named import label, run_folders
from crat.training.run import WEIGHTS, card_config


def add_to(parser: ArgumentParser) -> None:
    """Adds the filter."""
    parser.set_defaults(command=run)
    parser.add_argument(
        "words",
        nargs="*",
        help="only runs with all of these in their name, data set, method or settings, such as "
        'fashion_mnist "cfa on trades"',
    )


def run(a: Namespace) -> None:
    """Prints all runs with their settings, epochs and best accuracy."""
    rows = [_row(folder) for folder in run_folders(Store.usual())]
    chosen = [row for row in rows if all(word.lower() in " ".join(row).lower() for word in a.words)]
    print(f"trained here: {store.home()}")
    header = ("run", "method and settings", "epochs", "best, valid average", "where")
    if chosen:
        print(aligned(header, chosen))
    elif rows:
        print(f"no run of {len(rows)} has {' and '.join(a.words)}")
    else:
        print("no runs yet: crat train")


def _row(folder: Path) -> tuple[str, str, str, str, str]:
    where = "here" if folder.parent == store.home() else "results/"
    if where != "here" and (folder / WEIGHTS).exists():
        where = "results/, its network too"
    try:
        card = store.read_json(_card(folder))
        settings = label(card_config(card, folder))
        epochs = f"{card['epochs_done']} of {card['config']['train']['epochs']}"
        best = f"{card['best']['epoch']}: {percent(card['best']['average'])} %"
    except (store.StoreError, KeyError, TypeError, ValueError):
        return folder.name, "damaged", "-", "-", where
    return folder.name, settings, epochs, best, where


def _card(folder: Path) -> Path:
    """The card of a run, checked where it is published."""
    published = None
    if store.published_home() in folder.parents:
        published = store.published_file(folder, "card.json")
    return published or folder / "card.json"
