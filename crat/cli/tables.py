"""The flags --csv and --latex of commands that print a table, and the files that they ask for."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from crat.cli.parsing import new_file
from crat.text import Bold, aligned, booktabs, percent, shown

if TYPE_CHECKING:
    import pandas as pd

    from crat.outcomes.cache import Outcomes
    from crat.outcomes.sampled import Sampled

# the columns of a table of methods, and those of its functionals that are compared
METHODS_HEADER = ("method", "seeds", "clean", "average", "difference", "worst class", "difference")
COMPARED = ("average", "worst")


def add_tables(parser: ArgumentParser, table: str = "the table of classes") -> None:
    """Adds the flags.

    table: its name in the help.
    """
    add = parser.add_argument
    add("--csv", metavar="FILE", type=new_file, help=f"{table}, as fractions")
    add(
        "--latex",
        metavar="FILE",
        type=new_file,
        help=f"{table} for a paper (booktabs), in percent",
    )


def write_tables(a: Namespace, table: pd.DataFrame, latex: str) -> None:
    """Writes the files that were asked for, and prints their paths.

    latex: the table for a paper.
    Raises StoreError where a file cannot be written.
    """
    from crat import store

    if a.csv:
        with store.written_whole(a.csv) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
        tell_of(a.csv)
    if a.latex:
        store.write_text(a.latex, latex)
        tell_of(a.latex)


def write_class_tables(
    a: Namespace, found: Outcomes, caption: str, sampled: Sampled | None = None
) -> None:
    """Writes the class-wise table of a network as `write_tables` does.

    caption: what was judged. sampled: AutoAttack on a sample, whose estimates are a column.
    """
    from crat.outcomes.tables import class_latex, class_summary

    if a.csv or a.latex:
        write_tables(a, class_summary(found, sampled), class_latex(found, caption, sampled))


def show_methods(a: Namespace, table: pd.DataFrame, what: str, base: str) -> None:
    """Prints a table of methods beside a base, and writes the files that were asked for.

    what: the images and the attack, for the caption.
    """
    cells = method_cells(table)
    print(aligned(METHODS_HEADER, cells))
    caption = f"{what}: percent, mean over seeds ± sd; differences to {base} with 95 % intervals"
    write_tables(a, table, booktabs(METHODS_HEADER, [cells], caption))


def method_cells(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """The rows of METHODS_HEADER, in percent; the best average and worst class are bold."""
    best = {f: table[f].idxmax() for f in COMPARED}
    rows = []
    for i, row in table.iterrows():
        cells = [str(row["method"]), str(row["seeds"]), _mean_sd(row, "clean")]
        for f in COMPARED:
            mean = _mean_sd(row, f)
            cells += [Bold(mean) if best[f] == i else mean, _difference(row, f)]
        rows.append(tuple(cells))
    return rows


def _mean_sd(row: pd.Series, name: str) -> str:
    sd = row[f"{name}_sd"]
    return percent(row[name]) + ("" if sd != sd else f" ± {percent(sd)}")  # nan: one seed


def _difference(row: pd.Series, f: str) -> str:
    value = row[f"{f}_difference"]
    if value != value:  # nan: the base itself
        return "-"
    ends = f"{percent(row[f'{f}_low'])}, {percent(row[f'{f}_high'])}"
    return f"{100 * value:+.1f} [{ends}]"


def tell_of(path: Path) -> None:
    """Prints the path of a file or folder that was written."""
    print(f"\n{shown(path)}")
