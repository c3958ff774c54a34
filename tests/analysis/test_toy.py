"""CFA's toy model: closed form against counted points, optimum against a fine search, the
theorems as properties.
"""

from math import inf, log

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crat.analysis import toy

CASES = [
    (p, eta, d, eps, first)
    for p in (0.4, 0.7, 0.9)
    for eta, d in ((0.3, 1), (0.45, 4))
    for eps, first in ((0.0, False), (0.2, False), (0.2, True))
]
GRID = np.geomspace(1e-4, 1e4, 8001)

probability = st.floats(0.51, 0.98)
eta = st.floats(0.1, 0.49)
share = st.floats(0.0, 0.9)  # of eta: eps
width = st.floats(0.05, 30)
features = st.integers(1, 20)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("w", [0.3, 1.5, 6.0])
def test_closed_form_is_what_points_count_up_to(case, w):
    p, eta, d, eps, first = case
    n = 20_000
    x, y = toy.draw(n, {1: p, -1: 0.6}, eta, d, np.random.default_rng(0))
    right = toy.classify(toy.attack(x, y, eps, first=first), w) == y
    for label, p_label in ((1, p), (-1, 0.6)):
        expected = float(toy.accuracy(w, p_label, eta, d, eps, first=first))
        assert right[y == label].mean() == pytest.approx(expected, abs=4.5 * np.sqrt(0.25 / n))


def test_no_point_within_eps_is_worse_than_the_attacked_one():
    rng = np.random.default_rng(1)
    x, y = toy.draw(200, {1: 0.8, -1: 0.6}, 0.3, 2, rng)
    for first in (False, True):
        worst = toy.classify(toy.attack(x, y, 0.2, first=first), 1.3) == y
        for _ in range(50):
            step = rng.uniform(-0.2, 0.2, x.shape)
            step[:, 0] *= first
            assert not (worst & (toy.classify(x + step, 1.3) != y)).any()


def test_the_attack_leaves_the_first_feature_unless_it_is_asked_for():
    x, y = np.array([[1.0, 0.5, -0.1], [-1.0, 0.2, 0.3]]), np.array([1, -1])
    assert toy.attack(x, y, 0.2) == pytest.approx(np.array([[1, 0.3, -0.3], [-1, 0.4, 0.5]]))
    assert toy.attack(x, y, 0.2, first=True) == pytest.approx(
        np.array([[0.8, 0.3, -0.3], [-0.8, 0.4, 0.5]])
    )
    assert toy.accuracy(2.0, 0.8, 0.3, 1, 0.1) == toy.accuracy(2.0, 0.8, 0.3, 1, 0.1, first=False)
    assert toy.accuracy(2.0, 0.8, 0.3) == toy.accuracy(2.0, 0.8, 0.3, 1, 0.0)
    assert (
        toy.best_w(0.8, 0.4, eps=0.02, first=True)
        == toy.best_w(0.8, 0.4, 1, 0.02, first=True)
        < inf
    )
    assert toy.best_w(0.8, 0.4, 2, 0.02, first=True) != toy.best_w(0.8, 0.4, 1, 0.02, first=True)
    assert toy.infinite_from(0.9, 0.4) == toy.infinite_from(0.9, 0.4, 1)
    assert toy.best_w(0.8, 0.4, 3, 0.1) == toy.best_w(0.8, 0.4, 3, 0.1, first=False)


@pytest.mark.parametrize("case", CASES)
def test_the_optimum_is_that_of_a_fine_search(case):
    p, eta, d, eps, first = case
    found, searched = (
        toy.best_w(p, eta, d, eps, first=first),
        toy.accuracy(GRID, p, eta, d, eps, first=first),
    )
    # then the search ends at its edge, which proves nothing by itself: nothing may lie above
    if found in (0.0, inf):
        edge = p if found == inf else float(toy.accuracy(1e-9, p, eta, d, eps, first=first))
        assert searched.max() <= edge + 1e-12
    else:
        assert GRID[0] < found < GRID[-1]
        assert float(toy.accuracy(found, p, eta, d, eps, first=first)) == pytest.approx(
            searched.max(), abs=1e-7
        )


def test_the_formula_of_the_symmetric_form():
    assert (
        toy.best_w(0.8, 0.4, eps=0.02, first=True)
        == toy.best_w(0.8, 0.4, 1, 0.02, first=True)
        < inf
    )
    assert toy.best_w(0.8, 0.4, 2, 0.02, first=True) != toy.best_w(0.8, 0.4, 1, 0.02, first=True)
    assert toy.infinite_from(0.9, 0.4) == toy.infinite_from(0.9, 0.4, 1)
    assert toy.best_w(0.8, 0.4, 3, 0.1) == pytest.approx(log(4) / (2 * 0.3))
    assert toy.best_w(0.8, 0.4, eps=0.4) == inf
    assert toy.best_w(0.5, 0.4) == 0


@given(probability, probability, eta, share, width, features, st.booleans())
def test_theorem_1_the_class_with_the_larger_p_is_more_accurate(p, q, eta, part, w, d, first):
    assume(p > q + 1e-3)
    better, worse = (toy.accuracy(w, c, eta, d, part * eta, first=first) for c in (p, q))
    assert better >= worse - 1e-15  # rounded sums of two shares


@given(probability, eta, share, share, features)
def test_theorem_2_the_optimum_grows_with_eps(p, eta, small, large, d):
    assume(small < large - 1e-6)
    assert toy.best_w(p, eta, d, small * eta) < toy.best_w(p, eta, d, large * eta)


@given(probability, probability, eta, share, features)
def test_theorem_3_the_class_with_the_larger_p_wants_a_larger_w(p, q, eta, part, d):
    assume(p > q + 1e-3)
    assert toy.best_w(p, eta, d, part * eta) > toy.best_w(q, eta, d, part * eta)


@given(probability, probability, eta, share, st.floats(1.0, 3.0), st.floats(1.001, 2.0), features)
def test_theorem_4_past_the_easy_classs_optimum_the_hard_one_loses_more_and_gains_less(
    p, q, eta, part, a, b, d
):
    assume(p > q + 1e-3)
    w = a * toy.best_w(p, eta, d) * np.array([1, b])
    for eps in (0.0, part * eta):
        easy, hard = (np.diff(toy.accuracy(w, c, eta, d, eps))[0] for c in (p, q))
        assert hard <= easy + 1e-15
    assert np.diff(toy.accuracy(w, q, eta, d))[0] <= 1e-15


def test_where_x_1_is_moved_too_the_optimum_is_infinite_from_some_eps_and_may_fall_before():
    for p, eta, d in ((0.9, 0.4, 1), (0.7, 0.3, 4)):
        edge = toy.infinite_from(p, eta, d)
        assert toy.best_w(p, eta, d, edge - 1e-4, first=True) < inf
        assert toy.best_w(p, eta, d, edge + 1e-4, first=True) == inf
    # theorem 2 needs x_1 left alone
    assert toy.best_w(0.6, 0.4, 1, 0.05, first=True) < toy.best_w(0.6, 0.4)


OUTSIDE = [
    (1.0, 0.3, 1, 0),
    (0.0, 0.3, 1, 0),
    (0.7, 0.5, 1, 0),
    (0.7, 0.0, 1, 0),
    (0.7, 0.3, 0, 0),
    (0.7, 0.3, 1, 0.31),
    (0.7, 0.3, 1, -0.01),
]


@pytest.mark.parametrize("bad", OUTSIDE)
def test_values_outside_the_model_are_refused(bad):
    with pytest.raises(toy.ToyError, match="eps in"):
        toy.accuracy(1.0, *bad)
