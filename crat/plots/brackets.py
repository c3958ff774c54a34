"""The bracket of each class: certified below, attacked above, the truth between."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from crat.plots.base import _percent
from crat.plots.marks import BLUE, GREY


def bracket_bars(table: pd.DataFrame, title: str = "") -> Figure:
    """A bar from the certified to the robust accuracy of each class, a panel for each radius.

    table: `crat.analysis.brackets.bracket` for one radius or several (column eps). Where both ends
    meet, the accuracy is known, and a dot marks it; a long bar says that nothing is.
    """
    radii = list(dict.fromkeys(table["eps"]))
    classes = list(dict.fromkeys(table["class"]))
    size = (1.2 + 1.9 * len(radii), 0.9 + 0.26 * len(classes))
    figure, axes = plt.subplots(1, len(radii), figsize=size, sharey=True, squeeze=False)
    for ax, eps in zip(axes[0], radii, strict=True):
        rows = table[table["eps"] == eps].set_index("class").reindex(classes)
        places = np.arange(len(classes))
        low = 100 * rows.certified_acc.to_numpy()
        high = 100 * rows.robust_acc.to_numpy()
        ax.hlines(places, 0, 100, color=GREY, linewidth=0.5, alpha=0.4)
        ax.hlines(places, low, high, color=BLUE, linewidth=5, alpha=0.45)
        ax.plot(low, places, ">", color=BLUE, markersize=5, label="certified (CROWN)")
        ax.plot(high, places, "<", color="black", markersize=5, label="AutoAttack")
        known = low == high
        ax.plot(low[known], places[known], "o", color="black", markersize=5, label="known")
        _percent(ax, "x", "robust accuracy (%)")
        ax.set_xlim(-4, 104)
        ax.set_title(f"ε = {eps:g}")
        ax.set_yticks(places, classes)
    axes[0, 0].invert_yaxis()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure
