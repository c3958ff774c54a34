"""Figures of notebook 03 (SPAT): functions of one number, shares with intervals, who fools whom."""

from __future__ import annotations

from math import ceil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from crat.plots.base import name_ends, panel_row
from crat.plots.marks import SERIES, SHAPES, colours, known, mark

DASHES = ("-", "--", "-.", ":", (0, (1, 1)))  # tell apart lines that coincide


def function_lines(table: pd.DataFrame, xlabel: str, wide: int = 2) -> Figure:
    """Functions of one number, a panel for each value of `panel`, a line for each of `line`.

    Each line is named at its right end. Lines that coincide there share a name, such as "released,
    clamped", and where they part, they are named at the left end as well.
    table: columns panel, line, x, value.
    wide: panels in a row.
    """
    panels, lines = list(table.panel.unique()), list(table.line.unique())
    rows = ceil(len(panels) / wide)
    size = (4.5 * wide, 2.6 * rows)
    figure, axes = plt.subplots(rows, wide, figsize=size, squeeze=False)
    of_panels = {}
    for ax, panel in zip(axes.flat, panels, strict=True):
        values = table[table.panel == panel].pivot(index="x", columns="line", values="value")
        of_panels[ax] = values = values[[line for line in lines if line in values]]
        for line in values:
            i = lines.index(line)
            style = {"color": SERIES[i % len(SERIES)], "ls": DASHES[i % len(DASHES)]}
            ax.plot(values.index, values[line], label=line, **style)
        ax.hlines(0, values.index[0], values.index[-1], color="black", lw=0.6)
        ax.set(title=panel, xlabel=xlabel)
        ax.margins(y=0.2)
        ax.locator_params(axis="x", nbins=5)
        if parted_left(values):
            # room for the names
            ax.set_xticks([x for x in ax.get_xticks() if values.index[0] <= x <= values.index[-1]])
            ax.set_xlim(left=values.index[0] - 0.9 * np.ptp(values.index))
    figure.draw_without_rendering()
    for ax, values in of_panels.items():
        for left, ends in ((False, same_at(values.iloc[-1])), (True, parted_left(values))):
            x = values.index[0 if left else -1]
            named = {_joint(same, values): (x, value, "black") for same, value in ends.items()}
            name_ends(ax, named, figure.dpi / 72, left)
    return figure


def same_at(values: pd.Series) -> dict[tuple[str, ...], float]:
    """The lines that have the same value, to a thousandth of the range: {their names: value}.

    values: of the lines at one place, by name. The smallest value stands first.
    """
    ordered = values.sort_values(kind="stable")
    next_group = ordered.diff() > 1e-3 * np.ptp(ordered.to_numpy())
    groups = [group for _, group in ordered.groupby(next_group.cumsum())]
    return {tuple(line for line in values.index if line in g.index): g.iloc[0] for g in groups}


def parted_left(values: pd.DataFrame) -> dict[tuple[str, ...], float]:
    """The lines that coincide with others at the right end and have parted from them at the left.

    values: a column for each line, the index x. As `same_at`, of the left end.
    """
    right = same_at(values.iloc[-1])
    shared = {line for same in right for line in same if len(same) > 1}
    left = same_at(values.iloc[0])
    return {same: at for same, at in left.items() if same not in right and shared & set(same)}


def _joint(same: tuple[str, ...], values: pd.DataFrame) -> str:
    """The name that lines share."""
    others = [line for line in values if line not in same]
    return f"all but {others[0]}" if len(others) == 1 < len(same) else ", ".join(same)


def share_dots(
    table: pd.DataFrame, xlabel: str, marked: float | None = None, title: str = ""
) -> Figure:
    """Dots of shares in percent, with 95 % whiskers where known.

    table: columns row, series, share, and where known low, high (fractions), panel. Rows stand from
        above in the table's order, the series of a row beneath each other; there is a panel for
        each value of panel.
    marked: a share at which a dotted line stands, such as chance.
    """
    table = table if "panel" in table else table.assign(panel=title)
    panels = list(table["panel"].unique())
    rows = list(table["row"].unique())
    series = list(table["series"].unique())
    of_methods = all(map(known, series))
    row_height = 0.16 + 0.12 * len(series)
    figure, axes = panel_row(len(panels), 3.4, 2, row_height * len(rows) + 1.2)
    for ax, panel in zip(axes, panels, strict=True):
        shown = table[table.panel == panel]
        for i, (name, colour) in enumerate(zip(series, colours(series), strict=True)):
            part = shown[shown.series == name]
            places = np.array([rows.index(row) + _below(shown, row, name) for row in part.row])
            if {"low", "high"} <= set(part):
                ax.hlines(places, 100 * part.low, 100 * part.high, color=colour, lw=1.2)
            shape = mark(name).shape if of_methods else SHAPES[i % len(SHAPES)]
            style = {"s": 26, "color": colour, "marker": shape, "zorder": 3}
            ax.scatter(100 * part.share, places, label=name, **style)
        if marked is not None:
            ax.axvline(100 * marked, color="black", lw=0.8, ls=":")
        ax.set(title=panel, xlabel=xlabel)
        ax.grid(axis="y", lw=0.3)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].invert_yaxis()
    if len(series) > 1:
        axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _below(shown: pd.DataFrame, row: str, name: str) -> float:
    """How far a series stands below its row's middle: the series of each row lie around it."""
    present = sorted(shown[shown.row == row].series, key=list(shown.series.unique()).index)
    return 0.6 / len(present) * (present.index(name) - (len(present) - 1) / 2)


def transfer_heat(table: pd.DataFrame, title: str = "") -> Figure:
    """Robust accuracy of each network under the examples crafted on each other one, in percent.

    table: columns crafted_on, judged, robust_acc (fractions).
    """
    order = list(table.judged.unique())
    wide = 100 * table.pivot(index="crafted_on", columns="judged", values="robust_acc")
    wide = wide.loc[order, order]
    figure, ax = plt.subplots(figsize=(0.85 * len(order) + 2, 0.5 * len(order) + 1.4))
    sns.heatmap(wide, ax=ax, annot=True, fmt=".1f", cmap="Blues", cbar=False, linewidths=0.5)
    ax.set(title=title, xlabel="judged", ylabel="crafted on")
    ax.tick_params(length=0, rotation=0)
    ax.set_xticks(ax.get_xticks(), order, rotation=25, ha="right", rotation_mode="anchor")
    return figure
