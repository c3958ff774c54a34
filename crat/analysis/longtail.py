"""Accuracy under a long tail: balanced, and in the head, medium and tail of the training counts.

Labels, predictions and training counts in, numpy and pandas out; no torch, no files. Every class
counts the same, however many test images it has; a class without any has no accuracy and is left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from crat.analysis.metrics import (
    Attacks,
    MetricError,
    checked,
    class_accuracy,
    must_be_bool,
    outcomes,
    wilson,
)

GROUPS = ("head", "medium", "tail")


def groups(class_counts: ArrayLike, edges: tuple[float, float] | None = None) -> NDArray:
    """Group of each class, (K,) of "head", "medium", "tail", by its number of training images.

    class_counts: (K,), in any order.
    edges: None for thirds of the classes by rank, the middle one the larger where K is no multiple
        of 3 (K = 2: none); ties follow the order of the labels. (low, high): tail below `low`
        images, head above `high`; (20, 100) are those of Liu et al. 2019 (Open long-tailed
        recognition).
    Raises MetricError on negative counts, or where low is above high.
    """
    counts = np.asarray(class_counts, float)
    if counts.ndim != 1 or counts.size == 0 or not (counts >= 0).all():
        raise MetricError(
            f"class_counts must be a non-empty vector of counts, not {class_counts!r}"
        )
    if edges is not None:
        low, high = edges
        if not low <= high:
            raise MetricError(f"edges must be (low, high) with low <= high, not {edges!r}")
        in_head, in_tail = counts > high, counts < low
    else:
        rank = np.argsort(np.argsort(-counts, kind="stable"))
        third = max(1, counts.size // 3)
        in_head, in_tail = rank < third, rank >= counts.size - third
    return np.select([in_head, in_tail], ["head", "tail"], "medium")


def balanced_accuracy(y: ArrayLike, correct: ArrayLike, n_classes: int) -> NDArray:
    """Mean over the classes present of each one's share correct: (..., N) bool -> (...)."""
    y, correct = checked(y, correct, n_classes=n_classes)
    must_be_bool(correct)
    return np.nanmean(class_accuracy(y, correct, n_classes), -1)


def mean_interval(k: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of the proportions k / n of several classes with its interval; nan where all n are 0.

    k, n: (K,) each; classes may have different n.
    The interval is recovered from Wilson's limits l_k, u_k of each class: m - |p - l| / K to m + |u
    - p| / K, |.| Euclidean; for a single class it is Wilson's.
    Source: Zou and Donner 2008 (Statistics in Medicine 27).
    """
    k, n = np.asarray(k, float), np.asarray(n, float)
    k, n = k[n > 0], n[n > 0]
    if not n.size:
        return nan, nan, nan
    p = k / n
    low, high = wilson(k, n, level)
    below = np.sqrt(((p - low) ** 2).sum()) / n.size
    above = np.sqrt(((p - high) ** 2).sum()) / n.size
    mean = p.mean()
    return float(mean), max(float(mean - below), 0.0), min(float(mean + above), 1.0)


def group_table(
    y: ArrayLike,
    clean_pred: ArrayLike,
    attacks: Attacks,
    class_counts: ArrayLike,
    named: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A row per (attack, group): classes, train_n, n, accuracy with its 95 % interval [low, high].

    n: the group's test images.
    accuracy: the balanced one of the group's classes, of images right when clean and under the
        attack; attack "clean" is none, "union" all together; group "all" is all classes.
    named: (K,) the group of each class, None for those of `groups`; each name that occurs gets a
        row, head, medium and tail first.
    Raises MetricError where named has another length.
    """
    counts = np.asarray(class_counts)
    group_of = groups(counts) if named is None else np.asarray(named)
    if group_of.shape != counts.shape:
        raise MetricError(f"{counts.size} classes but {group_of.size} groups")
    y, clean_pred = checked(y, clean_pred, n_classes=counts.size)
    n = np.bincount(y, minlength=counts.size)
    others = set(group_of.tolist()) - set(GROUPS)
    names = [name for name in GROUPS if name in group_of] + sorted(others)
    rows = []
    for attack, correct in outcomes(y, clean_pred, attacks).items():
        right = np.bincount(y, correct, counts.size)
        for name in [*names, "all"]:
            members = np.ones(group_of.shape, bool) if name == "all" else group_of == name
            row: dict[str, Any] = {"attack": attack, "group": name}
            row["classes"] = int(members.sum())
            row["train_n"] = int(counts[members].sum())
            row["n"] = int(n[members].sum())
            interval = mean_interval(right[members], n[members])
            rows.append(row | dict(zip(("accuracy", "low", "high"), interval, strict=True)))
    return pd.DataFrame(rows)
