"""Text for people: tables in a terminal, paths, dates."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

WIDEST = 78  # characters of a column, unless its table says otherwise


def aligned(
    header: Sequence[str], rows: Iterable[Sequence[object]], widest: Sequence[int] = ()
) -> str:
    """A table with columns two spaces apart, its cells wrapped at `widest`, else at WIDEST."""
    table = [[str(cell) for cell in row] for row in (header, *rows)]
    limits = [*widest, *[WIDEST] * (len(header) - len(widest))]
    widths = []
    for column, limit in zip(zip(*table, strict=True), limits, strict=True):
        widths.append(min(max(map(len, column)), limit))
    lines = []
    for row in table:
        cells = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            padded = [part.ljust(width) for part, width in zip(parts, widths, strict=True)]
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def shown(path: Path) -> str:
    """A path as a user types it: relative to the working directory where it lies below that."""
    path = path.absolute()
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def dated(path: Path) -> str:
    """The day and minute of a file's last change: "26 November 14:02"."""
    when = time.localtime(path.stat().st_mtime)
    return f"{when.tm_mday} {time.strftime('%B %H:%M', when)}"


def percent(fraction: float) -> str:
    """A fraction in percent: 0.4567 is "45.7"."""
    return f"{100 * fraction:.1f}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type where it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
