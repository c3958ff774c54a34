"""Figures from tables; every figure is saved beside the table it was drawn from.

One visual language: Okabe and Ito's colours, which colour-blind readers tell apart; clean light and
robust dark; the worst class vermillion wherever classes are shown; accuracies in percent; whiskers
are 95 % intervals. Reads no file, imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from crat.names import one_of
from crat.plots.marks import BLUE, GREEN, GREY, ORANGE, PINK, RED, SERIES, SKY, colours, mark
from crat.store import root, written_whole

METHOD_NAMES = {
    "standard": "standard",
    "pgd_at": "PGD-AT",
    "trades": "TRADES",
    "mart": "MART",
    "he": "HE",
}

POINTS = 11  # "small" is 9.2 of these points: no text of a figure is smaller
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "figure.constrained_layout.use": True,
    "font.size": POINTS,
    "axes.titlesize": "medium",
    "axes.labelsize": "small",
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
    "legend.fontsize": "small",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "crat",
}


KINDS = {"notebook": 1.0, "talk": 1.3}  # what a figure is for -> how much larger its text is


def use_style(kind: str = "notebook") -> None:
    """Sets the house style for the session (a notebook's set-up cell calls it once).

    kind: "notebook", or "talk" for a projector: larger text, thicker lines.
    Raises ConfigError on another kind.
    """
    larger = KINDS[one_of("kind of figure", kind, KINDS)]
    text = {"font.size": larger * POINTS}
    lines = {"lines.linewidth": 1.5 * larger, "lines.markersize": 6 * larger}
    sns.set_theme(style="ticks", palette=list(SERIES), rc=STYLE | text | lines)


def figures_folder(notebook: str) -> Path:
    """Folder of a notebook's figures: CRAT_FIGURES/<notebook>, else figures/quick/<notebook>.

    `crat reproduce` gives each notebook the folder of the profile as its CRAT_FIGURES.
    """
    given = os.environ.get("CRAT_FIGURES")
    return (Path(given) if given else root() / "figures" / "quick") / notebook


def save(figure: Figure, table: pd.DataFrame, notebook: str, name: str) -> None:
    """Writes <name>.png, .pdf and the table as .csv into the notebook's folder, each atomically."""
    save_in(figures_folder(notebook), figure, table, name)


def save_in(folder: Path, figure: Figure, table: pd.DataFrame, name: str) -> None:
    """Writes <name>.png, .pdf and the table as .csv into a folder, each atomically."""
    for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
        with written_whole(folder / f"{name}{suffix}") as temporary:
            figure.savefig(temporary, metadata=metadata)
    with written_whole(folder / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def panel_row(
    n: int, width: float, margin: float, height: float, sharey: bool = True
) -> tuple[Figure, NDArray]:
    """A figure with n panels side by side and their axes (n,); sizes in inches.

    width: of one panel; margin: for the labels beside them.
    """
    size = (width * n + margin, height)
    figure, axes = plt.subplots(1, n, figsize=size, sharey=sharey, squeeze=False)
    return figure, axes[0]


def legend_below(ax: Axes) -> None:
    """Puts a panel's legend below its axis label, three names in a row."""
    style = {"ncols": 3, "columnspacing": 1, "handlelength": 1}
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.23), **style)


def _percent(ax: Axes, axis: str = "y", label: str = "accuracy (%)") -> None:
    getattr(ax, f"set_{axis}label")(label)
    getattr(ax, f"set_{axis}lim")(0, 100)


def _whiskers(
    ax: Axes, x: ArrayLike, table: pd.DataFrame, value: str, colour: str = "black", **style
) -> None:
    """Vertical 95 % intervals from the columns low and high, in percent."""
    centre = 100 * table[value].to_numpy()
    below = centre - 100 * table["low"].to_numpy()
    above = 100 * table["high"].to_numpy() - centre
    lengths = [below.clip(0), above.clip(0)]
    ax.errorbar(x, centre, lengths, fmt="none", ecolor=colour, elinewidth=1, **style)


def widen(ax: Axes, x: float = 5.0, y: float = 5.0) -> None:
    """Widens each axis to at least so many points, so that noise does not look like mountains."""
    ax.margins(0.14)
    for least, limits, change in ((x, ax.get_xlim, ax.set_xlim), (y, ax.get_ylim, ax.set_ylim)):
        low, high = limits()
        half = max(high - low, least) / 2
        change((low + high) / 2 - half, (low + high) / 2 + half)


def image_rows(rows: Mapping[str, NDArray], columns: Sequence[str] | None = None) -> Figure:
    """Images in labelled rows; a row with negative values is drawn as a perturbation.

    rows: title -> images (n, H, W) or (n, H, W, 3) in [0, 1].
    columns: n texts below the last row.
    Perturbations are drawn from blue (darker) over white to red (brighter), scaled to their largest
    absolute value.
    """
    n = len(next(iter(rows.values())))
    size = (0.85 * n + 0.8, 0.95 * len(rows) + 0.2)
    figure, axes = plt.subplots(len(rows), n, figsize=size, squeeze=False)
    for row, (title, images) in zip(axes, rows.items(), strict=True):
        signed = images.min() < 0
        largest = abs(images).max()
        for ax, image in zip(row, images, strict=True):
            if signed:
                image = image if image.ndim == 2 else image.mean(-1)
                ax.imshow(image, cmap="RdBu_r", vmin=-largest, vmax=largest)
            else:
                ax.imshow(image, cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(title, rotation=0, ha="right", va="center")
    for ax, text in zip(axes[-1], columns or [""] * n, strict=True):
        ax.set_xlabel(text, fontsize="small")
    return figure


def class_bars(summary: pd.DataFrame, title: str = "") -> Figure:
    """Bars of one attack's class-wise accuracies: clean light, robust dark, worst class marked.

    summary: rows of one attack from metrics.summary; drawn in the order of robust_acc.
    """
    table = summary.sort_values("robust_acc", ascending=False).reset_index(drop=True)
    x = np.arange(len(table))
    figure, ax = plt.subplots(figsize=(0.55 * len(table) + 1.6, 2.9))
    ax.bar(x, 100 * table.clean_acc, color=SKY, alpha=0.45, width=0.75, label="clean")
    of_bars = [BLUE] * (len(table) - 1) + [RED]
    ax.bar(x, 100 * table.robust_acc, color=of_bars, width=0.5, label="under attack")
    _whiskers(ax, x, table, "robust_acc")
    for place, robust, high in zip(x, 100 * table.robust_acc, 100 * table.high, strict=True):
        fits_in_bar = robust > 12
        height = 2 if fits_in_bar else high + 2
        colour = "white" if fits_in_bar else "black"
        ax.annotate(f"{robust:.0f}", (place, height), ha="center", fontsize="small", color=colour)
    ax.axhline(100 * table.robust_acc.mean(), color="black", lw=0.8, ls=":")
    ax.set_xticks(x, table["class"], rotation=35, ha="right", rotation_mode="anchor")
    ax.set_title(title, pad=22)
    ax.legend(loc="lower left", ncols=2, bbox_to_anchor=(0, 0.98), borderpad=0)
    _percent(ax)
    return figure


def method_bars(table: pd.DataFrame, value: str = "robust_acc", title: str = "") -> Figure:
    """Grouped bars of methods by class, classes in the order of the last method.

    table: columns method, class, `value`, and where known low, high. A method may be followed by a
        comma and its condition ("pgd_at, PGD-20"); it has the method's colour, light when clean.
    """
    methods = list(table.method.unique())
    last = table[table.method == methods[-1]].sort_values(value, ascending=False)
    x = np.arange(len(last))
    width = 0.8 / len(methods)
    figure, ax = plt.subplots(figsize=(0.75 * len(last) + 1.5, 3.2))
    for i, (method, colour) in enumerate(zip(methods, colours(methods), strict=True)):
        part = table[table.method == method].set_index("class").loc[last["class"]].reset_index()
        places = x + (i - (len(methods) - 1) / 2) * width
        name, *under = method.split(", ")
        label = ", ".join([METHOD_NAMES.get(name, name), *under])
        alpha = 0.45 if under == ["clean"] else 1
        ax.bar(places, 100 * part[value], width, color=colour, alpha=alpha, label=label)
        if "low" in part:
            _whiskers(ax, places, part, value)
    ax.set_xticks(x, last["class"], rotation=35, ha="right", rotation_mode="anchor")
    ax.set_title(title, pad=22)
    ax.legend(ncols=len(methods), loc="lower left", bbox_to_anchor=(0, 0.98), borderpad=0)
    _percent(ax)
    return figure


def class_curves(
    table: pd.DataFrame,
    value: str = "robust_acc",
    by: str = "panel",
    along: str = "epoch",
    named_at: float | None = None,
) -> Figure:
    """Curves of every class, a panel for each value of the column `by`.

    table: columns `along`, class, `value`, `by`.
    named_at: the place on the axis `along` where best and worst class are determined (None: the
        end), marked by a dotted line. Where all classes lie within one point, none is named.
    """
    panels = list(table[by].unique())
    figure, axes = panel_row(len(panels), 3.4, 0.6, 2.9)
    for ax, panel in zip(axes, panels, strict=True):
        wide = 100 * table[table[by] == panel].pivot(index=along, columns="class", values=value)
        deciding = wide.iloc[-1] if named_at is None else wide.loc[named_at]
        order = deciding.sort_values().index
        for name in wide:
            ax.plot(wide.index, wide[name], color=GREY, lw=0.9, alpha=0.7)
        ax.plot(wide.index, wide.mean(axis=1), color="black", lw=1.6, label="average")
        # of classes that are all alike, none is the best
        alike = deciding.max() - deciding.min() < 1
        for name, colour in () if alike else ((order[0], RED), (order[-1], BLUE)):
            ax.plot(wide.index, wide[name], color=colour, lw=1.8, label=name)
        if named_at is not None:
            ax.axvline(named_at, color="black", lw=0.8, ls=":")
        ax.set(title=panel, xlabel=along)
        legend_below(ax)
    _percent(axes[0], label="robust accuracy (%)" if value == "robust_acc" else "accuracy (%)")
    return figure


def confusion_heat(matrices: Mapping[str, NDArray], classes: Sequence[str]) -> Figure:
    """Row-normalised confusion matrices (K, K) side by side in percent: true class down.

    A share that rounds to 0 is left blank.
    """
    cells = max(0.33 * len(classes), 1.8)  # inches
    figure, axes = panel_row(len(matrices), cells + 0.3, 1.3, cells + 1.5)
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        sns.heatmap(
            100 * matrix,
            ax=ax,
            vmin=0,
            vmax=100,
            cmap="Blues",
            annot=np.array(_whole_percents(matrix)) if len(classes) <= 12 else False,
            fmt="",
            cbar=False,
            annot_kws={"fontsize": "small"},
            xticklabels=list(classes),
            yticklabels=list(classes),
            linewidths=0.3,
            square=True,
        )
        ax.set(title=title, xlabel="predicted")
        ax.tick_params(length=0, labelsize="small")
        ax.tick_params(axis="y", rotation=0)
    axes[0].set_ylabel("true class")
    return figure


def _whole_percents(shares: NDArray) -> list[list[str]]:
    """Fractions (K, K) as whole percents, "" for those that round to 0."""
    return [[f"{100 * v:.0f}" if 100 * v > 0.5 else "" for v in row] for row in shares]


def rank_heat(table: pd.DataFrame, title: str = "") -> Figure:
    """Square heat map of the rank correlations between class orders; columns row, column, rho.

    The scale of colours begins at the smallest of them, as all may lie close to 1.
    """
    wide = table.pivot(index="row", columns="column", values="rho")
    names = list(table.row.unique())
    wide = wide.loc[names, names]
    figure, ax = plt.subplots(figsize=(0.52 * len(wide) + 2.2, 0.42 * len(wide) + 1.5))
    sns.heatmap(
        wide,
        ax=ax,
        vmin=wide.min().min(),
        vmax=1,
        cmap="Blues",
        annot=True,
        fmt=".2f",
        annot_kws={"fontsize": "small"},
        square=True,
    )
    figure.axes[-1].set_ylabel("Spearman's ρ of class orders", fontsize="small")
    ax.set(title=title, xlabel="", ylabel="")
    ax.tick_params(length=0, labelsize="small")
    return figure


def class_scatter(
    table: pd.DataFrame,
    x: str,
    y: str,
    xlabel: str,
    ylabel: str,
    *,
    robust: str = "robust_acc",
    by: str = "panel",
    xscale: str = "linear",
) -> Figure:
    """A named point for each class, a panel for each value of `by`, y in percent.

    table: columns `by`, class, `x`, `y`, `robust`, and for whiskers low, high.
    robust: the column by which the worst class is marked.
    xscale: set here and not afterwards, as the places of names depend on it.
    """
    panels = list(table[by].unique())
    figure, axes = panel_row(len(panels), 3.1, 0.5, 3)
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table[by] == panel]
        of_points = [RED if v == part[robust].min() else BLUE for v in part[robust]]
        ax.scatter(part[x], 100 * part[y], c=of_points, s=22, zorder=3)
        if "low" in part:
            _whiskers(ax, part[x], part, y, colour=GREY, zorder=1)
        ax.set(title=panel, xlabel=xlabel, xscale=xscale)
        ax.margins(x=0.25, y=0.12)
    axes[0].set_ylabel(ylabel)
    # settles the size of the axes, in which the names find their places
    figure.draw_without_rendering()
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table[by] == panel]
        points = np.column_stack([part[x], 100 * part[y]])
        name_points(ax, points, list(part["class"]), figure.dpi / 72)
    return figure


def name_points(
    ax: Axes,
    points: NDArray,
    names: Sequence[str],
    unit: float,
    others: ArrayLike = (),
    radius: float = 4,
) -> None:
    """Writes each name at the nearest free place beside its point; without a free place, no name.

    points: (n, 2) of x and y. A name further off gets a line.
    unit: the pixels of a typographic point.
    others: (m, 2), further points that a name covers only where it has no other place.
    radius: of a point's mark, in typographic points.
    """
    style: dict[str, Any] = {
        "fontsize": "small",
        "ha": "center",
        "va": "center",
        "in_layout": False,
    }
    line = {"arrowstyle": "-", "color": "black", "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
    frame = ax.get_window_extent()
    taken = _squares(ax.transData.transform(points), radius * unit)
    crossed = _squares(ax.transData.transform(np.reshape(others, (-1, 2))), 3 * unit)
    angles = np.deg2rad([90, -90, 0, 180, 60, -60, 120, 240, 30, -30, 150, 210])
    directions = [np.array([np.cos(angle), np.sin(angle)]) for angle in angles]
    for i in np.argsort(-points[:, 1]):
        measured = ax.annotate(names[i], points[i], **style)
        box = measured.get_window_extent()
        measured.remove()
        half = np.array([box.width, box.height]) / 2
        ways = product((taken + crossed, taken), (0, 6, 12, 18, 26, 36, 50, 70), directions)
        for occupied, further, direction in ways:
            shift = direction * (half + (radius + further) * unit)
            moved = box.translated(*shift)
            inside = frame.contains(*moved.min) and frame.contains(*moved.max)
            if inside and not moved.count_overlaps(occupied):
                arrow = line if further else None
                placed = {"textcoords": "offset points", "arrowprops": arrow, **style}
                ax.annotate(names[i], points[i], shift / unit, **placed)
                taken.append(moved.padded(4 * unit))
                break


def _squares(centres: NDArray, half: float) -> list[Bbox]:
    """Squares around places (n, 2), of 2 `half` a side."""
    return [Bbox([centre - half, centre + half]) for centre in centres]


def name_ends(
    ax: Axes, ends: Mapping[str, tuple[float, float, str]], unit: float, left: bool = False
) -> None:
    """Writes the names of lines at their ends, moved apart where they would overlap.

    ends: name -> x, y and the name's colour.
    unit: the pixels of a typographic point.
    left: the ends are the left ones.
    """
    heights = {name: ax.transData.transform(end[:2])[1] / unit for name, end in ends.items()}
    order = sorted(ends, key=heights.__getitem__)
    wanted = np.array([heights[name] for name in order])
    steps = 1.1 * plt.rcParams["font.size"] * np.arange(len(order))
    # the places nearest to the wanted ones that are a line of text apart
    places = isotonic_regression(wanted - steps).x + steps
    for name, shift in zip(order, places - wanted, strict=True):
        x, y, colour = ends[name]
        style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": "small"}
        style |= {"color": colour, "ha": "right" if left else "left", "annotation_clip": False}
        ax.annotate(name, (x, y), (-6 if left else 6, shift), **style)


def temperature_curves(table: pd.DataFrame) -> Figure:
    """Robust accuracy under Temperature-PGD by temperature; T = 1 is PGD.

    table: columns method, temperature, average, worst, spread.
    """
    figure, axes = plt.subplots(1, 3, figsize=(9, 3))
    labels = {
        "average": "average (%)",
        "worst": "worst class (%)",
        "spread": "standard deviation over classes",
    }
    for ax, value in zip(axes, labels, strict=True):
        for method, part in table.groupby("method", sort=False):
            name = METHOD_NAMES.get(str(method), str(method))
            colour = mark(str(method)).colour
            lines = part.groupby("temperature")[value].agg(["mean", "min", "max"]) * 100
            ax.plot(lines.index, lines["mean"], marker="o", ms=3, color=colour, label=name)
            ax.fill_between(lines.index, lines["min"], lines["max"], color=colour, alpha=0.15, lw=0)
        ax.axvline(1, color="black", lw=0.8, ls=":")
        ax.set(xscale="log", xlabel="temperature T", title=labels[value])
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def stacked_shares(table: pd.DataFrame, title: str = "") -> Figure:
    """Horizontal bars of 100 %, the parts in the table's order.

    table: columns bar, part, share (fractions).
    """
    parts = list(table.part.unique())
    wide = 100 * table.pivot(index="bar", columns="part", values="share")
    wide = wide.loc[list(table.bar.unique())[::-1], parts]
    colour_of = dict(zip(parts, (BLUE, ORANGE, GREEN, GREY, PINK, SKY), strict=False))
    names = 0.08 * max(map(len, wide.index))  # inches
    figure, ax = plt.subplots(figsize=(5.2 + names, 0.36 * len(wide) + 1.3))
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "small"}
    left = np.zeros(len(wide))
    for part in parts:
        ax.barh(wide.index, wide[part], left=left, color=colour_of[part], label=part, height=0.7)
        for y, (start, share) in enumerate(zip(left, wide[part], strict=True)):
            if share >= 6:
                ink = "white" if colour_of[part] in (BLUE, GREEN) else "black"
                ax.annotate(f"{share:.0f}", (start + share / 2, y), color=ink, **style)
        left += wide[part].to_numpy()
    ax.set_title(title)
    below = -0.5 / (0.36 * len(wide))  # half an inch
    ax.legend(ncols=min(len(parts), 3), loc="upper left", bbox_to_anchor=(0, below))
    _percent(ax, "x", "share (%)")
    return figure
