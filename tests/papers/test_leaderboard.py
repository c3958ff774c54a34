"""The leaderboard: its numbers by hand, its order, and that it is of published runs only."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crat.outcomes import usual_battery
from crat.papers.all_methods import ON_CIFAR10, TRIED
from crat.papers.common import BASELINE
from crat.papers.evidence import Evidence
from crat.papers.leaderboard import (
    NUMBERS,
    attack_name,
    by_class,
    leaderboard,
    numbers,
    published_runs,
    ranked,
)
from crat.store import Store

Y = np.repeat([0, 1], 4)


def test_numbers_are_means_and_deviations_over_runs():
    clean = np.array([[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]], bool)
    attacked = np.array([[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0]], bool)
    row = numbers(Y, clean, attacked)
    assert set(row) == set(NUMBERS)
    assert (row["clean"], row["average"], row["worst"]) == pytest.approx((0.875, 0.6875, 0.375))
    assert row["gap"] == pytest.approx(0.625)
    assert row["worst_sd"] == pytest.approx(np.std([0.25, 0.5], ddof=1))
    assert np.isnan(numbers(Y, clean[:1], attacked[:1])["average_sd"])


def test_methods_of_several_seeds_come_first():
    board = pd.DataFrame(
        {"method": ["one", "two", "three"], "seeds": [1, 3, 3], "average": [0.9, 0.5, 0.6]}
    )
    assert ranked(board).method.tolist() == ["three", "two", "one"]


def test_every_tried_method_is_published_and_read_as_a_notebook_reads_it():
    board = leaderboard("quick").set_index("method")
    assert set(board.index) == set(TRIED)
    evidence = Evidence.of("06", "quick")
    test = evidence.judge(evidence.battery, [f"{BASELINE}-s{s}" for s in evidence.seeds])
    assert board.loc[BASELINE, "worst"] == pytest.approx(test.each(BASELINE, "worst").mean())
    assert board.loc[BASELINE, "seeds"] == 3


def test_cifar10_has_its_own_board():
    board = leaderboard("laptop", dataset="CIFAR-10").set_index("method")
    assert set(board.index) == set(ON_CIFAR10)
    assert set(board.seeds) == {3}
    evidence = Evidence.of("06", "quick")
    test = evidence.judge(usual_battery("cifar10"), evidence.planned(f"cifar10: {BASELINE}"))
    worst = test.each(f"cifar10: {BASELINE}", "worst", "PGD-20")
    assert board.loc[BASELINE, "worst"] == pytest.approx(worst.mean())
    assert set(by_class("laptop", dataset="cifar10").columns) == set(test.classes)
    assert attack_name("laptop", "cifar10") == "PGD-20"


def test_recomputed_runs_are_not_on_it():
    assert leaderboard("laptop", Store.recomputed()).empty


def test_the_classes_of_a_method_average_to_its_row():
    """Fashion-MNIST's classes are of equal size; the weakest on average stands first."""
    board = leaderboard("laptop").set_index("method")
    classes = by_class("laptop")
    assert set(classes.index) == set(board.index)
    assert np.allclose(classes.mean(axis=1), board.average[classes.index])
    assert classes.mean().is_monotonic_increasing
    assert (classes.min(axis=1) >= board.worst[classes.index] - 1e-9).all()


def test_no_published_run_has_no_classes(monkeypatch):
    monkeypatch.setattr("crat.store.files.published_home", lambda: Path("nothing"))
    assert published_runs("laptop") == {}
    assert by_class("laptop").empty
