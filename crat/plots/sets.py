"""The classes of several data sets side by side: how far each falls under attack."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crat.plots.base import _percent
from crat.plots.marks import BLUE, GREY, RED

WIDE = 2  # panels in a row


def class_falls(table: pd.DataFrame) -> Figure:
    """A line from the clean to the robust accuracy of each class, a panel for each data set.

    table: columns panel, class, clean_acc, robust_acc, low, high (fractions); low and high are the
        95 % of robust_acc. A panel's classes stand from the most robust down to the worst, in red.
    """
    panels = list(table.panel.unique())
    rows = -(-len(panels) // WIDE)
    most = table.groupby("panel")["class"].count().max()
    size = (3.6 * WIDE, rows * (0.21 * most + 0.9))
    figure, axes = plt.subplots(rows, WIDE, figsize=size, squeeze=False)
    for ax, panel in zip(axes.flat, panels, strict=False):
        _fall(ax, table[table.panel == panel])
        ax.set_title(panel, fontsize="small")
    for empty in axes.flat[len(panels) :]:
        empty.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _fall(ax: Axes, part: pd.DataFrame) -> None:
    """One panel: an open dot where a class is when clean, a full one where it is under attack."""
    part = part.sort_values("robust_acc", ascending=False)
    places = np.arange(len(part))
    clean, robust = 100 * part.clean_acc.to_numpy(), 100 * part.robust_acc.to_numpy()
    ax.hlines(places, robust, clean, color=GREY, linewidth=1.5)
    ax.hlines(places, 100 * part.low, 100 * part.high, color="black", linewidth=0.8)
    ax.scatter(clean, places, facecolor="white", edgecolor=BLUE, zorder=3, label="clean")
    colours = [BLUE] * (len(part) - 1) + [RED]
    ax.scatter(robust, places, c=colours, zorder=3, label="under PGD")
    ax.set_yticks(places, part["class"])
    ax.invert_yaxis()
    _percent(ax, "x")
    ax.set_xlim(-3, 103)
