"""The figure of groups draws what its table says."""

import matplotlib.pyplot as plt
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
