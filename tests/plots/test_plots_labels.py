"""Notebook 05's figures hold the numbers of their tables, in percent."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from crat import plots
from crat.plots import labels as plots_labels


@pytest.fixture(autouse=True)
def styled():
    plots.use_style()
    yield
    plt.close("all")


def lines(ax):
    """Label -> (x, y) of the drawn lines."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}


def test_a_label_is_a_row_and_zeros_are_blank():
    rows = [
        ("AT", "shirt", 1.0),
        ("AT", "attack", 0.0),
        ("Adv+", "shirt", 0.9),
        ("Adv+", "attack", 0.1),
    ]
    figure = plots_labels.label_heat(pd.DataFrame(rows, columns=["label", "output", "share"]))
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts] == ["100", "", "90", "10"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["AT", "Adv+"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["shirt", "attack"]


def test_sorted_errors_are_drawn_by_rank_with_a_panel_each():
    rows = [
        ("clean", "Adv", 2, 0.1),
        ("clean", "Adv", 1, 0.4),
        ("PGD", "Adv", 1, 0.7),
        ("PGD", "Adv", 2, 0.2),
    ]
    table = pd.DataFrame(rows, columns=["panel", "method", "rank", "error"]).assign(
        low=0.0, high=0.8
    )
    left, right = plots_labels.sorted_errors(table).axes
    assert lines(left)["Adv"] == ([1, 2], pytest.approx([40, 10]))
    assert lines(right)["Adv"] == ([1, 2], pytest.approx([70, 20]))
    assert left.lines[0].get_color() == plots.mark("Adv").colour


def test_corruptions_are_ordered_by_their_mean_difference():
    rows = [
        ("fog", 1, -0.02),
        ("fog", 2, -0.04),
        ("jpeg_compression", 1, 0.01),
        ("jpeg_compression", 2, 0.03),
    ]
    figure = plots_labels.corruption_heat(
        pd.DataFrame(rows, columns=["corruption", "severity", "difference"])
    )
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["jpeg compression", "fog"]
    assert [text.get_text() for text in ax.texts] == ["+1.0", "+3.0", "-2.0", "-4.0"]


def test_severities_join_means_of_runs():
    rows = [("Adv", 0, 0.1), ("Adv", 0, 0.2), ("Adv", 1, 0.3), ("LA", 0, 0.2), ("LA", 1, 0.6)]
    ax = plots_labels.severity_curves(
        pd.DataFrame(rows, columns=["method", "severity", "error"])
    ).axes[0]
    assert lines(ax) == {
        "Adv": ([0, 1], pytest.approx([15, 30])),
        "LA": ([0, 1], pytest.approx([20, 60])),
    }


def test_reliability_is_drawn_against_the_diagonal():
    rows = [("clean", "base", 0.5, 0.4), ("clean", "base", 0.9, 0.8), ("PGD", "base", 0.9, 0.1)]
    table = pd.DataFrame(rows, columns=["panel", "method", "confidence", "accuracy"])
    left, right = plots_labels.reliability_curves(table).axes
    assert list(left.lines[0].get_xdata()) == list(left.lines[0].get_ydata())
    assert lines(left)["base"] == (pytest.approx([50, 90]), pytest.approx([40, 80]))
    assert lines(right)["base"] == (pytest.approx([90]), pytest.approx([10]))


def test_delta_has_a_dot_a_run_and_a_line_through_means():
    rows = [(0.2, "clean", 0.7), (0.1, "clean", 0.9), (0.1, "clean", 0.8), (0.1, "spread", 0.2)]
    clean, spread = plots_labels.delta_curves(
        pd.DataFrame(rows, columns=["delta", "what", "value"])
    ).axes
    assert [list(v) for v in (clean.lines[0].get_xdata(), clean.lines[0].get_ydata())] == [
        [0.1, 0.2],
        pytest.approx([85, 70]),
    ]
    assert len(clean.collections[0].get_offsets()) == 3
    assert np.ptp(clean.get_ylim()) >= 10
    band = clean.patches[0].get_extents()  # of the seeds at 0.1
    ends = clean.transData.inverted().transform([[0, band.y0], [0, band.y1]])[:, 1]
    assert ends == pytest.approx([80, 90])
    assert (clean.get_title("left"), spread.get_title("left")) == ("clean", "spread")
