"""Is a network as often right as it is sure? Logits and labels in, numpy and pandas out. No torch,
no files.

Confidence is the largest softmax probability of the logits (N, K) that decide (of an augmented
head: the first K). Errors are fractions in [0, 1]. All of them are biased upwards, by the noise of
each bin's accuracy: compare networks on the same number of images and bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from crat.analysis.metrics import MetricError, checked, class_accuracy


def confidence(logits: ArrayLike) -> tuple[NDArray, NDArray]:
    """The probability of the answer and the answer, (N,) each, from logits (N, K) of any float
    type.

    Raises MetricError on another shape and on logits that are not finite.
    """
    logits = np.asarray(logits, float)
    if logits.ndim != 2 or not logits.size:
        raise MetricError(f"logits are (N, K), not of shape {logits.shape}")
    if not np.isfinite(logits).all():
        raise MetricError("logits must be finite")
    return softmax(logits, 1).max(1), logits.argmax(1)


def reliability(
    logits: ArrayLike, y: ArrayLike, *, bins: int = 15, bin_size: int | None = None
) -> pd.DataFrame:
    """The reliability table: a row for each bin that is not empty, columns n, low, high,
    confidence, accuracy, gap.

    low and high are the least and the largest confidence in the bin, gap is accuracy - confidence
    (below 0: too sure).
    bins: so many of equal width, (0, 1/bins] and on (Guo et al. 2017); a confidence on an edge is
    of the bin below.
    bin_size: instead bins of so many images each in the order of confidence, the last with the
    remainder too ("adaptive binning", Nguyen and O'Connor 2015). Images of equal confidence share a
    bin, so their order does not matter. Raises MetricError where labels and logits do not fit, or
    no bin is asked for.
    """
    sure, right = _answers(logits, y)
    if (bin_size if bin_size is not None else bins) < 1:
        raise MetricError(f"bins and bin_size are at least 1, not {bins} and {bin_size}")
    if bin_size is not None:
        index = np.minimum(
            np.searchsorted(np.sort(sure), sure) // bin_size, max(sure.size // bin_size, 1) - 1
        )
    else:
        index = np.searchsorted(np.arange(1, bins) / bins, sure)
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
    """ECE: the mean of |accuracy - confidence| over bins of equal width, by their images (Guo et
    al. 2017, eq. 3).
    """
    table = reliability(logits, y, bins=bins)
    return float(np.average(table.gap.abs(), weights=table.n))


def rms_calibration_error(
    logits: ArrayLike, y: ArrayLike, *, bin_size: int = 100, without_last: bool = False
) -> float:
    """Root of the mean squared accuracy - confidence over bins of `bin_size` images (Hendrycks et
    al. 2019).

    This is the RMS error of the corruption literature, in which label augmentation reports.
    without_last: the surest bin is left out of the sum, though not of N, as in a `calib_err` that
    circulates (IGITUGraz/RobustModelCompression, utils/calibration_tools.py): it flatters networks
    that are too sure.
    """
    table = reliability(logits, y, bin_size=bin_size)
    squares = table.n * table.gap**2
    return float(np.sqrt(squares[: len(table) - without_last].sum() / table.n.sum()))


def class_calibration(
    logits: ArrayLike, y: ArrayLike, classes: Sequence[str], *, bins: int = 15
) -> pd.DataFrame:
    """A row for each true class: n, accuracy, confidence, gap = accuracy - confidence, and ece; nan
    for an absent one.

    A network that is calibrated on the whole may be too sure on hard classes and not sure enough on
    easy ones.
    """
    sure, right = _answers(logits, y, len(classes))
    logits, y = np.asarray(logits), np.asarray(y)
    accuracy, mean = class_accuracy(y, right, len(classes)), np.full(len(classes), np.nan)
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
