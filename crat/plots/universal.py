"""Figures of universal perturbations: the classes that they fool, and the perturbations."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from crat.plots.marks import BLUE, ORANGE


def fooled_bars(table: pd.DataFrame, title: str = "") -> Figure:
    """Bars of the share of each class that two kinds of perturbation fool, one before the other.

    table: columns method, class, fooled, low, high (fractions), two methods. The last stands in
        front, dark and with its numbers, and orders the classes; its average is dotted.
    """
    behind, front = table.method.unique()
    wide = table.set_index(["method", "class"])
    order = wide.loc[front].fooled.sort_values(ascending=False).index
    x = np.arange(len(order))
    figure, ax = plt.subplots(figsize=(0.6 * len(order) + 1.6, 3))
    looks: tuple[dict[str, Any], ...] = (
        {"width": 0.84, "color": ORANGE, "alpha": 0.4},
        {"width": 0.5, "color": BLUE},
    )
    drawn: list[Any] = []
    for kind, look, place in zip((behind, front), looks, (x + 0.335, x), strict=True):
        part = 100 * wide.loc[kind].loc[order]
        drawn.append(ax.bar(x, part.fooled, label=kind, **look))
        lengths = [part.fooled - part.low, part.high - part.fooled]
        ax.errorbar(place, part.fooled, lengths, fmt="none", ecolor="black", elinewidth=1)
    for middle, share in zip(x, part.fooled, strict=True):
        ax.annotate(f"{share:.0f}", (middle, 3), ha="center", fontsize="small", color="white")
    average = part.fooled.mean()
    drawn.append(ax.axhline(average, color="black", lw=0.8, ls=":", label=f"average of {front}"))
    ax.set_xticks(x, order, rotation=35, ha="right", rotation_mode="anchor")
    ax.set(ylabel="fooled (%)", ylim=(0, 100))
    ax.set_title(title, pad=24)
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 0.99), "borderpad": 0}
    ax.legend(handles=[drawn[1], drawn[0], drawn[2]], ncols=3, **above)
    return figure


def perturbation_rows(
    images: NDArray,
    common: tuple[NDArray, NDArray],
    own: tuple[NDArray, NDArray],
    fooled: pd.DataFrame,
) -> Figure:
    """An image of each class, with one perturbation for all, and with that of its class.

    images: (K, H, W) or (K, H, W, 3) in [0, 1].
    common: the one perturbation (H, W) or (H, W, 3), and the images with it, like images.
    own: the perturbations, and the images with them, both like images.
    fooled: the fractions below the images; a column for each kind, `common` first, and a row for
        each class, named by its index.
    Perturbations are drawn from blue (darker) over white to red (brighter).
    """
    one, each = fooled.columns[:2]
    rows = {"image": images, "": common[1], each: own[0], "with it": own[1]}
    size = (0.85 * len(images) + 1.3, 4.3)
    figure, axes = plt.subplots(len(rows), len(images) + 1, figsize=size)
    largest = max(abs(common[0]).max(), abs(own[0]).max())
    for row, (title, pictures) in zip(axes, rows.items(), strict=True):
        for ax, picture in zip(row[1:], pictures, strict=True):
            _picture(ax, picture, largest if pictures is own[0] else None)
        row[0].set_axis_off()
        row[0].text(1, 0.5, title, ha="right", va="center", fontsize="small")
    alone = axes[1, 0]
    alone.set_axis_on()
    _picture(alone, common[0], largest)
    alone.set_xlabel(one, fontsize="small", labelpad=2)
    for ax, name in zip(axes[0, 1:], fooled.index, strict=True):
        ax.set_title(name, fontsize="small", loc="center")
    for row, kind in ((axes[1], one), (axes[3], each)):
        for ax, share in zip(row[1:], fooled[kind], strict=True):
            ax.set_xlabel(f"fools {100 * share:.0f} %", fontsize="small", labelpad=2)
    return figure


def _picture(ax: Axes, image: NDArray, largest: float | None) -> None:
    """Draws an image, or a perturbation whose colours end at its largest value."""
    ax.set(xticks=[], yticks=[])
    if largest is None:
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        return
    flat = image if image.ndim == 2 else image.mean(-1)
    ax.imshow(flat, cmap="RdBu_r", vmin=-largest, vmax=largest)
