"""Figures of notebook 03 (SPAT): functions of one number, shares with intervals, who fools whom."""

from __future__ import annotations

from math import ceil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from crat.plots.base import panel_row
from crat.plots.marks import SERIES, SHAPES, colours

DASHES = ("-", "--", "-.", ":", (0, (1, 1)))  # tell apart lines that coincide


def function_lines(table: pd.DataFrame, xlabel: str, wide: int = 2) -> Figure:
    """Functions of one number, a panel for each value of `panel`, a line for each of `line`.

    table: columns panel, line, x, value.
    wide: panels in a row.
    """
    panels, lines = list(table.panel.unique()), list(table.line.unique())
    rows = ceil(len(panels) / wide)
    size = (3.9 * wide, 2.5 * rows)
    figure, axes = plt.subplots(rows, wide, figsize=size, squeeze=False)
    for ax, panel in zip(axes.flat, panels, strict=True):
        for i, line in enumerate(lines):
            part = table[(table.panel == panel) & (table.line == line)]
            if len(part):
                colour, dashes = SERIES[i % len(SERIES)], DASHES[i % len(DASHES)]
                ax.plot(part.x, part.value, color=colour, ls=dashes, label=line)
        ax.axhline(0, color="black", lw=0.6)
        ax.set(title=panel, xlabel=xlabel)
        ax.legend()
    return figure


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
    row_height = 0.16 + 0.14 * len(series)
    figure, axes = panel_row(len(panels), 3.4, 2, row_height * len(rows) + 1.2)
    for ax, panel in zip(axes, panels, strict=True):
        shown = table[table.panel == panel]
        for i, (name, colour) in enumerate(zip(series, colours(series), strict=True)):
            part = shown[shown.series == name]
            places = np.array([rows.index(row) + _below(shown, row, name) for row in part.row])
            if {"low", "high"} <= set(part):
                ax.hlines(places, 100 * part.low, 100 * part.high, color=colour, lw=1.2)
            style = {"s": 26, "color": colour, "marker": SHAPES[i % len(SHAPES)], "zorder": 3}
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
    present = list(shown[shown.row == row].series)
    return 0.5 * (present.index(name) - (len(present) - 1) / 2) / max(len(present) - 1, 1)


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
