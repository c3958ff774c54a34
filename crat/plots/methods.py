"""Figures that compare training methods: class-wise policies, average against worst class."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from crat.plots.base import legend_below, name_points, panel_row
from crat.plots.marks import BLUE, GREEN, GREY, PINK, RED, SERIES, SHAPES, mark


def policy_table(history: pd.DataFrame, columns: Sequence[str], name: str) -> pd.DataFrame:
    """Tidy table of a method's class-wise policy: panel, epoch, class, value, accepted.

    history: history.csv of one run.
    columns: columns of the history, such as eps, beta, weight; panel is "name: column".
    accepted: whether the epoch entered a gated average (False where there is none).
    """
    train = history[history.split == "train"]
    gate = train["accepted"].astype(str) == "True" if "accepted" in train else False
    parts = []
    for column in columns:
        part = train[["epoch", "class"]]
        panel = f"{name}: {column}"
        parts.append(part.assign(panel=panel, value=train[column], accepted=gate))
    return pd.concat(parts, ignore_index=True)[["panel", "epoch", "class", "value", "accepted"]]


def policy_curves(table: pd.DataFrame, wide: int = 3) -> Figure:
    """Curves of every class, a panel for each of the table's, `wide` panels in a row.

    table: of `policy_table`; several may be joined.
    The classes with the largest and the smallest value at the end are named, in pink and green: a
    large eps is no merit and a large weight no fault. Accepted epochs are marked below.
    """
    panels = list(table.panel.unique())
    rows, columns = ceil(len(panels) / wide), min(wide, len(panels))
    size = (3.2 * columns + 0.6, 2.7 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, panel in zip(axes.flat, panels, strict=False):
        part = table[table.panel == panel]
        values = part.pivot(index="epoch", columns="class", values="value")
        order = values.iloc[-1].sort_values().index
        for name in values:
            ax.plot(values.index, values[name], color=GREY, lw=0.9, alpha=0.7)
        for name, colour, which in ((order[-1], PINK, "most"), (order[0], GREEN, "least")):
            alike = int((values.iloc[-1] == values.iloc[-1][name]).sum())
            label = f"{name if alike == 1 else f'{alike} classes'} ({which})"
            ax.plot(values.index, values[name], color=colour, lw=1.8, label=label)
        accepted = part[part.accepted].epoch.unique()
        if len(accepted):
            height = np.ptp(values.to_numpy()) or 1
            low = values.min().min() - 0.06 * height
            ax.plot(accepted, np.full(len(accepted), low), "k^", ms=4, label="enters the average")
        ax.set(title=panel, xlabel="epoch")
        legend_below(ax)
    return figure


def frontier(table: pd.DataFrame, x: str = "average", y: str = "worst", title: str = "") -> Figure:
    """Methods named in the plane of average and worst class; small runs are joined to their mean.

    A filled mark says that the weights were averaged (`crat.plots.marks`).
    table: columns method, `x`, `y` (fractions), a row for each run.
    """
    figure, ax = plt.subplots(figsize=(7.2, 4.8))
    means = {}
    for method in table.method.unique():
        runs = 100 * table[table.method == method][[x, y]].to_numpy()
        one = " (one seed)" if len(runs) == 1 else ""
        means[f"{method}{one}"] = mean = runs.mean(axis=0)
        look = mark(str(method))
        for run in runs if len(runs) > 1 else ():
            line = np.array([mean, run])
            ax.plot(line[:, 0], line[:, 1], color=look.colour, lw=0.8, alpha=0.6)
            ax.plot(run[0], run[1], ".", color=look.colour, ms=4)
        ax.scatter(mean[0], mean[1], s=64, zorder=3, linewidth=1.5, **look.points)
    ax.scatter([], [], color=GREY, label="weights averaged")
    ax.scatter([], [], facecolor="white", edgecolor=GREY, label="not averaged")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 0.99), ncols=2, borderpad=0)
    ax.set(xlabel=f"{x} robust accuracy (%)", ylabel=f"{y} class (%)")
    ax.set_title(title, pad=22)
    ax.margins(0.12)
    figure.draw_without_rendering()
    runs = 100 * table[[x, y]].to_numpy()
    name_points(ax, np.array(list(means.values())), list(means), figure.dpi / 72, runs)
    return figure


def class_heat(table: pd.DataFrame, base: str, title: str = "") -> Figure:
    """Robust accuracy by method and class, coloured by the difference to the base's row.

    table: columns method, class, robust_acc (fractions). Classes stand in the base's order, the
        weakest first.
    """
    wide = 100 * table.pivot(index="method", columns="class", values="robust_acc")
    wide = wide.loc[table.method.unique(), wide.loc[base].sort_values().index]
    figure, ax = plt.subplots(figsize=(0.66 * wide.shape[1] + 2.6, 0.36 * len(wide) + 1.2))
    difference = wide - wide.loc[base]
    limit = max(5.0, float(np.nanmax(np.abs(difference.to_numpy()))))
    scale = {"cmap": "PuOr", "vmin": -limit, "vmax": limit}
    label = {"label": f"points against {base}"}
    numbers = {"annot": wide, "fmt": ".0f", "annot_kws": {"size": "small"}}
    sns.heatmap(difference, ax=ax, linewidths=0.5, cbar_kws=label, **scale, **numbers)
    ax.set(xlabel="", ylabel="", title=title)
    ax.tick_params(axis="y", rotation=0)
    ax.set_xticklabels(ax.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    return figure


def atlas(published: pd.DataFrame, value: str = "AA worst", title: str = "") -> Figure:
    """Numbers that different papers print for one method, a colour for each source.

    published: columns method, source, `value` (percent).
    """
    table = published.dropna(subset=[value])
    order = table.groupby("method")[value].mean().sort_values().index
    sources = list(table.source.unique())
    figure, ax = plt.subplots(figsize=(6.4, 0.28 * len(order) + 1.1))
    for i, source in enumerate(sources):
        part = table[table.source == source]
        places = [order.get_loc(method) for method in part.method]
        marker, colour = SHAPES[i % len(SHAPES)], SERIES[i % len(SERIES)]
        ax.scatter(part[value], places, s=26, marker=marker, color=colour, label=source)
    ax.set_yticks(range(len(order)), order)
    ax.grid(axis="y", lw=0.3)
    ax.set(xlabel=f"{value} (%)", title=title)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def worst_distributions(table: pd.DataFrame, objective: pd.DataFrame) -> Figure:
    """CODAT's inner maximum: the probability of each class by rho, and the maximum's value.

    table: columns rho, class, loss, p. Classes stand from above by their loss, the largest first.
    objective: columns rho, exact, closed_form, of one set of class losses.
    """
    order = table.groupby("class")["loss"].mean().sort_values(ascending=False)
    size = (9, 0.3 * len(order) + 1.2)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(3, 2))
    for i, (rho, part) in enumerate(table.groupby("rho")):
        share = part.set_index("class").p.loc[order.index]
        style = {"color": SERIES[i % len(SERIES)], "marker": SHAPES[i % len(SHAPES)]}
        left.scatter(100 * share, range(len(share)), s=26, label=f"ρ = {rho:g}", **style)
    left.set_yticks(range(len(order)), [f"{k} ({loss:.2f})" for k, loss in order.items()])
    left.invert_yaxis()
    left.grid(axis="y", lw=0.3)
    left.set(xlabel="probability (%)", title="the worst distribution of classes (their loss)")
    left.legend()
    right.plot(objective.rho, objective.exact, color=BLUE, label="maximum")
    right.plot(objective.rho, objective.closed_form, color=RED, ls="--", label="mean + √ρ · sd")
    right.set(xlabel="ρ", ylabel="loss", title="what is minimised")
    right.legend()
    return figure


def radius_curves(table: pd.DataFrame, title: str = "") -> Figure:
    """Accuracies over the radius rho, a panel for each `what`, with 95 % over images.

    table: columns what, rho, value, low, high (fractions).
    """
    panels = list(table.what.unique())
    figure, axes = panel_row(len(panels), 2.8, 0.4, 2.8, sharey=False)
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table.what == panel].sort_values("rho").reset_index(drop=True)
        centre = 100 * part.value
        whiskers = [centre - 100 * part.low, 100 * part.high - centre]
        ax.errorbar(part.index, centre, whiskers, color=BLUE, marker="o", ms=4, lw=1, elinewidth=1)
        ax.set_xticks(part.index, [f"{rho:g}" for rho in part.rho])
        ax.set(xlabel="ρ", ylabel="accuracy (%)", title=panel)
        ax.margins(x=0.15)
    figure.suptitle(title, fontsize="medium")
    return figure
