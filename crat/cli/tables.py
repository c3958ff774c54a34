"""The flags --csv and --latex of commands that judge a model class by class."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from crat.text import shown

if TYPE_CHECKING:
    from crat.outcomes.cache import Outcomes


def add_tables(parser: ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("--csv", metavar="FILE", help="the table of classes, as fractions")
    parser.add_argument(
        "--latex", metavar="FILE", help="the table of classes for a paper (booktabs), in percent"
    )


def write_tables(a: Namespace, found: Outcomes, caption: str) -> None:
    """Writes the files that were asked for, and prints their paths."""
    from crat.audit import class_latex, class_summary

    if a.csv:
        class_summary(found).to_csv(a.csv, index=False, lineterminator="\n")
    if a.latex:
        text = class_latex(found, caption)
        Path(a.latex).write_text(text, encoding="utf-8", newline="\n")
    for written in filter(None, (a.csv, a.latex)):
        print(f"\n{shown(Path(written))}")
