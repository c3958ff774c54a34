"""A table for a paper: LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Sequence

ESCAPES = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "{": r"\{"}
ESCAPES |= {"}": r"\}", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
ESCAPES |= {"±": r"$\pm$"}


def escaped(text: str) -> str:
    """A text as LaTeX prints it."""
    return "".join(ESCAPES.get(character, character) for character in text)


def booktabs(
    header: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], caption: str = ""
) -> str:
    """A table environment with booktabs' rules; a cell that ends with a star is bold.

    groups: of rows, with a rule between two of them. The first column is set left, all others
        right. caption: text, without LaTeX.
    """
    lines = [r"\begin{table}", r"\centering"]
    if caption:
        lines.append(rf"\caption{{{escaped(caption)}}}")
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule"]
    lines.append(_row(header))
    for rows in groups:
        lines += [r"\midrule", *map(_row, rows)]
    lines.append(r"\bottomrule")
    lines += [r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(_cell, cells)) + r" \\"


def _cell(text: str) -> str:
    if text.endswith("*"):
        return rf"\textbf{{{escaped(text[:-1])}}}"
    return escaped(text)
