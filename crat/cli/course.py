"""`crat course grade`: marks for what students handed in."""

from __future__ import annotations

import argparse
import signal
from argparse import ArgumentParser, Namespace
from pathlib import Path

from crat.cli.parsing import commands, new_file

GRADE = "run students' notebooks with the checks put back, and write their marks"
CAUTION = (
    "This is no sandbox: the students' code runs as you, and can read and write what you can. "
    "Mark in a container or as another user."
)


def add_to(parser: ArgumentParser) -> None:
    """Adds the subcommand."""
    add = commands(parser, "grade")
    grading = add("grade", help=GRADE, description=f"{GRADE}. {CAUTION}")
    grading.set_defaults(command=grade)
    flag = grading.add_argument
    flag(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="of the notebooks: NAME/EXERCISE.ipynb, NAME_EXERCISE.ipynb, or nbgrader's submitted/",
    )
    flag(
        "--out",
        type=new_file,
        default=Path("marks.csv"),
        metavar="FILE",
        help="the marks (default marks.csv); beside it marks.faults.csv says what failed",
    )
    flag("--seconds", type=above_zero, default=300.0, metavar="N", help="of a notebook (300)")
    flag("--memory", type=above_zero, default=4.0, metavar="GB", help="of a notebook (4)")
    flag(
        "--exercises",
        type=Path,
        metavar="FOLDER",
        help="exercises of yours, with nbgrader's metadata (default: notebooks/course)",
    )


def above_zero(text: str) -> float:
    """A number above 0, from a text."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"a number above 0, not {text!r}")
    return number


def grade(a: Namespace) -> None:
    """Marks the notebooks of a folder; SIGTERM stops it as Ctrl-C does, and nothing is left."""
    for name in ("SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    from crat.batch import grading

    limits = grading.Limits(a.seconds, a.memory)
    grading.grade(a.folder, a.out, limits, a.exercises or grading.COURSE)
