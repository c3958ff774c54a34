"""Figures of a long tail: accuracy in the head, the medium and the tail of the training counts."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from crat.plots.marks import mark


def group_points(table: pd.DataFrame, title: str = "") -> Figure:
    """Accuracy of each method in each group, a point each, with whiskers from low to high.

    table: columns method, group, accuracy, low, high (fractions). Groups stand in the order of the
        table, methods side by side within each.
    """
    groups, methods = list(table.group.unique()), list(table.method.unique())
    x = np.arange(len(groups))
    width = 0.7 / len(methods)
    figure, ax = plt.subplots(figsize=(1.2 * len(groups) + 2, 3))
    for i, method in enumerate(methods):
        part = table[table.method == method].set_index("group")
        part = 100 * part.loc[groups, ["accuracy", "low", "high"]]
        below = (part.accuracy - part.low).clip(0)
        above = (part.high - part.accuracy).clip(0)
        places = x + (i - (len(methods) - 1) / 2) * width
        look = mark(str(method)).line
        ax.errorbar(places, part.accuracy, [below, above], ls="none", label=method, **look)
    for edge in x[1:] - 0.5:
        ax.axvline(edge, color="black", lw=0.4, ls=":")
    ax.set_xticks(x, groups)
    ax.set(title=title, ylabel="accuracy (%)", ylim=(0, 100))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
