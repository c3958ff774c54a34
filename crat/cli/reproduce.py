"""`crat reproduce`: all notebooks, or some, with their runs."""

from __future__ import annotations

import signal
from argparse import ArgumentParser, Namespace
from pathlib import Path

from crat.cli.flags import add_own_images, data_named
from crat.config import DATASETS, PROFILES, Selection


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.set_defaults(command=run)
    _add_what(parser)
    _add_how(parser)


def _add_what(parser: ArgumentParser) -> None:
    """Adds the flags for notebooks and parameters."""
    add = parser.add_argument
    add("numbers", nargs="*", metavar="NN", help="which notebooks, such as 01 or 04 (default: all)")
    add(
        "--papers",
        nargs="+",
        default=[],
        metavar="PAPER",
        help="the same by name, such as spat or tian",
    )
    add("--profile", help=f"{' | '.join(PROFILES)} (default: the parameter file's, else quick)")
    known = " | ".join(DATASETS)
    add("--data", metavar="NAME|PATH", help=f"another data set for all runs: {known}, or yours")
    add_own_images(parser)
    add(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="of the runs that are repeated (default: 0 1 2 ... as the plan has it)",
    )
    add(
        "--defense",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="further methods of notebook 06, each by name or as file.py:Class (06 alone takes it)",
    )
    add(
        "--start-from",
        metavar="FILE",
        help="weights from which notebooks 01 and 05 (no others) train for ten epochs: with "
        "--profile paper --data imagenet torchvision's of a resnet50",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the notebooks",
    )
    add(
        "--parameters",
        type=Path,
        metavar="FILE",
        help="parameters in YAML, as papermill -f takes them",
    )


def _add_how(parser: ArgumentParser) -> None:
    """Adds the flags for the runs and the machines that train them."""
    add = parser.add_argument
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes here (default: one on each GPU, up to 4 where the networks are small; "
        "without a GPU up to 4)",
    )
    add("--dask", metavar="ADDRESS|FILE", help="train on the workers of this dask scheduler")
    add("--shard", metavar="I/N", help="only the I-th of N parts of the runs, and no notebook")
    add("--recompute", action="store_true", help="train everything again, published runs included")
    add("--dry-run", action="store_true", help="show the plan only: notebooks, runs, time")


def run(a: Namespace) -> int:
    """Runs the command; SIGTERM stops it as Ctrl-C does, and so does a closed window of Windows."""
    for name in ("SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    from crat.batch import reproduce
    from crat.store import Store
    from crat.training import keep_file

    start = keep_file(a.start_from, where=Store.chosen(a.recompute)) if a.start_from else ""
    data = data_named(a.data, a.size, streamed=a.stream) if a.data else ""
    selection = Selection(data, tuple(a.seeds or ()), tuple(a.defense), start)

    return reproduce.run(
        [*a.numbers, *a.papers],
        a.profile,
        a.set,
        selection=selection,
        parameters=a.parameters,
        workers=a.workers,
        dask=a.dask,
        shard=a.shard,
        recompute=a.recompute,
        dry_run=a.dry_run,
    )
