"""The figures of universal perturbations draw what their tables say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from crat import plots
from crat.plots import universal as plots_universal

ROWS = [
    ("one a class", "bag", 0.6, 0.5, 0.7),
    ("one a class", "coat", 0.9, 0.8, 0.95),
    ("one for all", "bag", 0.2, 0.1, 0.4),
    ("one for all", "coat", 0.8, 0.7, 0.9),
]


@pytest.fixture(autouse=True)
def style():
    plots.use_style()
    yield
    plt.close("all")


def test_the_common_perturbation_stands_in_front_and_orders_the_classes():
    table = pd.DataFrame(ROWS, columns=["method", "class", "fooled", "low", "high"])
    ax = plots_universal.fooled_bars(table, "title").axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["coat", "bag"]
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([90, 60, 80, 20])
    assert [text.get_text() for text in ax.texts] == ["80", "20"]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["one for all", "one a class", "average of one for all"]
    # the whiskers of the bars behind stand beside those of the bars in front
    ends = [segment for c in ax.containers[1::2] for segment in c.lines[2][0].get_segments()]
    assert len({round(float(x), 3) for (x, _), _ in ends}) == 4


@pytest.mark.parametrize("channels", [(), (3,)])
def test_the_common_perturbation_is_drawn_once_and_each_class_has_its_own(channels):
    images = np.random.default_rng(0).random((2, 4, 4, *channels))
    fooled = pd.DataFrame({"one for all": [0.1, 0.2], "one a class": [0.3, 0.4]}, ["bag", "coat"])
    figure = plots_universal.perturbation_rows(
        images, (images[0] - 0.5, images), (images - 0.5, images), fooled
    )
    grid = np.reshape(figure.axes, (4, 3))
    assert [len(ax.images) for ax in grid[:, 0]] == [0, 1, 0, 0]
    assert [ax.get_title("center") for ax in grid[0, 1:]] == ["bag", "coat"]
    assert [ax.get_xlabel() for ax in grid[1, 1:]] == ["fools 10 %", "fools 20 %"]
    assert [ax.get_xlabel() for ax in grid[3, 1:]] == ["fools 30 %", "fools 40 %"]
    scales = {ax.images[0].get_clim() for ax in [grid[1, 0], *grid[2, 1:]]}
    assert len(scales) == 1
