"""The bracket of each class, by hand."""

import numpy as np
import pytest

from crat.analysis.brackets import bracket
from crat.analysis.metrics import MetricError, wilson

Y = np.array([0, 0, 0, 0, 2, 2])
CERTIFIED = np.array([1, 0, 0, 0, 1, 1], bool)
ROBUST = np.array([1, 1, 1, 0, 1, 1], bool)


def test_a_row_a_class_with_images():
    table = bracket(Y, CERTIFIED, ROBUST, ["cat", "none", "dog"])
    assert table["class"].tolist() == ["cat", "dog"]
    assert table.n.tolist() == [4, 2]
    assert table.certified_acc.tolist() == [0.25, 1.0]
    assert table.robust_acc.tolist() == [0.75, 1.0]
    assert table.low.tolist() == pytest.approx([wilson(1, 4)[0], wilson(2, 2)[0]])
    assert table.high.tolist() == pytest.approx([wilson(3, 4)[1], 1.0])


def test_an_image_that_is_certified_and_broken_is_an_error():
    with pytest.raises(MetricError, match="1 of 6 images are certified and broken"):
        bracket(Y, ~CERTIFIED & (Y == 0) | CERTIFIED, ROBUST, ["a", "b", "c"])


def test_predictions_are_no_outcomes():
    with pytest.raises(MetricError, match="must be bool"):
        bracket(Y, Y, ROBUST, ["a", "b", "c"])
