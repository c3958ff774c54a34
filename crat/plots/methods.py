"""Figures that compare training methods: class-wise policies, average against worst class."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from crat.plots.base import BLUE, GREY, RED, SERIES, legend_below, panel_row


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
    The classes with the smallest and the largest value at the end are named; accepted epochs are
    marked below.
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
        for name, colour in ((order[0], RED), (order[-1], BLUE)):
            ax.plot(values.index, values[name], color=colour, lw=1.8, label=name)
        accepted = part[part.accepted].epoch.unique()
        if len(accepted):
            height = np.ptp(values.to_numpy()) or 1
            low = values.min().min() - 0.06 * height
            ax.plot(accepted, np.full(len(accepted), low), "k^", ms=4, label="enters the average")
        ax.set(title=panel, xlabel="epoch")
        legend_below(ax)
    return figure


def frontier(table: pd.DataFrame, x: str = "average", y: str = "worst", title: str = "") -> Figure:
    """Methods in the plane of average and worst class: dots are runs, the named mark is their mean.

    table: columns method, `x`, `y` (fractions), a row for each run.
    """
    methods = list(table.method.unique())
    figure, ax = plt.subplots(figsize=(6.6, 4.4))
    for i, method in enumerate(methods):
        part = 100 * table[table.method == method][[x, y]]
        colour = SERIES[i % len(SERIES)]
        marker = "osD^vP*X"[i // len(SERIES) % 8]
        style: dict[str, Any] = {"facecolor": "none", "label": f"{method} (one seed)"}
        if len(part) > 1:
            ax.scatter(part[x], part[y], s=12, color=colour, alpha=0.55)
            style = {"facecolor": colour, "label": f"{method}"}
        ax.scatter(part[x].mean(), part[y].mean(), s=60, marker=marker, edgecolor=colour, **style)
    ax.set(xlabel=f"{x} robust accuracy (%)", ylabel=f"{y} class (%)", title=title)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def class_heat(table: pd.DataFrame, base: str, title: str = "") -> Figure:
    """Robust accuracy by method and class, coloured by the difference to the base's row.

    table: columns method, class, robust_acc (fractions). Classes stand in the base's order, the
        weakest first.
    """
    wide = 100 * table.pivot(index="method", columns="class", values="robust_acc")
    wide = wide.loc[table.method.unique(), wide.loc[base].sort_values().index]
    figure, ax = plt.subplots(figsize=(0.62 * wide.shape[1] + 2.2, 0.32 * len(wide) + 1.1))
    difference = wide - wide.loc[base]
    limit = max(5.0, float(np.nanmax(np.abs(difference.to_numpy()))))
    scale = {"cmap": "PuOr", "vmin": -limit, "vmax": limit}
    label = {"label": f"points against {base}"}
    numbers = {"annot": wide, "fmt": ".0f", "annot_kws": {"size": 7}}
    sns.heatmap(difference, ax=ax, linewidths=0.5, cbar_kws=label, **scale, **numbers)
    ax.set(xlabel="", ylabel="", title=title)
    ax.set_xticklabels(ax.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    return figure


def atlas(published: pd.DataFrame, value: str = "AA worst", title: str = "") -> Figure:
    """Numbers that different papers print for one method, a colour for each source.

    published: columns method, source, `value` (percent).
    """
    table = published.dropna(subset=[value])
    order = table.groupby("method")[value].mean().sort_values().index
    sources = list(table.source.unique())
    figure, ax = plt.subplots(figsize=(6.4, 0.24 * len(order) + 1.1))
    for i, source in enumerate(sources):
        part = table[table.source == source]
        places = [order.get_loc(method) for method in part.method]
        marker, colour = "osD^vP*X"[i % 8], SERIES[i % len(SERIES)]
        ax.scatter(part[value], places, s=26, marker=marker, color=colour, label=source)
    ax.set_yticks(range(len(order)), order)
    ax.grid(axis="y", lw=0.3)
    ax.set(xlabel=f"{value} (%)", title=title)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def worst_distributions(table: pd.DataFrame, objective: pd.DataFrame) -> Figure:
    """CODAT's inner maximum: each class's probability over its loss, and the maximum's value.

    table: columns rho, class, loss, p.
    objective: columns rho, exact, closed_form, of one set of class losses.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    for i, (rho, part) in enumerate(table.sort_values("loss").groupby("rho")):
        colour = SERIES[i % len(SERIES)]
        left.plot(part.loss, part.p, marker="o", ms=3, color=colour, label=f"ρ = {rho:g}")
    lightest = table[table.rho == table.rho.min()].sort_values("loss")
    named = left.secondary_xaxis("top")
    named.set_xticks(lightest.loss, lightest["class"], rotation=90, fontsize=5)
    left.set(xlabel="loss of the class", ylabel="its probability")
    left.set_title("the worst distribution over classes")
    left.legend(fontsize=7)
    right.plot(objective.rho, objective.exact, color=BLUE, label="maximum")
    right.plot(objective.rho, objective.closed_form, color=RED, ls="--", label="mean + √ρ · sd")
    right.set(xlabel="ρ", ylabel="loss", title="what is minimised")
    right.legend(fontsize=7)
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
    figure.suptitle(title, fontsize=9)
    return figure
