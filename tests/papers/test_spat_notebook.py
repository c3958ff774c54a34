"""Notebook 03: the data of its figures, the floor of SPAT's loss, the runs of its plan."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from crat import plots
from crat.defenses.spat import self_paced
from crat.papers.spat import MAIN, TERMS, plan
from crat.plots import spat as plots_spat


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


def test_functions_are_drawn_as_given_a_panel_each():
    rows = [
        (p, line, x, k * x)
        for p in ("a", "b")
        for k, line in enumerate(("one", "two"))
        for x in (0.0, 1.0)
    ]
    figure = plots_spat.function_lines(
        pd.DataFrame(rows, columns=["panel", "line", "x", "value"]), "z"
    )
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a", "b"]
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[1].lines[:2]}
    assert lines == {"one": [0, 0], "two": [0, 1]}


def test_lines_that_coincide_share_a_name_at_the_right_and_part_at_the_left():
    x = np.array([-1.0, 0.0, 1.0])
    of_lines = {"free": x, "cut": x.clip(0), "flat": 0 * x + 0.5}
    tables = [pd.DataFrame({"line": k, "x": x, "value": v}) for k, v in of_lines.items()]
    table = pd.concat(tables).assign(panel="p")
    wide = table.pivot(index="x", columns="line", values="value")[[*of_lines]]
    assert plots_spat.same_at(wide.loc[1.0]) == {("flat",): 0.5, ("free", "cut"): 1.0}
    assert plots_spat.parted_left(wide) == {("free",): -1.0, ("cut",): 0.0}
    ax = plots_spat.function_lines(table, "z", wide=1).axes[0]
    assert ax.get_legend() is None
    assert [text.get_text() for text in ax.texts[:2]] == ["flat", "all but flat"]
    assert {text.get_text() for text in ax.texts[2:]} == {"free", "cut"}


def test_dots_of_methods_have_their_shapes():
    table = pd.DataFrame({"row": ["a", "a"], "series": ["SPAT", "AT"], "share": [0.5, 0.4]})
    (ax,) = plots_spat.share_dots(table, "share (%)").axes
    spat, at = ax.collections
    assert len(spat.get_paths()[0]) < len(at.get_paths()[0])  # a triangle, a circle
    assert spat.get_offsets()[0, 1] == pytest.approx(-at.get_offsets()[0, 1])


def test_shares_stand_in_the_order_of_the_table_in_percent():
    rows = [
        ("left", row, s, 0.1 * i + 0.3, 0.2, 0.9)
        for i, row in enumerate(("SPAT", "AT"))
        for s in ("last", "first")
    ]
    rows += [("right", "AT", "last", 0.5, 0.4, 0.6)]
    table = pd.DataFrame(rows, columns=["panel", "row", "series", "share", "low", "high"])
    left, right = plots_spat.share_dots(table, "share (%)", marked=0.25).axes
    dots = {
        d.get_label(): np.asarray(d.get_offsets())
        for d in left.collections
        if d.get_label() in ("last", "first")
    }
    assert dots["last"][:, 0] == pytest.approx([30, 40])
    assert dots["last"][0, 1] < dots["first"][0, 1] < dots["last"][1, 1]  # rows do not overlap
    assert [text.get_text() for text in left.get_yticklabels()] == ["SPAT", "AT"]
    assert left.yaxis_inverted()
    assert right.lines[0].get_xdata()[0] == 25
    assert right.collections[0].get_segments()[0][:, 0] == pytest.approx([40, 60])


def test_shares_without_intervals_and_panels():
    table = pd.DataFrame({"row": ["a"], "series": ["s"], "share": [0.5]})
    (ax,) = plots_spat.share_dots(table, "share (%)", title="title").axes
    assert ax.get_title(loc="left") == "title"
    assert ax.get_legend() is None


def test_transfer_writes_the_source_down_and_the_judged_across():
    rows = [
        (a, b, 0.1 if a == b else 0.8 if a == "AT" else 0.6)
        for a in ("AT", "SPAT")
        for b in ("AT", "SPAT")
    ]
    table = pd.DataFrame(rows, columns=["crafted_on", "judged", "robust_acc"])
    ax = plots_spat.transfer_heat(table).axes[0]
    assert [text.get_text() for text in ax.texts] == ["10.0", "80.0", "60.0", "10.0"]


@pytest.mark.parametrize("m", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("s", [4.0, 8.0])
def test_no_cosines_bring_the_released_loss_below_its_floor(s, m):
    k = 10
    floor = np.log1p((k - 1) * np.exp(-s * ((1 + m) ** 2 + m**2) / 4))
    z = 2 * torch.rand(5000, k, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    y = torch.arange(5000) % k
    best = torch.full((1, k), -m / 2, dtype=torch.float64)
    best[0, 0] = (1 + m) / 2
    losses = F.cross_entropy(s * self_paced(z, y, m), y, reduction="none")
    assert losses.min() >= floor
    lowest = F.cross_entropy(
        s * self_paced(best, torch.zeros(1, dtype=torch.long), m), torch.zeros(1, dtype=torch.long)
    )
    assert lowest.item() == pytest.approx(floor, abs=1e-12)


def test_the_plan_holds_what_the_notebook_compares():
    runs = plan("quick", 3)
    assert runs["live"].train.seed == 3
    assert {f"{name}-s0" for name in (*TERMS, "AT", "TRADES", "undefended")} <= runs.keys()
    assert {f"main {name}-s{s}" for name in MAIN for s in (0, 1, 2)} <= runs.keys()
    # the method never stands without its control
    assert {"CE + KL", "L_sp + L_hcp"} <= TERMS.keys()
    # nothing is trained to draw the laptop figures
    assert plan("laptop")["live"] == runs["main SPAT-s0"]
    assert all(
        run.train.average == "ema_update"
        for key, run in runs.items()
        if not key.startswith(("main", "live"))
    )
