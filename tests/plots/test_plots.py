"""Figures are tested by their data: what is drawn is what the table says, and the table lies
beside the picture.
"""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.container import BarContainer

from crat import plots
from crat.analysis import metrics
from crat.plots import base as plots_base
from crat.plots import methods as plots_methods

NAMES = ("cat", "car", "ship")


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


@pytest.fixture
def summary():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 50)
    clean = np.where(rng.random(150) < 0.9, y, (y + 1) % 3)
    return metrics.summary(
        y, clean, {"PGD": np.where(rng.random(150) < 0.3 * (1 + y), clean, (y + 1) % 3)}, NAMES
    )


def bars(ax, i):
    container = [c for c in ax.containers if isinstance(c, BarContainer)][i]
    return [patch.get_height() for patch in container]


def test_class_bars_draw_the_table_sorted_with_the_worst_marked(summary):
    table = summary[summary.attack == "PGD"]
    ax = plots.class_bars(table, "title").axes[0]
    ordered = table.sort_values("robust_acc", ascending=False)
    assert bars(ax, 1) == pytest.approx(list(100 * ordered.robust_acc))
    assert bars(ax, 0) == pytest.approx(list(100 * ordered.clean_acc))
    assert [label.get_text() for label in ax.get_xticklabels()] == list(ordered["class"])
    colours = [patch.get_facecolor() for patch in ax.containers[1]]
    assert colours[-1] != colours[0] == colours[1]


def test_method_bars_share_one_order(summary):
    table = pd.concat([summary.assign(method=m) for m in ("pgd_at", "trades")])
    table = table[table.attack == "PGD"]
    ax = plots.method_bars(table).axes[0]
    assert bars(ax, 0) == bars(ax, 1) == sorted(bars(ax, 0), reverse=True)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["PGD-AT", "TRADES"]


def test_curves_name_best_and_worst():
    rows = [("AT", e, name, 0.1 * e + 0.2 * k) for e in (1, 2) for k, name in enumerate(NAMES)]
    figure = plots.class_curves(
        pd.DataFrame(rows, columns=["panel", "epoch", "class", "robust_acc"])
    )
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["average", "cat", "ship"]
    average = next(line for line in figure.axes[0].lines if line.get_label() == "average")
    assert average.get_ydata() == pytest.approx([30, 40])


def test_heat_maps_write_percent_and_keep_the_order():
    figure = plots.confusion_heat({"a": np.eye(3), "b": np.full((3, 3), 1 / 3)}, NAMES)
    # what rounds to 0 is blank
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == ["100", "", "", "", "100", "", "", "", "100"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["33"] * 9
    ranks = pd.DataFrame(
        [(a, b, float(a == b)) for a in "xy" for b in "xy"], columns=["row", "column", "rho"]
    )
    assert [text.get_text() for text in plots.rank_heat(ranks).axes[0].texts] == [
        "1.00",
        "0.00",
        "0.00",
        "1.00",
    ]


def test_scatter_temperature_shares_and_images():
    points = pd.DataFrame(
        {"panel": "AT", "class": NAMES, "norm": [1, 2, 3], "robust_acc": [0.1, 0.5, 0.9]}
    )
    ax = plots.class_scatter(points, "norm", "robust_acc", "x", "y").axes[0]
    assert {text.get_text() for text in ax.texts} == set(NAMES)
    sweep = pd.DataFrame(
        [("pgd_at", s, t, 0.5, 0.1 * t, 0.2) for s in "01" for t in (0.1, 1.0)],
        columns=["method", "seed", "temperature", "average", "worst", "spread"],
    )
    assert plots.temperature_curves(sweep).axes[1].lines[0].get_ydata() == pytest.approx([1, 10])
    shares = pd.DataFrame(
        [("b", "kept", 0.7), ("b", "gone", 0.3)], columns=["bar", "part", "share"]
    )
    assert [
        patch.get_width() for patch in plots.stacked_shares(shares).axes[0].patches
    ] == pytest.approx([70, 30])
    rows = {"image": np.ones((2, 4, 4, 3)), "change": np.full((2, 4, 4), -0.1)}
    assert len(plots.image_rows(rows, ["a", "b"]).axes) == 4


def test_saved_with_its_table_and_the_same_bytes_twice(tmp_path, monkeypatch, summary):
    monkeypatch.setenv("CRAT_FIGURES", str(tmp_path))
    table, written = summary[summary.attack == "PGD"], []
    for _ in range(2):
        plots.save(plots.class_bars(table), table, "00_x", "bars")
        written.append({path.name: path.read_bytes() for path in (tmp_path / "00_x").iterdir()})
    assert set(written[0]) == {"bars.png", "bars.pdf", "bars.csv"}
    assert written[0] == written[1]
    read = pd.read_csv(tmp_path / "00_x" / "bars.csv")
    assert read.robust_acc.to_numpy() == pytest.approx(table.robust_acc.to_numpy(), rel=1e-5)


def test_policies_are_drawn_class_by_class_with_the_accepted_epochs():
    rows = [
        {"epoch": e, "split": split, "class": name, "eps": 0.1 * (k + e), "accepted": e == 2}
        for e in (1, 2, 3)
        for split in ("train", "valid")
        for k, name in enumerate(NAMES)
    ]
    table = plots_methods.policy_table(pd.DataFrame(rows), ["eps"], "CFA")
    ax = plots_methods.policy_curves(table).axes[0]
    assert ax.get_title("left") == "CFA: eps"
    drawn = {line.get_label(): line for line in ax.get_lines()}
    assert drawn["smallest at the end"].get_ydata() == pytest.approx([0.1, 0.2, 0.3])
    assert drawn["largest at the end"].get_ydata() == pytest.approx([0.3, 0.4, 0.5])
    named = {text.get_text(): text.get_color() for text in ax.texts}
    assert named == {"cat": plots.GREEN, "ship": plots.PINK}
    assert list(drawn["enters the average"].get_xdata()) == [2]


def test_classes_with_the_same_least_value_are_counted():
    rows = [("p", e, k, 1.0 + (k == "cat") * e, False) for e in (1, 2) for k in NAMES]
    table = pd.DataFrame(rows, columns=["panel", "epoch", "class", "value", "accepted"])
    (ax,) = plots_methods.policy_curves(table).axes
    assert {text.get_text() for text in ax.texts} == {"cat", "2 classes"}


def test_an_arrow_leads_from_a_method_without_an_average_to_that_with_one():
    runs = pd.DataFrame(
        {
            "method": ["AT", "AT", "AT+EMA", "CSR", "CSR+EMA"],
            "average": [0.70, 0.72, 0.75, 0.73, 0.74],
            "worst": [0.30, 0.34, 0.31, 0.36, 0.40],
        }
    )
    pairs = {"AT": ("AT", "AT+EMA"), "CSR": ("CSR", "CSR+EMA")}
    ax = plots_methods.average_moves(pairs, runs).axes[0]
    arrows = [text for text in ax.texts if not text.get_text()]
    tails = [arrow.xyann for arrow in arrows]
    assert np.allclose(tails, [(71, 32), (73, 36)]), "the mean of the runs without the average"
    assert np.allclose([arrow.xy for arrow in arrows], [(75, 31), (74, 40)])
    assert {"AT", "CSR"} <= {text.get_text() for text in ax.texts}
    faces = [points.get_facecolor()[0] for points in ax.collections[:4]]
    white = [np.allclose(face, 1) for face in faces]
    assert white == [True, False, True, False], "an open mark, then a filled one"


def test_the_frontier_has_a_dot_a_run_and_a_mark_a_method():
    table = pd.DataFrame(
        {"method": ["A", "A", "B"], "average": [0.6, 0.8, 0.5], "worst": [0.2, 0.4, 0.1]}
    )
    ax = plots_methods.frontier(table).axes[0]
    drawn = [c.get_offsets().tolist() for c in ax.collections if len(c.get_offsets())]
    assert [np.ravel(mean).tolist() for mean in drawn] == [pytest.approx([70, 30]), [50, 10]]
    runs = [line.get_xydata()[0].tolist() for line in ax.lines if line.get_marker() == "."]
    assert np.ravel(runs) == pytest.approx([60, 20, 80, 40])
    joins = [line.get_xydata()[0].tolist() for line in ax.lines if line.get_marker() == "None"]
    assert np.ravel(joins) == pytest.approx([70, 30] * 2)
    assert {"A", "B (one seed)"} <= {text.get_text() for text in ax.texts}


def test_what_one_network_offers_is_a_line_for_its_first_seed_and_crosses_for_others():
    table = pd.DataFrame({"method": ["A", "B"], "average": [0.6, 0.5], "worst": [0.2, 0.1]})
    rows = [(0, 0.8, 0.2), (0, 0.7, 0.4), (1, 0.79, 0.21), (0, 0.65, 0.5)]
    offer = pd.DataFrame(rows, columns=["seed", "average", "worst"])
    ax = plots_methods.frontier(table, offers={"A with a bias": offer}).axes[0]
    line, crosses = (line for line in ax.lines if line.get_marker() in ".x")
    assert np.ravel(line.get_xydata()) == pytest.approx([80, 20, 70, 40, 65, 50])
    assert np.ravel(crosses.get_xydata()) == pytest.approx([79, 21])
    (name,) = (text for text in ax.texts if text.get_text() == "A with a bias")
    assert name.xy == pytest.approx([70, 40])
    low, high = ax.get_ylim()
    assert low < 10 < 50 < high


def test_where_all_weights_are_averaged_every_mark_is_filled_and_no_legend_says_so():
    table = pd.DataFrame({"method": ["AT", "Adv"], "average": [0.6, 0.5], "worst": [0.2, 0.1]})
    ax = plots_methods.frontier(table, averaged=True).axes[0]
    faces = [marks.get_facecolor()[0] for marks in ax.collections]
    assert np.allclose(faces, [to_rgba(plots.mark(name).colour) for name in ("AT", "Adv")])
    assert ax.get_legend() is None


def extents(ax):
    ax.figure.draw_without_rendering()
    return [plt.Text.get_window_extent(text) for text in ax.texts]  # without its line


LINE = np.linspace(0.70, 0.72, 12)
PLACES = {"a line": (LINE, LINE[::-1] - 0.4)} | {
    f"scattered {i}": np.random.default_rng(i).random((2, 26)) for i in range(3)
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_no_name_is_left_out_or_lies_on_another(places):
    average, worst = places
    names = [f"method {i}" for i in range(len(average))]
    table = pd.DataFrame({"method": names, "average": average, "worst": worst})
    ax = plots_methods.frontier(table).axes[0]
    assert len(ax.texts) == len(names)
    assert not any(a.overlaps(b) for a, b in combinations(extents(ax), 2))


def test_names_at_ends_stay_in_their_order_and_apart():
    figure, ax = plt.subplots()
    heights = {"low": 10, "twin": 50.0, "other twin": 50.2, "high": 90}
    ax.plot([0, 1], [list(heights.values())] * 2)
    figure.draw_without_rendering()
    plots_base.name_ends(ax, {k: (1, y, "black") for k, y in heights.items()}, figure.dpi / 72)
    assert [text.get_text() for text in ax.texts] == list(heights)
    assert not any(a.overlaps(b) for a, b in combinations(extents(ax), 2))
    assert [text.xyann[1] for text in ax.texts][::3] == pytest.approx([0, 0])


def test_of_classes_that_are_alike_none_is_named():
    rows = [("p", e, k, 0.001 * e) for e in (1, 2) for k in NAMES]
    table = pd.DataFrame(rows, columns=["panel", "epoch", "class", "robust_acc"])
    ax = plots.class_curves(table).axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["average"]


def test_the_heat_of_classes_is_coloured_by_the_difference_to_the_base():
    table = pd.DataFrame(
        {
            "method": ["A"] * 3 + ["B"] * 3,
            "class": [*NAMES] * 2,
            "robust_acc": [0.5, 0.2, 0.9, 0.6, 0.1, 0.9],
        }
    )
    ax = plots_methods.class_heat(table, base="A").axes[0]
    # the base's order, weakest first
    assert [t.get_text() for t in ax.get_xticklabels()] == ["car", "cat", "ship"]
    assert [t.get_text() for t in ax.texts] == ["20", "50", "90", "10", "60", "90"]
    assert ax.collections[0].get_array().ravel().tolist() == pytest.approx([0, 0, 0, -10, 10, 0])


def test_the_atlas_places_each_printed_number():
    table = pd.DataFrame(
        {"method": ["A", "A", "B"], "source": ["p", "q", "p"], "AA worst": [20.0, 22.0, np.nan]}
    )
    ax = plots_methods.atlas(table).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["A"]
    assert sorted(c.get_offsets()[0][0] for c in ax.collections) == [20, 22]


def test_the_atlas_gives_a_paper_a_shape_and_a_method_its_colour():
    sources = ["p", "p, last epoch", "q"]
    table = pd.DataFrame({"method": "AT", "source": sources, "AA worst": [20.0, 15.0, 21.0]})
    ax = plots_methods.atlas(table).axes[0]
    assert [line.get_marker() for line in ax.lines] == ["o", "o", "s"]
    faces = [dots.get_facecolor()[0].tolist() for dots in ax.collections]
    assert faces[1] == [1, 1, 1, 1]
    assert faces[0] == faces[2] == list(to_rgba(plots.BLUE))
