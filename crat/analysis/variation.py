"""Sources of variation besides the method: seeds, a see-saw of two classes, the radius.

Numpy and scipy, fractions in [0, 1]; no torch, no files.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from crat.analysis.metrics import MetricError, class_accuracy


def detectable_gain(
    seeds: int, sd_a: float, sd_b: float, level: float = 0.95, power: float = 0.8
) -> float:
    """Smallest true difference of two methods' means that a test finds with probability `power`.

    Two-sided t test at 1 - level on `seeds` independent runs of each, with standard deviations sd_a
    and sd_b, t with 2 (seeds - 1) degrees of freedom. The unit is that of the deviations.
    Raises MetricError below two seeds: one has no deviation.
    """
    if seeds < 2:
        raise MetricError(f"at least two seeds of each method, not {seeds}")
    df = 2 * (seeds - 1)
    t = stats.t.isf((1 - level) / 2, df) + stats.t.isf(1 - power, df)
    return float(t * np.sqrt((sd_a**2 + sd_b**2) / seeds))


def seeds_needed(gain: float, sd_a: float, sd_b: float, *, most: int = 1000, **test: float) -> int:
    """Fewest seeds of each method at which `detectable_gain` is at most the gain; else `most`.

    Raises MetricError unless the gain is above 0.
    """
    if not gain > 0:
        raise MetricError(f"gain must be above 0, not {gain!r}")
    for seeds in range(2, most):
        if detectable_gain(seeds, sd_a, sd_b, **test) <= gain:
            return seeds
    return most


def beyond_chance(acc: ArrayLike, n: ArrayLike) -> NDArray:
    """Variance over classes of accuracies, less the variance that counting the images gives: (...).

    acc: (..., K); n: (K,) images of each class.
    The mean of p (1 - p) / n over the classes present is taken off; below 0, classes differ by less
    than chance.
    Raises MetricError where the numbers of classes differ.
    """
    acc, n = np.asarray(acc, float), np.asarray(n, float)
    if acc.shape[-1:] != n.shape:
        raise MetricError(f"accuracies of {acc.shape[-1]} classes, but sizes of shape {n.shape}")
    with np.errstate(invalid="ignore", divide="ignore"):
        counted = acc * (1 - acc) / n  # an absent class is nan in both
    return np.nanvar(acc, -1) - np.nanmean(counted, -1)


class SeeSaw(NamedTuple):
    """Joint steps of two classes' accuracies from epoch to epoch.

    correlation: of the two classes' steps.
    """

    correlation: float
    opposite: int  # steps in which one class rose and the other fell
    steps: int  # steps in which both moved
    # 1 - var(sum of the steps) / sum of their variances: 1 at a fixed sum, 0 if unrelated
    cancelled: float


def see_saw(a: ArrayLike, b: ArrayLike) -> SeeSaw:
    """The see-saw of two classes, from their accuracies after each epoch, (E,) each.

    Raises MetricError where lengths differ, below three epochs, or where a class never moves.
    """
    a = np.diff(np.asarray(a, float))
    b = np.diff(np.asarray(b, float))
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise MetricError(
            f"a see-saw needs two series of one length, at least three epochs each, "
            f"not {a.size + 1} and {b.size + 1}"
        )
    if not (a.var() and b.var()):
        raise MetricError("a class that never moves has no see-saw")
    correlation = float(np.corrcoef(a, b)[0, 1])
    opposite = int((a * b < 0).sum())
    steps = int(((a != 0) & (b != 0)).sum())
    cancelled = float(1 - (a + b).var() / (a.var() + b.var()))
    return SeeSaw(correlation, opposite, steps, cancelled)


def fall(acc: ArrayLike, share: float = 0.5, stood: float = 0.2) -> NDArray:
    """The epoch (from 1) from which on an accuracy stays below a share of its highest, (...).

    acc: (E, ...), after each of E epochs. inf where it never falls for good; nan where its highest
    is below `stood`, so that there is nothing to fall from. A dip that it comes back from is none.
    Raises MetricError below two epochs.
    """
    acc = np.asarray(acc, float)
    if acc.ndim < 1 or len(acc) < 2:
        raise MetricError(f"a fall needs two epochs or more, not accuracies of shape {acc.shape}")
    highest = acc.max(0)
    stands = acc >= share * highest
    last = len(acc) - np.argmax(stands[::-1], axis=0)  # the last epoch in which it stands
    falls = np.where(last == len(acc), np.inf, last + 1)
    return np.where(highest < stood, np.nan, falls)


def grid_radius(robust: ArrayLike, grid: ArrayLike) -> NDArray:
    """Smallest radius of a grid that breaks each image, (..., N); inf if none does.

    robust: (E, ..., N) bool, right under the attack at each radius.
    grid: (E,) radii, ascending, the first of them 0: the radius of an image wrong when clean.
    An image broken at one radius counts as broken at every larger one, as it is in truth whatever
    the attack finds.
    Raises MetricError on another grid.
    """
    robust, grid = np.asarray(robust), np.asarray(grid, float)
    ascends = grid[0] == 0 and (np.diff(grid) > 0).all()
    if len(robust) != len(grid) or not ascends:
        raise MetricError(
            f"grid must begin at 0, ascend and have a row of outcomes for each radius, "
            f"not {grid.tolist()}"
        )
    broken = ~robust
    return np.where(broken.any(0), grid[broken.argmax(0)], np.inf)


def crossings(
    y: ArrayLike, robust: ArrayLike, grid: ArrayLike, level: float = 0.95
) -> pd.DataFrame:
    """Pairs of classes of which each is the more robust one somewhere on the grid, beyond doubt.

    y: (N,).
    robust: (E, S, N) bool, S seeds at each radius of grid (E,).
    Columns: first, second (labels), before, after (radii at which first, second is ahead most
    clearly), ahead, behind (the differences there). Rows by how clear the weaker side is.
    At each radius a pair's difference of class accuracies (mean over seeds) is divided by its
    standard error, from images (binomial, not divided by S, as seeds share them) and seeds; a pair
    crosses where the ratio is beyond the normal quantile for all K (K - 1) / 2 pairs and E radii
    together (Bonferroni) on both sides of 0.
    """
    y = np.asarray(y)
    robust = np.asarray(robust)
    grid = np.asarray(grid)
    k = int(y.max()) + 1
    acc = class_accuracy(y, robust, k)  # (E, S, K)
    mean, n = acc.mean(1), np.bincount(y, minlength=k)
    seeds = acc.var(1, ddof=1) / acc.shape[1] if acc.shape[1] > 1 else 0.0
    variance = mean * (1 - mean) / n + seeds
    tests = k * (k - 1) * len(mean)
    limit = stats.norm.isf((1 - level) / tests)
    rows = []
    for i, j in np.ndindex(k, k):
        difference = mean[:, i] - mean[:, j]
        se = np.sqrt(variance[:, i] + variance[:, j])
        z = np.divide(difference, se, out=np.zeros_like(se), where=se > 0)
        top, low = int(z.argmax()), int(z.argmin())
        if top < low and z[top] > limit and z[low] < -limit:
            radii = [grid[top], grid[low]]
            differences = [difference[top], difference[low]]
            rows.append([i, j, *radii, *differences, min(z[top], -z[low])])
    columns = ["first", "second", "before", "after", "ahead", "behind", "z"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("z", ascending=False, ignore_index=True).drop(columns="z")
