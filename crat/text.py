"""Text for people: tables in a terminal and in a paper, paths, dates."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

WIDEST = 78  # characters of a column, unless its table says otherwise
ESCAPES = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "{": r"\{"}
ESCAPES |= {"}": r"\}", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
# in LaTeX's first font encoding these three print as other characters
ESCAPES |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
ESCAPES |= {"±": r"$\pm$"}


class Bold(str):
    """A cell that stands out: bold in a paper, with a star behind it in a terminal."""


def aligned(
    header: Sequence[str], rows: Iterable[Sequence[object]], widest: Sequence[int] = ()
) -> str:
    """A table with columns two spaces apart, its cells wrapped at `widest`, else at WIDEST."""
    table = [list(map(_starred, row)) for row in (header, *rows)]
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


def _starred(cell: object) -> str:
    return f"{cell}*" if isinstance(cell, Bold) else str(cell)


def booktabs(
    header: Sequence[str], groups: Sequence[Sequence[Sequence[object]]], caption: str = ""
) -> str:
    """A table environment for a paper, with the rules of LaTeX's package booktabs.

    groups: of rows, with a rule between two of them. The first column is set left, all others
        right. caption: text, without LaTeX.
    """
    lines = ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering"]
    if caption:
        lines.append(rf"\caption{{{escaped(caption)}}}")
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule"]
    lines.append(_latex_row(header))
    for rows in groups:
        lines += [r"\midrule", *map(_latex_row, rows)]
    lines.append(r"\bottomrule")
    lines += [r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[object]) -> str:
    row = " & ".join(map(_latex_cell, cells))
    # behind the end of a row or a rule, LaTeX would read these as an argument of it
    protected = "{}" if row.startswith(("[", "*")) else ""
    return protected + row + r" \\"


def _latex_cell(cell: object) -> str:
    text = re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped(str(cell)))  # a minus, not a hyphen
    return rf"\textbf{{{text}}}" if isinstance(cell, Bold) else text


def escaped(text: str) -> str:
    """A text, in one line, as LaTeX prints it."""
    return "".join(ESCAPES.get(character, character) for character in " ".join(text.split()))


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
