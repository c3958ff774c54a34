"""Figures of a long tail: accuracy in the head, the medium and the tail of the training counts."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from crat.plots.base import panel_row
from crat.plots.marks import BLUE, GREY, SKY, mark

# of an image: right under attack, right when clean only, wrong; and the colour of the numbers
PARTS = ((BLUE, 1.0, "white"), (SKY, 0.45, "black"), (GREY, 0.4, "black"))


def group_points(table: pd.DataFrame, title: str = "", control: str = "") -> Figure:
    """Accuracy of each method in each group, a point each, with whiskers from low to high.

    table: columns method, group, accuracy, low, high (fractions). Groups stand in the order of the
        table, methods side by side within each. The weights of all are averaged, so the marks are
        filled.
    control: the method that is no point but a line across each group, with a band from low to high.
    """
    groups = list(table.group.unique())
    methods = [method for method in table.method.unique() if method != control]
    x = np.arange(len(groups))
    width = 0.7 / len(methods)
    figure, ax = plt.subplots(figsize=(1.35 * len(groups) + 2, 3.2))
    named: list[Any] = []
    for i, method in enumerate(methods):
        part = _in_percent(table, method, groups)
        below = (part.accuracy - part.low).clip(0)
        above = (part.high - part.accuracy).clip(0)
        places = x + (i - (len(methods) - 1) / 2) * width
        look = mark(f"{method}+EMA").line
        style = {"ls": "none", "label": method, **look}
        named.append(ax.errorbar(places, part.accuracy, [below, above], **style))
    if control:
        named.append(_across(ax, _in_percent(table, control, groups), control))
    for edge in x[1:] - 0.5:
        ax.axvline(edge, color="black", lw=0.4, ls=":")
    ax.set_xticks(x, groups)
    ax.set(title=title, ylabel="accuracy (%)", ylim=(0, 100), xlim=(-0.5, len(groups) - 0.5))
    ax.legend(handles=named, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _in_percent(table: pd.DataFrame, method: str, groups: list[str]) -> pd.DataFrame:
    """Accuracy, low and high of a method, a row for each group, in percent."""
    rows = table[table.method == method].set_index("group")
    return 100 * rows.loc[groups, ["accuracy", "low", "high"]]


def _across(ax: Axes, control: pd.DataFrame, name: str) -> Line2D:
    """A black line over the width of each group, in a grey band; returns one of them, named."""
    for place, row in enumerate(control.itertuples(index=False)):
        ends = (place - 0.42, place + 0.42)
        ax.fill_between(ends, row.low, row.high, color=GREY, alpha=0.3, lw=0, zorder=0)
        level = (row.accuracy, row.accuracy)
        (line,) = ax.plot(ends, level, color="black", lw=1.2, zorder=1, label=name)
    return line


def group_shares(table: pd.DataFrame, title: str = "") -> Figure:
    """Bars of 100 % for each method, a panel for each group; what is wrong when clean is grey.

    table: columns bar ("group: method"), part, share (fractions). The parts are those of an image:
        right under attack, right when clean only, wrong when clean.
    """
    of_bars = table.bar.str.partition(": ")
    groups, methods = list(of_bars[0].unique()), list(of_bars[2].unique())
    parts = list(table.part.unique())
    shares = 100 * table.set_index(["bar", "part"]).share
    figure, axes = panel_row(len(groups), 2.7, 1.2, 0.34 * len(methods) + 1.5)
    text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "small"}
    for ax, group in zip(axes, groups, strict=True):
        left = np.zeros(len(methods))
        for part, (colour, alpha, ink) in zip(parts, PARTS, strict=True):
            widths = np.array([shares[f"{group}: {method}", part] for method in methods])
            ax.barh(methods, widths, left=left, color=colour, alpha=alpha, label=part, height=0.75)
            for y, (start, share) in enumerate(zip(left, widths, strict=True)):
                if share >= 8:
                    ax.annotate(f"{share:.0f}", (start + share / 2, y), color=ink, **text)
            left += widths
        ax.set(title=group, xlim=(0, 100), xlabel="share of the images (%)")
    axes[0].invert_yaxis()
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(parts))
    figure.suptitle(title, fontsize="medium")
    return figure
