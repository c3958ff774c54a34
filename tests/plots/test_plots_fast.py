"""The figures of fast training draw what their tables say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from crat import plots
from crat.plots import fast as plots_fast
from crat.plots.marks import RED


@pytest.fixture(autouse=True)
def style():
    plots.use_style()
    yield
    plt.close("all")


def test_a_fall_is_framed_at_its_class_and_epoch():
    rows = [
        ("seed 0", name, epoch, acc)
        for name, curve in {"bag": (0.8, 0.3, 0.1), "coat": (0.5, 0.5, 0.5)}.items()
        for epoch, acc in enumerate(curve, start=1)
    ]
    table = pd.DataFrame(rows, columns=["panel", "class", "epoch", "robust_acc"])
    fallen = pd.DataFrame({"panel": "seed 0", "class": ["bag", "coat"], "epoch": [2.0, np.inf]})
    ax = plots_fast.falls(table, fallen).axes[0]
    (frame,) = ax.patches
    assert frame.get_xy() == (1, 0)  # the second epoch of the first class
    assert plt.matplotlib.colors.to_hex(frame.get_edgecolor()).upper() == RED
    assert ax.collections[0].get_array().ravel()[:3].tolist() == pytest.approx([80, 30, 10])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["bag", "coat"]


def test_methods_stand_at_their_seconds_and_are_named():
    rows = [("AT", 100.0, 0.5, 0.1), ("AT", 100.0, 0.6, 0.2), ("FGSM", 20.0, 0.2, 0.0)]
    table = pd.DataFrame(rows, columns=["method", "seconds", "average", "worst"])
    axes = plots_fast.against_time(table).axes
    assert axes[0].collections[0].get_offsets().tolist() == [[100, 50], [100, 60]]
    assert axes[1].collections[1].get_offsets().tolist() == [[20, 0]]
    for ax in axes:
        assert {text.get_text() for text in ax.texts} == {"AT", "FGSM"}


def test_each_bar_has_its_seeds_and_their_mean():
    rows = [
        ("one step", "average", 0, 0.5),
        ("one step", "average", 1, 0.7),
        ("one step+EMA", "average", 0, 0.8),
        ("one step", "worst", 0, 0.1),
    ]
    table = pd.DataFrame(rows, columns=["bar", "functional", "seed", "value"])
    axes = plots_fast.seeds_by_bar(table).axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["one step", "one step+EMA"]
    points = axes[0].collections[0].get_offsets()
    assert points[:, 0].tolist() == pytest.approx([50, 70])
    assert axes[0].lines[0].get_xdata() == pytest.approx([60, 60])
    assert axes[1].get_ylim() == axes[0].get_ylim()
