"""Seeds that a gain needs, the see-saw of two classes, radii on a grid, and class orders that
cross.
"""

import numpy as np
import pytest
from scipy import stats

from crat.analysis.metrics import MetricError
from crat.analysis.variation import (
    beyond_chance,
    crossings,
    detectable_gain,
    fall,
    grid_radius,
    see_saw,
    seeds_needed,
)


def test_the_detectable_gain_is_found_as_often_as_is_said():
    rng = np.random.default_rng(0)
    for seeds, sd in ((3, (1.3, 0.3)), (8, (1.0, 1.0))):
        gain = detectable_gain(seeds, *sd)
        a = rng.normal(gain, sd[0], (4000, seeds))
        b = rng.normal(0, sd[1], (4000, seeds))
        found = stats.ttest_ind(a, b, axis=1).pvalue < 0.05
        assert found.mean() == pytest.approx(0.8, abs=0.05)


def test_the_seeds_needed_are_the_first_that_suffice():
    n = seeds_needed(4.3, 1.3, 0.3)
    assert detectable_gain(n, 1.3, 0.3) <= 4.3
    assert n == 2 or detectable_gain(n - 1, 1.3, 0.3) > 4.3
    assert seeds_needed(1.0, 6.0, 6.0) > 500
    assert seeds_needed(0.001, 6.0, 6.0, most=50) == 50
    with pytest.raises(MetricError, match="at least two seeds of each method, not 1"):
        detectable_gain(1, 1, 1)
    with pytest.raises(MetricError, match="gain must be above 0, not 0"):
        seeds_needed(0, 1, 1)


def test_a_see_saw_cancels_and_unrelated_classes_do_not():
    rng = np.random.default_rng(1)
    a = rng.random(2000)
    fixed = see_saw(a, 1 - a)
    assert fixed.correlation == pytest.approx(-1)
    assert fixed.cancelled == pytest.approx(1)
    assert fixed.opposite == fixed.steps == 1999
    free = see_saw(a, rng.random(2000))
    assert abs(free.correlation) < 0.1
    assert abs(free.cancelled) < 0.1
    assert see_saw(a, 2 * a).opposite == 0
    assert see_saw([0, 0.5, 0.5, 1], [1, 0.5, 0.7, 0.7]).steps == 1
    with pytest.raises(MetricError, match="two series of one length"):
        see_saw([0, 1], [1, 0])
    with pytest.raises(MetricError, match="never moves"):
        see_saw([0, 0, 0], [1, 0, 1])


def test_the_radius_on_a_grid_is_the_first_that_breaks():
    grid = [0, 0.1, 0.2]
    robust = np.array(
        [[True, True, False, True], [True, False, False, True], [True, True, True, False]]
    )
    assert grid_radius(robust, grid).tolist() == [np.inf, 0.1, 0, 0.2]
    for wrong in ([0.1, 0.2, 0.3], [0, 0.2, 0.1], [0, 0.1]):
        with pytest.raises(MetricError, match="grid must begin at 0"):
            grid_radius(robust, wrong)


def two_classes(n, of_first, of_second, seeds=3):
    """(E, seeds, 2 n) bool with these accuracies at each radius."""
    rng = np.random.default_rng(2)
    p = np.repeat(np.stack([of_first, of_second], 1), n, axis=1)[:, None]
    return rng.random((len(of_first), seeds, 2 * n)) < p


def test_classes_that_change_places_are_found_and_ties_are_not():
    y, grid = np.repeat([0, 1], 500), [0, 0.1, 0.2]
    found = crossings(y, two_classes(500, [0.9, 0.6, 0.2], [0.7, 0.6, 0.5]), grid)
    assert len(found) == 1
    row = found.iloc[0]
    assert (row["first"], row["second"], row["before"], row["after"]) == (0, 1, 0, 0.2)
    assert row["ahead"] == pytest.approx(0.2, abs=0.05)
    assert row["behind"] == pytest.approx(-0.3, abs=0.05)
    assert crossings(y, two_classes(500, [0.9, 0.6, 0.5], [0.7, 0.5, 0.3]), grid).empty
    assert crossings(np.repeat([0, 1], 50), two_classes(50, [0.5] * 3, [0.5] * 3), grid).empty


def test_class_variance_beyond_chance_is_that_of_the_true_accuracies():
    rng, n = np.random.default_rng(3), np.full(10, 50)
    truth = np.linspace(0.5, 0.9, 10)
    counted = rng.binomial(50, truth, (4000, 10)) / 50
    assert beyond_chance(counted, n).mean() == pytest.approx(truth.var(), rel=0.05)
    assert counted.var(-1).mean() > 1.15 * truth.var()  # what is reported without the correction
    assert beyond_chance(rng.binomial(50, 0.7, (4000, 10)) / 50, n).mean() == pytest.approx(
        0, abs=5e-4
    )
    assert beyond_chance([0.5, np.nan, 0.9], [4, 0, 10]) == pytest.approx(
        0.04 - (0.25 / 4 + 0.09 / 10) / 2
    )
    with pytest.raises(MetricError, match=r"accuracies of 3 classes, but sizes of shape \(2,\)"):
        beyond_chance([0.1, 0.2, 0.3], [5, 5])


def test_a_fall_is_for_good_and_a_dip_is_none():
    curves = np.array(
        [
            [0.2, 0.8, 0.7, 0.3, 0.2, 0.1],  # falls with the fourth epoch
            [0.2, 0.8, 0.1, 0.8, 0.8, 0.7],  # a dip
            [0.2, 0.8, 0.1, 0.4, 0.3, 0.3],  # a dip to half of it, then a fall
            [0.0, 0.1, 0.1, 0.0, 0.0, 0.0],  # never stood
            [0.3, 0.4, 0.5, 0.6, 0.7, 0.1],  # falls in the last epoch
        ]
    ).T
    assert fall(curves).tolist() == pytest.approx([4, np.inf, 5, np.nan, 6], nan_ok=True)
    assert float(fall(curves[:, 0])) == 4
    assert float(fall(curves[:, 0], share=0.2)) == 6
    assert float(fall(curves[:, 3], stood=0.05)) == 4
    with pytest.raises(MetricError, match="two epochs or more"):
        fall(curves[:1])
