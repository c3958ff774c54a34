"""Calibration: how far a network's confidence is from its accuracy; logits and labels in.

Confidence is the largest softmax probability of the logits (N, K) that decide (of an augmented
head: the first K).
Errors are fractions in [0, 1]. All of them are biased upwards by the noise of each bin's accuracy:
compare networks on the same number of images and bins.
No torch, no files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from crat.analysis.metrics import MetricError, checked, class_accuracy


def confidence(logits: ArrayLike) -> tuple[NDArray, NDArray]:
    """Probability of the predicted class and the predicted class, (N,) each.

    logits: (N, K), any float type.
    Raises MetricError on another shape and on logits that are not finite.
    """
    logits = np.asarray(logits, float)
    if logits.ndim != 2 or not logits.size:
        raise MetricError(f"logits must be (N, K), not of shape {logits.shape}")
    if not np.isfinite(logits).all():
        raise MetricError("logits must be finite")
    return softmax(logits, 1).max(1), logits.argmax(1)


def reliability(
    logits: ArrayLike, y: ArrayLike, *, bins: int = 15, bin_size: int | None = None
) -> pd.DataFrame:
    """Reliability table, a row per non-empty bin: n, low, high, confidence, accuracy, gap.

    low and high: the least and the largest confidence in the bin.
    gap: accuracy - confidence; below 0 the network is too sure.
    bins: the number of bins of equal width, (0, 1/bins] and on (Guo et al. 2017); a confidence on
        an edge falls into the bin below.
    bin_size: if given, bins of this many images in the order of confidence instead, the last one
        with the remainder ("adaptive binning", Nguyen and O'Connor 2015). Images of equal
        confidence share a bin, so their order does not matter.
    Raises MetricError where labels and logits do not fit, or bins or bin_size is below 1.
    """
    sure, right = _answers(logits, y)
    if (bins if bin_size is None else bin_size) < 1:
        raise MetricError(f"bins and bin_size must be at least 1, not {bins} and {bin_size}")
    if bin_size is None:
        index = np.searchsorted(np.arange(1, bins) / bins, sure)
    else:
        rank = np.searchsorted(np.sort(sure), sure)
        last = max(sure.size // bin_size, 1) - 1
        index = np.minimum(rank // bin_size, last)
    groups = pd.DataFrame({"sure": sure, "right": right.astype(float)}).groupby(index)
    columns = {
        "n": ("sure", "size"),
        "low": ("sure", "min"),
        "high": ("sure", "max"),
        "confidence": ("sure", "mean"),
    }
    table = groups.agg(**columns, accuracy=("right", "mean")).reset_index(drop=True)
    return table.assign(gap=table.accuracy - table.confidence)


def expected_calibration_error(logits: ArrayLike, y: ArrayLike, *, bins: int = 15) -> float:
    """ECE: mean of |accuracy - confidence| over bins of equal width, weighted by their images.

    Source: Guo et al. 2017, eq. 3.
    """
    table = reliability(logits, y, bins=bins)
    return float(np.average(table.gap.abs(), weights=table.n))


def rms_calibration_error(
    logits: ArrayLike, y: ArrayLike, *, bin_size: int = 100, without_last: bool = False
) -> float:
    """Root mean square of accuracy - confidence over bins of `bin_size` images.

    This is the RMS error of the corruption literature, in which label augmentation reports.
    without_last: leave the surest bin out of the sum, though not out of N, as a `calib_err` in
        circulation does (IGITUGraz/RobustModelCompression, utils/calibration_tools.py): it flatters
        networks that are too sure.
    Source: Hendrycks et al. 2019.
    """
    table = reliability(logits, y, bin_size=bin_size)
    squares = table.n * table.gap**2
    counted = len(table) - 1 if without_last else len(table)
    return float(np.sqrt(squares[:counted].sum() / table.n.sum()))


def class_calibration(
    logits: ArrayLike, y: ArrayLike, classes: Sequence[str], *, bins: int = 15
) -> pd.DataFrame:
    """Calibration of each true class, a row each: n, accuracy, confidence, gap, ece.

    gap: accuracy - confidence. An absent class has nan.
    A network calibrated on the whole may be too sure on hard classes and not sure enough on easy
    ones.
    """
    sure, right = _answers(logits, y, len(classes))
    logits, y = np.asarray(logits), np.asarray(y)
    accuracy = class_accuracy(y, right, len(classes))
    mean = np.full(len(classes), np.nan)
    ece = mean.copy()
    for k in np.unique(y):
        mean[k] = sure[y == k].mean()
        ece[k] = expected_calibration_error(logits[y == k], y[y == k], bins=bins)
    n = np.bincount(y, minlength=len(classes))
    columns = {"n": n, "accuracy": accuracy, "confidence": mean, "gap": accuracy - mean, "ece": ece}
    return pd.DataFrame({"class": list(classes), **columns})


def _answers(
    logits: ArrayLike, y: ArrayLike, n_classes: int | None = None
) -> tuple[NDArray, NDArray]:
    """Confidence and correctness of each image, (N,); labels checked against the logits."""
    sure, answer = confidence(logits)
    width = np.shape(logits)[1]
    if n_classes not in (None, width):
        raise MetricError(f"{n_classes} classes are named, the logits have {width}")
    y, answer = checked(y, answer, n_classes=width)
    return sure, answer == y
