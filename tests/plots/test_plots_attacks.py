"""Figures of notebook 02 are tested by their data."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from crat import plots
from crat.plots import attacks as plots_attacks


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


def test_broken_images_are_tinted_and_counted():
    images = {row: np.full((3, 4, 4), 0.5) for row in ("clean", "FGSM")}
    answers = {"clean": ["coat"] * 3, "FGSM": ["shirt", "coat", "bag"]}
    ax = plots_attacks.answer_tiles(images, answers, "coat", ("bag", "coat", "shirt")).axes[0]
    drawn = ax.images[0].get_array()
    assert drawn.shape == (12, 18, 3)  # tiles of 4 pixels, each with an edge of one
    centres = drawn[[2, 8]][:, [2, 8, 14]]
    coloured = np.ptp(centres, axis=-1) > 0
    assert coloured.tolist() == [[False] * 3, [True, False, True]]
    assert [text.get_text() for text in ax.texts] == ["0", "2"]
    legend = ax.get_legend()
    names = [text.get_text() for text in legend.get_texts()]
    colours = [patch.get_facecolor() for patch in legend.get_patches()]
    own = plots.class_colours(("bag", "coat", "shirt"))
    assert dict(zip(names, colours, strict=True)) == {
        f"called {name}": to_rgba(own[name]) for name in ("shirt", "bag")
    }


def test_images_in_colour_are_tinted_by_their_brightness():
    image = np.zeros((1, 2, 2, 3))
    image[..., 0] = 0.9
    grey = np.full((1, 2, 2), 0.3)
    drawn = [
        np.asarray(
            plots_attacks.answer_tiles({"a": x}, {"a": ["dog"]}, "cat", ("cat", "dog"))
            .axes[0]
            .images[0]
            .get_array()
        )
        for x in (image, grey)
    ]
    assert drawn[0] == pytest.approx(drawn[1])
