"""What is said to foretell the weakest class, and the spread of classes: numpy in, numpy out.

Each is computed from predictions or logits that are kept already; none of them attacks anything.
"""

from __future__ import annotations

from math import nan, pi, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from crat.analysis.metrics import checked


def great_scores(logits: ArrayLike, y: ArrayLike) -> NDArray:
    """Attack-free score of each class (K,): mean of sqrt(pi / 2) max(p_y - max_{k != y} p_k, 0).

    logits: (N, K), of clean images; p is their softmax. nan for a class without images.

    Source: GREAT score (Li, Chen, Ho, NeurIPS 2024), taken class by class on test images as in
    GF-Score (Shah et al. 2026; aryashah2k/gf-score, README at 8bcd299). The original takes images
    that a generator drew. Its temperature, fitted over many networks, is not taken.
    """
    p = softmax(np.asarray(logits, float), axis=-1)
    (y,) = checked(y, n_classes=p.shape[-1])
    own = np.take_along_axis(p, y[:, None], 1)[:, 0]
    np.put_along_axis(p, y[:, None], -np.inf, 1)
    scores = sqrt(pi / 2) * np.maximum(own - p.max(1), 0)
    n = np.bincount(y, minlength=p.shape[1])
    with np.errstate(invalid="ignore"):
        return np.bincount(y, scores, p.shape[1]) / n


def false_positive_share(y: ArrayLike, pred: ArrayLike, n_classes: int) -> NDArray:
    """Share of all errors that end in each class (K,): how much of it is a false positive.

    nan for every class where nothing is wrong.

    Source: the class false positive score of Medi et al. 2024 (arXiv 2411.19853), whose formula was
    read in a review, where it is garbled; the words beside it say this.
    """
    y, pred = checked(y, pred, n_classes=n_classes)
    wrong = pred[pred != y]
    return (
        np.bincount(wrong, minlength=n_classes) / wrong.size
        if wrong.size
        else np.full(n_classes, nan)
    )


def gini(values: ArrayLike) -> NDArray:
    """Gini's coefficient over the last axis: mean |a_i - a_j| / (2 mean a); 0 where all are equal.

    values: (..., K), none below 0; nan where their mean is 0.
    """
    a = np.asarray(values, float)
    apart = np.abs(a[..., :, None] - a[..., None, :]).mean((-2, -1))
    mean = a.mean(-1)
    return apart / (2 * np.where(mean > 0, mean, nan))
