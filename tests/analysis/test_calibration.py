"""Calibration errors on hand-made logits and against plain loops; ties, absent classes, wrong
input.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crat.analysis.calibration import (
    class_calibration,
    confidence,
    expected_calibration_error,
    reliability,
    rms_calibration_error,
)
from crat.analysis.metrics import MetricError


def logits_of(probabilities):
    """Two-class logits whose answer is class 0 with these probabilities, above 1/2."""
    p = np.asarray(probabilities, float)
    return np.stack([np.log(p), np.log1p(-p)], 1)


def some(n=257, n_classes=5, seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_classes)) * scale, rng.integers(0, n_classes, n)


def test_confidence_is_the_largest_softmax_probability_also_of_float16():
    logits, _ = some()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    sure, answer = confidence(logits)
    np.testing.assert_allclose(sure, p.max(1), rtol=1e-12)
    assert (answer == p.argmax(1)).all()
    assert confidence(np.array([[1e4, -1e4]], np.float16))[0].tolist() == [1.0]


def test_ece_by_hand():
    # two bins of ten: (0.6, 0.7] with 0.62 and 0.68, one of them right; (0.8, 0.9] with 0.9, right
    logits, y = logits_of([0.62, 0.68, 0.9]), [0, 1, 0]
    assert expected_calibration_error(logits, y, bins=10) == pytest.approx(
        (2 * abs(0.5 - 0.65) + 0.1) / 3
    )
    table = reliability(logits, y, bins=10)
    assert table.n.tolist() == [2, 1]
    np.testing.assert_allclose(
        table[["low", "high", "confidence", "accuracy", "gap"]],
        [[0.62, 0.68, 0.65, 0.5, -0.15], [0.9, 0.9, 0.9, 1.0, 0.1]],
    )


def test_rms_by_hand_and_the_code_that_leaves_out_the_last_bin():
    logits, y = logits_of([0.9, 0.6, 0.8, 0.7, 0.95]), [1, 0, 0, 1, 0]
    # in order: 0.6 right, 0.7 wrong | 0.8 right, 0.9 wrong, 0.95 right
    first, last = 0.5 - 0.65, 2 / 3 - (0.8 + 0.9 + 0.95) / 3
    assert rms_calibration_error(logits, y, bin_size=2) == pytest.approx(
        np.sqrt((2 * first**2 + 3 * last**2) / 5)
    )
    assert rms_calibration_error(logits, y, bin_size=2, without_last=True) == pytest.approx(
        np.sqrt(2 * first**2 / 5)
    )
    # fewer than a bin: one
    assert rms_calibration_error(logits, y) == pytest.approx(abs(0.6 - 0.79))


def plain_ece(sure, right, bins):
    total = 0.0
    for low, high in zip(np.arange(bins) / bins, np.arange(1, bins + 1) / bins, strict=True):
        inside = (sure > low) & (sure <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    return total


def plain_rms(sure, right, size):
    order, total = np.argsort(sure), 0.0
    starts = list(range(0, max(len(sure) // size, 1) * size, size))
    for start, stop in zip(starts, [*starts[1:], len(sure)], strict=True):
        part = order[start:stop]
        total += len(part) / len(sure) * (right[part].mean() - sure[part].mean()) ** 2
    return np.sqrt(total)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 400),
    seed=st.integers(0, 99),
    bins=st.integers(1, 30),
    size=st.integers(1, 150),
)
def test_both_are_the_plain_loops_and_order_does_not_matter(n, seed, bins, size):
    logits, y = some(n, 4, seed)
    sure, answer = confidence(logits)
    ece, rms = (
        expected_calibration_error(logits, y, bins=bins),
        rms_calibration_error(logits, y, bin_size=size),
    )
    assert ece == pytest.approx(plain_ece(sure, answer == y, bins), abs=1e-12)
    assert rms == pytest.approx(plain_rms(sure, answer == y, size), abs=1e-12)
    rounded, order = np.round(logits), np.random.default_rng(seed).permutation(n)  # many ties
    for measure in (
        expected_calibration_error,
        lambda a, b: rms_calibration_error(a, b, bin_size=size),
    ):
        assert measure(rounded, y) == pytest.approx(measure(rounded[order], y[order]), abs=1e-12)
    assert reliability(rounded, y, bin_size=size).n.sum() == n


def test_labels_drawn_from_the_probabilities_are_calibrated_and_sharper_logits_are_too_sure():
    logits, _ = some(40_000)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = (p.cumsum(1) > np.random.default_rng(1).random((len(p), 1))).argmax(1)
    assert expected_calibration_error(logits, y) < 0.01
    assert rms_calibration_error(logits, y, bin_size=2000) < 0.02
    assert expected_calibration_error(3 * logits, y) > 0.1
    assert (class_calibration(3 * logits, y, "abcde").gap < -0.1).all()


def test_class_calibration_by_hand_with_an_absent_class():
    logits = np.log([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    table = class_calibration(logits, [0, 0, 1], ["cat", "dog", "ship"])
    assert table["class"].tolist() == ["cat", "dog", "ship"]
    assert table.n.tolist() == [2, 1, 0]
    np.testing.assert_allclose(table.accuracy, [0.5, 1, np.nan])
    np.testing.assert_allclose(table.gap, [0.5 - 0.65, 1 - 0.8, np.nan])
    np.testing.assert_allclose(table.ece, [(abs(1 - 0.6) + 0.7) / 2, 0.2, np.nan])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x, y: expected_calibration_error(x[0], y), r"\(N, K\), not of shape \(5,\)"),
        (lambda x, y: expected_calibration_error(x * np.nan, y), "finite"),
        (lambda x, y: expected_calibration_error(x, y[:-1]), "256 labels"),
        (lambda x, y: expected_calibration_error(x, y + 1), "labels must lie between 0 and 4"),
        (lambda x, y: expected_calibration_error(x, y, bins=0), "at least 1"),
        (lambda x, y: rms_calibration_error(x, y, bin_size=0), "at least 1"),
        (lambda x, y: class_calibration(x, y, "abc"), "3 classes are named, the logits have 5"),
    ],
)
def test_wrong_input_is_told_in_one_line(call, told):
    with pytest.raises(MetricError, match=told) as error:
        call(*some())
    assert "\n" not in str(error.value)
