"""The figures of groups draw what their tables say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from crat import plots
from crat.plots import tail as plots_tail


def test_points_and_whiskers_are_the_tables_in_its_order():
    plots.use_style()
    rows = [
        ("AT", "head", 0.9, 0.8, 0.95),
        ("AT", "tail", 0.2, 0.1, 0.4),
        ("BSL", "tail", 0.5, 0.4, 0.6),
        ("BSL", "head", 0.7, 0.7, 0.8),
    ]
    table = pd.DataFrame(rows, columns=["method", "group", "accuracy", "low", "high"])
    ax = plots_tail.group_points(table, "title").axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["head", "tail"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["AT", "BSL"]
    drawn = {container.get_label(): container for container in ax.containers}
    assert drawn["AT"].lines[0].get_ydata() == pytest.approx([90, 20])
    # head first, as the groups stand
    assert drawn["BSL"].lines[0].get_ydata() == pytest.approx([70, 50])
    ends = [sorted(segment[:, 1]) for segment in drawn["AT"].lines[2][0].get_segments()]
    assert ends == [pytest.approx([80, 95]), pytest.approx([10, 40])]
    assert drawn["AT"].lines[0].get_xdata()[0] < drawn["BSL"].lines[0].get_xdata()[0] < 0.5
    plt.close("all")


def test_the_control_is_a_line_across_each_group_and_no_point():
    plots.use_style()
    rows = [("AT", "head", 0.9, 0.8, 0.95), ("even", "head", 0.7, 0.6, 0.75)]
    rows += [("AT", "tail", 0.2, 0.1, 0.4), ("even", "tail", 0.8, 0.7, 0.9)]
    table = pd.DataFrame(rows, columns=["method", "group", "accuracy", "low", "high"])
    ax = plots_tail.group_points(table, control="even").axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["AT", "even"]
    lines = [line for line in ax.lines if line.get_label() == "even"]
    assert [line.get_ydata()[0] for line in lines] == pytest.approx([70, 80])
    assert len(ax.containers) == 1
    plt.close("all")


def test_shares_have_a_panel_a_group_and_end_at_100():
    parts = ("right under attack", "boundary error", "wrong when clean")
    shares = {"head: AT": (0.85, 0.1, 0.05), "tail: AT": (0.6, 0.2, 0.2)}
    shares |= {"head: BSL": (0.7, 0.14, 0.16), "tail: BSL": (0.8, 0.1, 0.1)}
    rows = [(bar, *row) for bar, of in shares.items() for row in zip(parts, of, strict=True)]
    table = pd.DataFrame(rows, columns=["bar", "part", "share"])
    figure = plots_tail.group_shares(table, "title")
    assert [ax.get_title("left") for ax in figure.axes] == ["head", "tail"]
    widths = np.reshape([patch.get_width() for patch in figure.axes[0].patches], (3, 2))
    assert widths[:, 0] == pytest.approx([85, 10, 5])
    assert widths.sum(0) == pytest.approx([100, 100])
    # a part of less than 8 % has no number
    assert [text.get_text() for text in figure.axes[0].texts] == ["85", "70", "10", "14", "16"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(parts)
    plt.close("all")
