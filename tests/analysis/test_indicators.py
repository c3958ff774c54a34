"""What foretells the weakest class, against numbers made by hand."""

import numpy as np
import pytest

from crat.analysis.indicators import false_positive_share, gini, great_scores


def test_the_attack_free_score_by_hand():
    """p = (.8, .2) gains .6 where y is the first class, nothing where it is the second."""
    z = np.log([[0.8, 0.2, 0.0 + 1e-30], [0.8, 0.2, 1e-30], [0.5, 0.5, 1e-30]])
    scores = great_scores(z, np.array([0, 1, 0]))
    assert scores[0] == pytest.approx(np.sqrt(np.pi / 2) * 0.6 / 2)
    assert scores[1] == 0
    assert np.isnan(scores[2])


def test_false_positives_are_shares_of_the_errors():
    y = np.array([0, 0, 0, 1, 1, 2])
    pred = np.array([0, 1, 1, 1, 2, 1])
    np.testing.assert_allclose(false_positive_share(y, pred, 3), [0, 3 / 4, 1 / 4])
    assert np.isnan(false_positive_share(y, y, 3)).all()


def test_gini_of_equal_and_of_one_sided_values():
    assert gini([0.4, 0.4, 0.4]) == 0
    assert gini([1, 0, 0, 0]) == pytest.approx(3 / 4)
    np.testing.assert_allclose(gini([[1, 0], [1, 1]]), [0.5, 0])
    assert np.isnan(gini([0, 0]))
