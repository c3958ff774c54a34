"""The figure of the brackets is tested by its data."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from crat import plots
from crat.plots.brackets import bracket_bars


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


def test_a_bar_lies_between_the_two_ends_and_a_dot_where_they_meet():
    table = pd.DataFrame(
        {
            "eps": [0.1, 0.1, 0.2, 0.2],
            "class": ["cat", "dog"] * 2,
            "certified_acc": [0.5, 0.9, 0.0, 0.4],
            "robust_acc": [0.8, 0.9, 0.7, 0.6],
        }
    )
    figure = bracket_bars(table, "a net")
    left, right = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["ε = 0.1", "ε = 0.2"]
    for ax, ends in ((left, [(50, 80), (90, 90)]), (right, [(0, 70), (40, 60)])):
        bars = [segment[:, 0].tolist() for segment in ax.collections[1].get_segments()]
        assert bars == [pytest.approx(pair) for pair in ends]
    dots = [ax.lines[2].get_xdata().tolist() for ax in figure.axes]
    assert dots == [[pytest.approx(90)], []]
    assert [text.get_text() for text in left.get_yticklabels()] == ["cat", "dog"]
    assert left.yaxis_inverted()
