"""Text for people: tables for the terminal, and paths as one would type them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path


def aligned(
    header: Sequence[str], rows: Iterable[Sequence[str]], widest: Sequence[int] = ()
) -> str:
    """A table whose columns stand two spaces apart; cells are wrapped to `widest` (else to 78)."""
    table = [[str(cell) for cell in row] for row in (header, *rows)]
    limits = [*widest, *[78] * (len(header) - len(widest))]
    columns = zip(*table, strict=True)
    widths = [min(max(map(len, c)), limit) for c, limit in zip(columns, limits, strict=True)]
    lines = []
    for row in table:
        wrapped = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*wrapped, fillvalue=""):
            cells = [part.ljust(width) for part, width in zip(parts, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def shown(path: Path) -> str:
    """A path as a person would type it here: relative to the working directory, if it is inside."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
