"""Figures that compare training methods: class-wise policies, average against worst class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from crat.plots.base import name_ends, name_points, panel_row
from crat.plots.marks import BLACK, BLUE, GREEN, GREY, PINK, SHAPES, mark


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
    size = (3.1 * columns + 0.4, 2.2 * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    parts = [table[table.panel == panel] for panel in panels]
    ends = [_policy_panel(ax, part) for ax, part in zip(axes.flat, parts, strict=False)]
    every = [ax.get_legend_handles_labels() for ax in axes.flat]
    handles = {label: handle for lines in every for handle, label in zip(*lines, strict=True)}
    ncols = 2 if columns == 1 else 4
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols)
    figure.draw_without_rendering()
    for ax, named in zip(axes.flat, ends, strict=False):
        name_ends(ax, named, figure.dpi / 72)
    return figure


def _policy_panel(ax: Axes, part: pd.DataFrame) -> dict[str, tuple[float, float, str]]:
    """Draws a class-wise value over epochs; the two lines to name, for `name_ends`."""
    values = part.pivot(index="epoch", columns="class", values="value")
    order = values.iloc[-1].sort_values().index
    ends = {}
    for i, name in enumerate(order):
        label = "" if i else "the other classes"
        ax.plot(values.index, values[name], color=GREY, lw=0.9, alpha=0.7, label=label)
    for name, colour, which in ((order[-1], PINK, "largest"), (order[0], GREEN, "smallest")):
        ax.plot(values.index, values[name], color=colour, lw=1.8, label=f"{which} at the end")
        alike = int((values.iloc[-1] == values[name].iloc[-1]).sum())
        shown = str(name) if alike == 1 else f"{alike} classes"
        ends[shown] = (values.index[-1], values[name].iloc[-1], colour)
    accepted = part[part.accepted].epoch.unique()
    if len(accepted):
        height = np.ptp(values.to_numpy()) or 1
        low = values.min().min() - 0.06 * height
        ax.plot(accepted, np.full(len(accepted), low), "k^", ms=4, label="enters the average")
    ax.set(title=str(part.panel.iloc[0]).replace("_", " "), xlabel="epoch")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return ends


def frontier(
    table: pd.DataFrame,
    x: str = "average",
    y: str = "worst",
    title: str = "",
    averaged: bool | None = None,
    offers: Mapping[str, pd.DataFrame] | None = None,
) -> Figure:
    """Methods named in the plane of average and worst class; small runs are joined to their mean.

    A filled mark says that the weights were averaged (`crat.plots.marks`).
    table: columns method, `x`, `y` (fractions), a row for each run.
    averaged: whether all weights were averaged; None: what the names say, and a legend.
    offers: name -> columns seed, `x`, `y`: what one network offers without another training, such
        as a bias; a black line, named at its middle; crosses are seeds but the first.
    """
    grown = max(1.0, table.method.nunique() / 16) ** 0.5  # the names of more need more room
    figure, ax = plt.subplots(figsize=(7.2 * grown, 4.8 * grown))
    means, drawn = {}, []
    for method in table.method.unique():
        runs = 100 * table[table.method == method][[x, y]].to_numpy()
        one = " (one seed)" if len(runs) == 1 else ""
        means[f"{method}{one}"] = mean = runs.mean(axis=0)
        look = mark(str(method))
        look = look if averaged is None else replace(look, averaged=averaged)
        for run in runs if len(runs) > 1 else ():
            line = np.array([mean, run])
            ax.plot(line[:, 0], line[:, 1], color=look.colour, lw=0.8, alpha=0.6)
            ax.plot(run[0], run[1], ".", color=look.colour, ms=4)
            drawn.append(np.linspace(mean, run, 9))
        ax.scatter(mean[0], mean[1], s=64, zorder=3, linewidth=1.5, **look.points)
    for name, offer in (offers or {}).items():
        means[name], lines = _draw_offer(ax, offer, (x, y))
        drawn += lines
    if averaged is None:
        _say_averaged(ax)
    ax.set(xlabel=f"{x} robust accuracy (%)", ylabel=f"{y} class (%)")
    ax.set_title(title, pad=22)
    ax.margins(0.12)
    figure.draw_without_rendering()
    joins = np.concatenate(drawn) if drawn else ()
    name_points(ax, np.array(list(means.values())), list(means), figure.dpi / 72, joins, 7)
    return figure


def _draw_offer(
    ax: Axes, offer: pd.DataFrame, axes: tuple[str, str]
) -> tuple[NDArray, list[NDArray]]:
    """Draws an offer of `frontier`; the place of its name, and points that no name may cover."""
    first = offer.seed == offer.seed.iloc[0]
    line, others = (100 * offer.loc[of, list(axes)].to_numpy() for of in (first, ~first))
    ax.plot(line[:, 0], line[:, 1], "k.-", lw=1.6, zorder=2)
    ax.plot(others[:, 0], others[:, 1], "kx", ms=5, zorder=2)
    steps = np.linspace(0, len(line) - 1, 12 * len(line))
    along = [np.interp(steps, range(len(line)), values) for values in line.T]
    return line[len(line) // 2], [others, np.transpose(along)]


def average_moves(pairs: Mapping[str, tuple[str, str]], table: pd.DataFrame) -> Figure:
    """An arrow for each method from its place without an average of the weights to that with one.

    pairs: the method's name -> its names in the table without and with the average.
    table: columns method, average, worst (fractions), a row for each run; places are their means.
    """
    means = 100 * table.groupby("method")[["average", "worst"]].mean()
    figure, ax = plt.subplots(figsize=(7.2, 4.8))
    heads, along = [], []
    for without, with_average in pairs.values():
        line = means.loc[[without, with_average]].to_numpy()
        look = mark(with_average)
        arrow = {"arrowstyle": "->", "color": look.colour, "shrinkA": 4, "shrinkB": 4}
        ax.annotate("", line[1], line[0], arrowprops=arrow)
        for place, averaged in zip(line, (False, True), strict=True):
            ax.scatter(
                place[0], place[1], s=64, zorder=3, **replace(look, averaged=averaged).points
            )
        heads.append(line[1])
        along.append(np.linspace(line[0], line[1], 17))
    _say_averaged(ax)
    ax.set(xlabel="average robust accuracy (%)", ylabel="worst class (%)")
    ax.margins(0.12)
    figure.draw_without_rendering()
    name_points(ax, np.array(heads), list(pairs), figure.dpi / 72, np.concatenate(along), 7)
    return figure


def _say_averaged(ax: Axes) -> None:
    """The legend of filled and of open marks, above the panel."""
    ax.scatter([], [], color=GREY, label="weights averaged")
    ax.scatter([], [], facecolor="white", edgecolor=GREY, label="not averaged")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 0.99), ncols=2, borderpad=0)


def class_heat(table: pd.DataFrame, base: str, title: str = "") -> Figure:
    """Robust accuracy by method and class, coloured by the difference to the base's row.

    table: columns method, class, robust_acc (fractions). Classes stand in the base's order, the
        weakest first.
    """
    wide = 100 * table.pivot(index="method", columns="class", values="robust_acc")
    wide = wide.loc[table.method.unique(), wide.loc[base].sort_values().index]
    # of two rows, too, the bar of colours has room for its label
    size = (0.66 * wide.shape[1] + 2.6, 0.36 * max(len(wide), 4) + 1.2)
    figure, ax = plt.subplots(figsize=size)
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
    """Numbers that different papers print for one method; a shape is a paper, a colour a method.

    published: columns method, source, `value` (percent). A source is a paper, or a paper and
        ", last epoch", which is drawn hollow.
    """
    table = published.dropna(subset=[value])
    order = table.groupby("method")[value].mean().sort_values().index
    papers = [source.partition(",")[0] for source in table.source.unique()]
    shape_of = dict(zip(dict.fromkeys(papers), SHAPES, strict=False))
    figure, ax = plt.subplots(figsize=(6.4, 0.28 * len(order) + 1.1))
    for source in table.source.unique():
        part = table[table.source == source]
        places = [order.get_loc(method) for method in part.method]
        paper, last, _ = source.partition(", last epoch")
        edges = [mark(method).colour for method in part.method]
        faces, shape = "white" if last else edges, shape_of[paper]
        ax.scatter(part[value], places, s=34, marker=shape, facecolor=faces, edgecolor=edges)
        face = "white" if last else GREY
        ax.plot([], [], shape, color=GREY, markerfacecolor=face, label=source)
    ax.set_yticks(range(len(order)), order)
    ax.grid(axis="y", lw=0.3)
    ax.set(xlabel=f"{value} (%)", title=title)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def worst_distributions(table: pd.DataFrame, objective: pd.DataFrame) -> Figure:
    """CODAT's inner maximum: the probability of each class by rho, and the maximum's value.

    table: columns rho, class, loss, p. Classes stand from above by their loss, the largest first;
        the larger rho, the darker its points.
    objective: columns rho, exact, closed_form, of one set of class losses.
    """
    order = table.groupby("class")["loss"].mean().sort_values(ascending=False)
    size = (9, 0.3 * len(order) + 1.2)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(3, 2))
    shades = plt.get_cmap("Blues")(np.linspace(0.3, 1, table.rho.nunique()))
    for shade, shape, (rho, part) in zip(shades, SHAPES, table.groupby("rho"), strict=False):
        share = part.set_index("class").p.loc[order.index]
        style = {"color": shade, "marker": shape, "s": 26}
        left.scatter(100 * share, range(len(share)), label=f"ρ = {rho:g}", **style)
    left.set_yticks(range(len(order)), [f"{k} ({loss:.2f})" for k, loss in order.items()])
    left.invert_yaxis()
    left.grid(axis="y", lw=0.3)
    left.set(xlabel="probability (%)", title="the worst distribution of classes (their loss)")
    left.legend()
    right.plot(objective.rho, objective.exact, color=BLUE, label="maximum")
    right.plot(objective.rho, objective.closed_form, color=BLACK, ls="--", label="mean + √ρ · sd")
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
        look = {"color": mark("CODAT").colour, "marker": "o", "ms": 4}
        ax.errorbar(part.index, centre, whiskers, lw=1, elinewidth=1, **look)
        ax.set_xticks(part.index, [f"{rho:g}" for rho in part.rho])
        ax.set(xlabel="ρ", ylabel="accuracy (%)", title=panel)
        ax.margins(x=0.15)
    figure.suptitle(title, fontsize="medium")
    return figure
