"""Figures of notebook 02: what each attack made of the same images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from crat.plots.marks import class_colours


def answer_tiles(
    images: Mapping[str, NDArray],
    answers: Mapping[str, Sequence[str]],
    true: str,
    classes: Sequence[str],
) -> Figure:
    """Images of one class, a row for each attack; those with a wrong answer in a colour for it.

    images: row -> (n, H, W) or (n, H, W, 3) in [0, 1], in the same order in each row.
    answers: row -> n names of classes. The number of wrong ones stands beside the row.
    true: the class of all images. classes: all of the data set, in its order.
    """
    wrong = Counter(name for row in answers.values() for name in row if name != true)
    names = [name for name, _ in wrong.most_common()]
    colour_of = {name: to_rgb(colour) for name, colour in class_colours(classes).items()}
    strips = [
        np.hstack(
            [
                _tinted(image, None if answer == true else colour_of[answer])
                for image, answer in zip(images[row], answers[row], strict=True)
            ]
        )
        for row in images
    ]
    height, width, _ = strips[0].shape
    inches = 8 / width
    figure, ax = plt.subplots(figsize=(8 + 1.6, inches * height * len(strips) + 0.5))
    ax.imshow(np.vstack(strips), interpolation="nearest", aspect="equal")
    ax.set_yticks((np.arange(len(strips)) + 0.5) * height, list(images))
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    right_edge = ax.get_yaxis_transform()
    for i, row in enumerate(images):
        broken = str(sum(name != true for name in answers[row]))
        ax.text(1.01, (i + 0.5) * height, broken, va="center", transform=right_edge)
    handles = [Patch(color=colour_of[name], label=f"called {name}") for name in names]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    return figure


def _tinted(image: NDArray, colour: tuple[float, float, float] | None) -> NDArray:
    """The image in a colour, or in grey (None): (H, W, 3), a black edge around."""
    grey = image if image.ndim == 2 else image.mean(-1)
    tint = np.array(colour or (0.55, 0.55, 0.55))
    # white where the image is white: the tint keeps the contrast
    bright = grey[..., None] ** 0.8
    tile = bright * (tint + (1 - tint) * 0.25 * bright)
    return np.pad(tile, ((1, 1), (1, 1), (0, 0)))
