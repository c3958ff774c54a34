"""Each method has one colour and one shape, by whichever name and in whichever figure."""

import csv
from itertools import combinations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from crat import plots
from crat.config import ConfigError
from crat.papers.all_methods import PURPOSES, TRIED
from crat.plots import marks
from crat.plots import methods as plots_methods
from crat.store.files import published_home

ONE = {
    "AT": ("pgd_at", "PGD-AT", "AT+EMA", "AT + EMA", "AT, bias", "pgd_at, PGD-20"),
    "TRADES": ("trades", "TRADES + FAWA", "TRADES, cosine head"),
    "Adv+": ("Adv+ +EMA", "fine-tuned: Adv+, 0 clean", "tuned Adv+"),
    "CFA (AT)": ("CFA (AT)+EMA", "CIFAR-10, CFA (AT)+EMA"),
    "standard": ("base", "main base", "undefended", "standard, clean"),
}


@pytest.mark.parametrize(("method", "name"), [(m, n) for m, names in ONE.items() for n in names])
def test_a_method_has_one_colour_and_shape_by_all_its_names(method, name):
    one, other = plots.mark(method), plots.mark(name)
    assert (one.colour, one.shape) == (other.colour, other.shape)


def test_no_two_methods_look_alike():
    looks = list(marks.MARKS.values())
    assert len(set(looks)) == len(looks)
    assert marks.RED not in {colour for colour, _ in looks}  # the worst class's


def test_those_that_one_figure_shows_differ_in_colour():
    shown = [marks.mark(name) for name in TRIED]
    pairs = combinations({(look.colour, look.shape) for look in shown}, 2)
    assert all(a[0] != b[0] for a, b in pairs)


def test_every_method_with_a_claim_or_a_run_is_in_the_table():
    names = {row[2] for row in PURPOSES.values()} | set(TRIED)
    assert [name for name in sorted(names) if not marks.known(name)] == []


def test_every_method_that_a_paper_printed_is_in_the_table():
    with (published_home() / "published_numbers.csv").open(encoding="utf-8") as numbers:
        methods = {row["method"] for row in csv.DictReader(numbers)}
    assert [name for name in sorted(methods) if not marks.known(name)] == []


def test_filled_says_that_the_weights_were_averaged():
    assert plots.mark("AT+EMA").averaged
    assert plots.mark("CFA (AT)").averaged
    assert not plots.mark("AT").averaged
    assert plots.mark("AT").points["facecolor"] == "white"
    assert plots.mark("AT+EMA").points["facecolor"] == marks.BLUE


def test_an_unknown_method_has_a_mark_that_stays():
    assert marks.mark("mine").shape == marks.mark("mine+EMA").shape
    assert marks.mark("mine").colour == marks.BLACK
    assert marks.colours(["AT", "mine"]) == [marks.BLUE, marks.BLACK]
    assert marks.colours(["one seed", "another"]) == list(marks.SERIES[:2])
    assert marks.colours(["AT", "TRADES"]) == [marks.BLUE, marks.GREEN]


@pytest.mark.parametrize("kind", ["notebook", "talk"])
def test_no_text_of_a_figure_is_smaller_than_nine_points(kind):
    plots.use_style(kind)
    names = ["AT", "TRADES", "SPAT"]
    rows = [(n, 0.1 * i, 0.2 * i) for i, n in enumerate(names)]
    table = pd.DataFrame(rows, columns=["method", "average", "worst"])
    figure = plots_methods.frontier(table)
    sizes = [text.get_fontsize() for text in figure.findobj(plt.Text) if text.get_text()]
    plt.close("all")
    assert min(sizes) >= 9
    assert (min(sizes) >= 11) == (kind == "talk")


def test_another_kind_of_figure_is_refused():
    with pytest.raises(ConfigError, match=r"kind of figure"):
        plots.use_style("poster")


def test_a_class_has_the_colour_of_its_place_whatever_is_drawn():
    ten = plots.class_colours([str(k) for k in range(12)])
    assert len(set(ten.values())) == 10
    assert ten["0"] == ten["10"]
    assert marks.RED not in ten.values()
