"""The figures of notebook 04 draw what their tables say."""

from math import inf

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from crat import plots
from crat.plots import cfa as plots_cfa


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


def line(ax, label):
    return next(drawn for drawn in ax.lines if drawn.get_label() == label)


def test_points_stay_near_their_x_1_and_the_border_is_the_classifiers():
    rows = [
        ("clean", name, x_1, x_2) for name in ("+1", "-1") for x_1 in (-1, 1) for x_2 in (-0.5, 0.5)
    ]
    ax = plots_cfa.toy_points(
        pd.DataFrame(rows, columns=["panel", "class", "x_1", "x_2"]), 2.0
    ).axes[0]
    drawn = np.concatenate([points.get_offsets() for points in ax.collections])
    assert len(drawn) == 8
    assert np.abs(np.abs(drawn[:, 0]) - 1).max() < 0.4
    (border,) = ax.lines
    x_1, x_2 = border.get_data()
    assert x_1 + x_2 / 2.0 == pytest.approx(np.zeros(2))


def test_curves_mark_finite_optima_only():
    rows = [("clean", name, w, 0.5 + 0.1 * w) for name in ("+1", "-1") for w in (1.0, 2.0)]
    table = pd.DataFrame(rows, columns=["panel", "class", "w", "accuracy"])
    optima = pd.DataFrame({"panel": "clean", "class": ["+1", "-1"], "w": [1.5, inf]})
    ax = plots_cfa.toy_curves(table, optima).axes[0]
    assert line(ax, "class +1").get_ydata() == pytest.approx([60, 70])
    assert [drawn.get_xdata()[0] for drawn in ax.lines if drawn.get_linestyle() == ":"] == [1.5]


def test_an_infinite_optimum_is_a_cross_and_no_number():
    table = pd.DataFrame(
        {"panel": "all", "class": "+1", "eps": [0.0, 0.1, 0.2], "w": [1.0, 2.0, inf]}
    )
    table = pd.concat([table, table.assign(**{"class": "-1", "w": [0.5, 1.0, 1.5]})])
    ax = plots_cfa.optimum_curves(table).axes[0]
    assert line(ax, "class +1").get_ydata() == pytest.approx([1, 2])
    crosses = [drawn.get_xdata().tolist() for drawn in ax.lines if drawn.get_marker() == "x"]
    assert crosses == [[0.2], []]


def test_jumps_are_the_mean_over_seeds_of_the_absolute_change():
    table = pd.DataFrame(
        [
            ("AT", s, e, 0.5 + 0.1 * e, 0.2 + 0.1 * (-1) ** (e + s))
            for s in (0, 1)
            for e in (1, 2, 3)
        ],
        columns=["panel", "seed", "epoch", "average", "worst"],
    )
    above, below = plots_cfa.epoch_jumps(table).axes
    # the seeds' jumps cancel in the mean
    assert line(above, "worst").get_ydata() == pytest.approx([20, 20, 20])
    heights = [patch.get_height() for patch in below.patches]
    assert np.nan_to_num(heights).tolist() == pytest.approx([0, 10, 10, 0, 20, 20])


def test_learning_curves_draw_both_splits_and_where_the_rate_falls():
    columns = {"panel": "AT", "epoch": [1, 2, 1, 2], "split": ["train", "train", "valid", "valid"]}
    table = pd.DataFrame(columns | {"accuracy": [0.5, 0.7, 0.4, 0.3]})
    (ax,) = plots_cfa.learning_curves(table, steps=[1.5]).axes
    assert line(ax, "train").get_ydata() == pytest.approx([50, 70])
    assert line(ax, "valid").get_ydata() == pytest.approx([40, 30])
    assert ax.lines[-1].get_xdata() == [1.5, 1.5]


def test_a_method_goes_from_its_first_row_to_a_hollow_last_one_on_axes_with_room():
    table = pd.DataFrame(
        {
            "panel": "a",
            "method": ["AT", "AT", "CFA"],
            "average": [0.5, 0.45, 0.501],
            "worst": [0.2, 0.15, 0.201],
        }
    )
    ax = plots_cfa.panel_frontiers(table).axes[0]
    assert ax.lines[0].get_xdata() == pytest.approx([50, 45])
    hollow = [np.asarray(dots.get_offsets()).tolist() for dots in ax.collections[1::2]]
    assert hollow[0] == pytest.approx(np.array([[45, 15]]))
    assert hollow[1] == []
    close = pd.DataFrame(
        {"panel": "a", "method": ["AT", "CFA"], "average": [0.5, 0.501], "worst": [0.2, 0.201]}
    )
    ax = plots_cfa.panel_frontiers(close).axes[0]
    assert np.ptp(ax.get_ylim()) == pytest.approx(5)
    assert np.ptp(ax.get_xlim()) > 5  # and room for the names


def spans(ax):
    """Centres, and the ends of the whiskers, of each series of dots."""
    centres = [drawn.lines[0].get_xydata() for drawn in ax.containers]
    whiskers = [np.array(drawn.lines[2][0].get_segments()) for drawn in ax.containers]
    return centres, whiskers


def test_settings_are_differences_to_their_base_with_whiskers():
    columns = ["panel", "value", "average_difference", "average_low", "average_high"]
    columns += ["worst_difference", "worst_low", "worst_high"]
    rows = [("λ", 0.3, -0.01, -0.02, 0.01, 0.05, 0.01, 0.1), ("λ", 0.5, 0, 0, 0, 0.1, 0, 0.2)]
    ax = plots_cfa.setting_curves(pd.DataFrame(rows, columns=columns)).axes[0]
    (average, worst), (around, _) = spans(ax)
    assert average[:, 1] == pytest.approx([-1, 0])
    assert worst[:, 1] == pytest.approx([5, 10])
    assert around[0][:, 1] == pytest.approx([-2, 1])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.3", "0.5"]


def test_variants_are_rows_with_whiskers_and_groups_stand_apart():
    table = pd.DataFrame({"panel": ["a", "a", "b"], "method": ["AT", "AT + CCM", "TRADES"]})
    for name, values in {"average": [0.7, 0.6, 0.5], "worst": [0.1, 0.2, 0.3]}.items():
        table[name] = values
        table[f"{name}_low"] = table[name] - 0.05
        table[f"{name}_high"] = table[name] + 0.1
    left, right = plots_cfa.variant_rows(table).axes
    assert left.get_title("left") == "average"
    assert spans(right)[0][0] == pytest.approx(np.array([[10, 0], [20, 1], [30, 3]]))
    assert spans(left)[1][0][0][:, 0] == pytest.approx([65, 80])
    assert [tick.get_text() for tick in left.get_yticklabels()] == list(table.method)
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first row is the uppermost


def test_groups_are_means_of_their_classes_and_hard_ones_are_named():
    rows = [
        ("clean", name, group, v, a + 0.1 * v)
        for name, group, a in (("cat", "hard", 0.2), ("dog", "hard", 0.3), ("car", "easy", 0.7))
        for v in (1, 2)
    ]
    table = pd.DataFrame(rows, columns=["panel", "class", "group", "eps", "accuracy"])
    ax = plots_cfa.class_groups(table, "eps").axes[0]
    assert line(ax, "hard classes").get_ydata() == pytest.approx([35, 45])
    assert line(ax, "easy classes").get_ydata() == pytest.approx([80, 90])
    assert [text.get_text() for text in ax.texts] == ["cat", "dog"]
