"""Figures of fast adversarial training: classes that fall, and accuracy against time."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from crat.plots.base import name_points, panel_row, widen
from crat.plots.marks import RED, mark


def falls(table: pd.DataFrame, fallen: pd.DataFrame, title: str = "") -> Figure:
    """Accuracy of each class (rows) by epoch (columns), a panel for each run, falls framed in red.

    table: columns panel, class, epoch, robust_acc (fractions); rows in the table's order, an
        "average" among them stands apart below a white line.
    fallen: columns panel, class, epoch of the fall; inf or nan where there is none.
    """
    panels = list(table.panel.unique())
    classes = list(table["class"].unique())
    figure, axes = panel_row(len(panels), 2.9, 1.6, 0.3 * len(classes) + 1.3)
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table.panel == panel]
        wide = 100 * part.pivot(index="class", columns="epoch", values="robust_acc").loc[classes]
        sns.heatmap(wide, ax=ax, vmin=0, vmax=100, cmap="Blues", cbar=ax is axes[-1])
        of_run = fallen[fallen.panel == panel].set_index("class").epoch
        for row, name in enumerate(classes):
            if np.isfinite(of_run[name]):
                column = list(wide.columns).index(of_run[name])
                frame = plt.Rectangle(
                    (column, row), 1, 1, fill=False, edgecolor=RED, lw=2, zorder=4
                )
                ax.add_patch(frame)
        if "average" in classes:
            ax.axhline(classes.index("average"), color="white", lw=4)
        shown = range(0, len(wide.columns), 3)
        ax.set_xticks([i + 0.5 for i in shown], [wide.columns[i] for i in shown], rotation=0)
        ax.set(title=panel, xlabel="epoch", ylabel="")
        ax.tick_params(length=0)
        ax.tick_params(axis="y", rotation=0)
    figure.axes[-1].set_ylabel("robust accuracy (%)", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure


def against_time(table: pd.DataFrame, title: str = "") -> Figure:
    """Average and worst class by the seconds of a training, a panel each; a point is a run.

    table: columns method, seconds, average, worst (fractions), a row for each run. Each method is
        named at its mean.
    """
    labels = {"average": "average (%)", "worst": "worst class (%)"}
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.7))
    for ax, value in zip(axes, labels, strict=True):
        means, lines = [], []
        for method in table.method.unique():
            part = table[table.method == method]
            look = mark(method)
            at, runs = part.seconds.mean(), 100 * part[value]
            ax.plot((at, at), (runs.min(), runs.max()), color=look.colour, lw=1)
            lines += [(at, height) for height in np.linspace(runs.min(), runs.max(), 12)]
            ax.scatter(part.seconds, runs, s=26, **look.points, zorder=3)
            means.append((part.seconds.mean(), 100 * part[value].mean()))
        ax.set(xscale="log", xlabel="seconds of a training (one core)", title=labels[value])
        ax.margins(x=0.22, y=0.16)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
        ax.set_xticks((10, 20, 50, 100, 200))
        ax.set_ylim(bottom=max(ax.get_ylim()[0], -1))
        points = np.array(means)
        figure.draw_without_rendering()
        name_points(ax, points, list(table.method.unique()), figure.dpi / 72, lines)
    figure.suptitle(title, fontsize="medium")
    return figure


def seeds_by_bar(table: pd.DataFrame, title: str = "") -> Figure:
    """Average and worst class of each bar's runs, a point each, their mean a line; a panel each.

    table: columns bar, functional, seed, value (fractions). A filled mark says that the weights
        were averaged.
    """
    functionals = list(table.functional.unique())
    bars = list(table.bar.unique())
    figure, axes = panel_row(len(functionals), 3.2, 1.6, 0.36 * len(bars) + 1.2)
    for ax, functional in zip(axes, functionals, strict=True):
        part = table[table.functional == functional]
        for place, bar in enumerate(bars):
            of = part[part.bar == bar]
            ax.scatter(100 * of.value, place + 0.2 * (of.seed - 1), s=30, **mark(bar).points)
            mean = 100 * of.value.mean()
            ax.plot((mean, mean), (place - 0.38, place + 0.38), color="black", lw=1.5)
        ax.set(title=functional, xlabel="robust accuracy (%)")
        widen(ax, x=9)
    axes[0].set_yticks(range(len(bars)), bars)
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize="medium")
    return figure
