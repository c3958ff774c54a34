"""Figures of notebook 04 (CFA): toy model, jumps between epochs, average against worst class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from crat.plots.base import name_ends, name_points, panel_row, widen
from crat.plots.marks import BLACK, BLUE, GREY, ORANGE, RED, mark

EASY_HARD = {"+1": BLUE, "-1": RED}  # of the toy model: class +1 is the easier one
FUNCTIONALS = {"average": (BLACK, "s"), "worst": (RED, "o")}  # the colour and shape of each


def toy_points(table: pd.DataFrame, w: float) -> Figure:
    """Points of the toy model with d = 1 and the border x_2 = -w x_1.

    table: columns panel, class ("+1", "-1"), x_1, x_2.
    x_1 takes few values, so points are spread around it, by an even comb and not by chance.
    """
    panels = list(table.panel.unique())
    figure, axes = panel_row(len(panels), 3.2, 0.4, 3)
    for ax, panel in zip(axes, panels, strict=True):
        for name, colour in EASY_HARD.items():
            part = table[(table.panel == panel) & (table["class"] == name)]
            comb = np.arange(len(part)) * 0.618 % 1 - 0.5
            x_1 = part.x_1 + (0.3 * comb + 0.17 * np.sign(float(name)))
            ax.scatter(x_1, part.x_2, s=5, color=colour, alpha=0.6, lw=0, label=f"class {name}")
        reach = np.array([-1.6, 1.6])
        ax.plot(reach, -w * reach, color="black", lw=1.2, label=f"border, w = {w:.2f}")
        xlabel = "$x_1$ (points spread around its values)"
        ax.set(title=panel, xlabel=xlabel, xlim=reach, xticks=[-1, 0, 1])
    axes[0].set(ylabel="$x_2$", ylim=(-4, 4))
    _legend_outside(figure, axes[0], 3, scale=3)
    return figure


def toy_curves(table: pd.DataFrame, optima: pd.DataFrame) -> Figure:
    """Accuracy of each class over w, with its optimum marked.

    table: columns panel, class, w, accuracy.
    optima: columns panel, class, w (inf: no mark).
    """
    panels = list(table.panel.unique())
    figure, axes = panel_row(len(panels), 3.2, 0.4, 2.9)
    for ax, panel in zip(axes, panels, strict=True):
        for name, colour in EASY_HARD.items():
            part = table[(table.panel == panel) & (table["class"] == name)]
            ax.plot(part.w, 100 * part.accuracy, color=colour, label=f"class {name}")
            best = optima[(optima.panel == panel) & (optima["class"] == name)].w
            for w in best[np.isfinite(best)]:
                ax.axvline(w, color=colour, lw=0.9, ls=":")
        ax.set(title=panel, xlabel="w: trust in $x_1$")
    axes[0].set_ylabel("accuracy (%)")
    axes[0].legend()
    return figure


def optimum_curves(table: pd.DataFrame) -> Figure:
    """Best w of each class over eps.

    table: columns panel, class, eps, w (inf: no finite optimum, drawn as a cross at the top).
    """
    panels = list(table.panel.unique())
    figure, axes = panel_row(len(panels), 3.4, 0.4, 2.9)
    top = 1.4 * table.w[np.isfinite(table.w)].quantile(0.9)
    for ax, panel in zip(axes, panels, strict=True):
        for (name, colour), height in zip(EASY_HARD.items(), (0.97, 0.91), strict=True):
            part = table[(table.panel == panel) & (table["class"] == name)]
            finite = np.isfinite(part.w)
            ax.plot(part.eps[finite], part.w[finite], color=colour, label=f"class {name}")
            crosses = np.full((~finite).sum(), height * top)
            ax.plot(part.eps[~finite], crosses, "x", color=colour, ms=4)
        ax.set(title=panel, xlabel="ε of the attack", ylim=(0, top))
    axes[0].set_ylabel("best w (crosses: infinite)")
    axes[0].legend()
    return figure


def epoch_jumps(table: pd.DataFrame) -> Figure:
    """Average and worst class over epochs (thin: seeds), and below them their mean jumps.

    table: columns panel, seed, epoch, average, worst.
    """
    panels = list(table.panel.unique())
    size = (2.9 * len(panels) + 0.5, 4.2)
    figure, axes = plt.subplots(
        2, len(panels), figsize=size, sharex=True, sharey="row", squeeze=False
    )
    for (above, below), panel in zip(axes.T, panels, strict=True):
        part = table[table.panel == panel]
        for shift, (name, (colour, _)) in zip((-0.2, 0.2), FUNCTIONALS.items(), strict=True):
            runs = 100 * part.pivot(index="epoch", columns="seed", values=name)
            above.plot(runs.index, runs, color=colour, lw=0.7, alpha=0.5)
            above.plot(runs.index, runs.mean(axis=1), color=colour, lw=1.8, label=name)
            jumps = runs.diff().abs().mean(axis=1)
            below.bar(runs.index + shift, jumps, 0.4, color=colour)
        above.set(title=panel, ylim=(0, 100))
        below.set_xlabel("epoch")
    axes[0][0].set_ylabel("robust accuracy (%)")
    axes[1][0].set_ylabel("|change| to the epoch\nbefore (points)")
    _legend_outside(figure, axes[0][0], len(FUNCTIONALS))
    return figure


def learning_curves(table: pd.DataFrame, steps: Sequence[float] = ()) -> Figure:
    """Robust accuracy on training and on validation images; where they part, a training overfits.

    table: columns panel, split, epoch, accuracy. steps: the epochs after which the rate falls.
    """
    panels = list(table.panel.unique())
    figure, axes = panel_row(len(panels), 2.9, 0.5, 2.9)
    for ax, panel in zip(axes, panels, strict=True):
        for split, colour in {"train": GREY, "valid": BLACK}.items():
            part = table[(table.panel == panel) & (table.split == split)]
            ax.plot(part.epoch, 100 * part.accuracy, color=colour, label=split)
        for step in steps:
            ax.axvline(step, color=GREY, lw=0.8, ls=":")
        ax.set(title=panel, xlabel="epoch", ylim=(0, 100))
    axes[0].set_ylabel("robust accuracy (%)")
    axes[0].legend(loc="lower right")
    return figure


def panel_frontiers(table: pd.DataFrame) -> Figure:
    """Methods named in the plane of average and worst class, each panel with separate axes.

    table: columns panel, method, average, worst (fractions). The rows of one method in a panel are
        joined in their order; the last is smaller (best epoch, then last).
    """
    panels = list(table.panel.unique())
    figure, axes = panel_row(len(panels), 4.4, 0.6, 3.8, sharey=False)
    named: list[dict[str, NDArray]] = []
    joins: list[NDArray] = []  # places on the joining lines, which names should not cover
    for ax, panel in zip(axes, panels, strict=True):
        points, joined = {}, []
        for method, part in table[table.panel == panel].groupby("method", sort=False):
            rows = 100 * part[["average", "worst"]].to_numpy()
            points[str(method)] = rows[0]
            joined += [np.linspace(*ends, 12) for ends in pairwise(rows)]
            look = mark(str(method))
            ax.plot(rows[:, 0], rows[:, 1], color=look.colour, lw=1)
            ax.scatter(rows[0, 0], rows[0, 1], s=60, zorder=3, linewidth=1.5, **look.points)
            ax.scatter(rows[1:, 0], rows[1:, 1], s=16, zorder=3, **look.points)
        ax.set(title=panel, xlabel="average robust accuracy (%)")
        widen(ax)
        room = 0.1 * np.ptp(ax.get_xlim())  # for names
        ax.set_xlim(ax.get_xlim()[0] - room, ax.get_xlim()[1] + room)
        named.append(points)
        joins.append(np.reshape(joined, (-1, 2)))
    axes[0].set_ylabel("worst class (%)")
    if table.duplicated(["panel", "method"]).any():
        axes[0].scatter([], [], s=16, color=GREY, label="small: the last epoch")
        axes[0].legend()
    figure.draw_without_rendering()
    for ax, points, covered in zip(axes, named, joins, strict=True):
        places = np.array(list(points.values()))
        name_points(ax, places, list(points), figure.dpi / 72, covered, 7)
    return figure


def setting_curves(table: pd.DataFrame) -> Figure:
    """What the values of a setting change against the base method, in points with 95 % intervals.

    table: columns panel, value, and for average and worst <name>_difference, <name>_low,
        <name>_high (fractions).
    """
    panels = list(table.panel.unique())
    figure, axes = panel_row(len(panels), 3.3, 0.8, 3)
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table.panel == panel].reset_index(drop=True)
        for shift, (name, (colour, shape)) in zip((-0.1, 0.1), FUNCTIONALS.items(), strict=True):
            centre, low, high = (
                100 * part[f"{name}_{column}"] for column in ("difference", "low", "high")
            )
            style = {"fmt": shape, "color": colour, "ms": 5, "elinewidth": 1.2}
            spans = [centre - low, high - centre]
            ax.errorbar(part.index + shift, centre, spans, label=name, **style)
        ax.axhline(0, color=GREY, lw=1, ls="--")
        ax.set_xticks(part.index, [f"{value:g}" for value in part.value])
        ax.set(title=panel, xlim=(-0.6, len(part) - 0.4))
    axes[0].set_ylabel("points against the base")
    axes[0].plot([], [], color=GREY, ls="--", label="base")
    _legend_outside(figure, axes[0], 3)
    return figure


def variant_rows(table: pd.DataFrame) -> Figure:
    """Average and worst class of variants, a row each, with 95 % intervals; groups stand apart.

    table: columns panel, method, and for average and worst <name>, <name>_low, <name>_high
        (fractions). The first of a panel's group is its base, whose values are dashed lines.
    """
    start = (table.panel != table.panel.shift()).cumsum() - 1
    rows = np.arange(len(table)) + start.to_numpy()
    figure, axes = panel_row(2, 3.3, 1.6, 0.3 * rows[-1] + 1.3)
    names = {"average": "average", "worst": "worst class"}
    for ax, (name, (colour, shape)) in zip(axes, FUNCTIONALS.items(), strict=True):
        centre, low, high = (100 * table[name + end].to_numpy() for end in ("", "_low", "_high"))
        style = {"fmt": shape, "color": colour, "ms": 5, "elinewidth": 1.2}
        ax.errorbar(centre, rows, xerr=[centre - low, high - centre], **style)
        for group in start.unique():
            of = rows[start == group]
            ax.vlines(centre[start == group][0], of[0], of[-1], color=GREY, lw=1, ls="--")
        ax.set(title=names[name], xlabel="robust accuracy (%)")
        widen(ax, x=10, y=0)
    axes[0].set_yticks(rows, table.method)
    axes[0].set_ylim(rows[-1] + 0.6, -0.6)
    return figure


def class_groups(table: pd.DataFrame, along: str) -> Figure:
    """Curves of hard and easy classes, the groups' means bold; hard classes are named.

    table: columns panel, class, `along`, accuracy, group ("hard" or "easy").
    """
    names = list(table.panel.unique())
    figure, axes = panel_row(len(names), 3.6, 0.6, 3.3)
    ends: list[dict[str, tuple[float, float, str]]] = []
    for ax, panel in zip(axes, names, strict=True):
        ends.append({})
        for group, colour in (("hard", ORANGE), ("easy", BLUE)):
            part = table[(table.panel == panel) & (table.group == group)]
            wide = 100 * part.pivot(index=along, columns="class", values="accuracy")
            ax.plot(wide.index, wide, color=colour, lw=0.8, alpha=0.6)
            bold = {"lw": 2.4, "marker": "o", "ms": 4}
            ax.plot(wide.index, wide.mean(axis=1), color=colour, label=f"{group} classes", **bold)
            for name in wide if group == "hard" else ():
                ends[-1][str(name)] = (wide.index[-1], wide[name].iloc[-1], colour)
        ax.set(title=panel, xlabel=along, ylim=(0, 100))
    axes[0].set_ylabel("accuracy (%)")
    _legend_outside(figure, axes[0], 2)
    figure.draw_without_rendering()
    for ax, named in zip(axes, ends, strict=True):
        name_ends(ax, named, figure.dpi / 72)
    return figure


def _legend_outside(figure: Figure, ax: Axes, ncols: int, scale: float = 1) -> None:
    """Puts the legend of one panel below the whole figure."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, markerscale=scale)
