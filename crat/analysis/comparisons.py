"""Comparisons on which a verdict may rest: each gives an `Estimate`.

Fractions, not percent. y is (N,) labels; runs are (S, N) bool, S seeds on N images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, nan

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from crat.analysis.metrics import (
    Functional,
    checked,
    evaluate,
    must_be_bool,
    per_run,
    permutation_p,
    resample,
    spearman,
    wilson,
)

LEVEL, POWER = 0.95, 0.8


class ClaimError(ValueError):
    """A claim that cannot be decided as it stands; one line names the fault and what is allowed."""


@dataclass(frozen=True)
class Estimate:
    """A difference, correlation, or share minus its reference, with 95 % interval and two-sided p.

    kind: scope of the interval, runs | checkpoints (one seed: images only) | correlation |
        published.
    detectable: the true value that would be detected with probability .8.
    df: degrees of freedom of the t interval.
    """

    value: float
    low: float
    high: float
    p: float
    kind: str = "runs"
    detectable: float = nan
    df: float = nan
    note: str = ""


def _by_t(value: float, variance: float, df: float, kind: str = "runs", note: str = "") -> Estimate:
    """value +- t_df sqrt(variance), its p, and the value detectable with probability POWER."""
    se = float(np.sqrt(variance))
    t = stats.t.isf((1 - LEVEL) / 2, df)
    if se > 0:
        p = 2 * stats.t.sf(abs(value) / se, df)
    else:
        p = value == 0
    low, high = float(value - t * se), float(value + t * se)
    detectable = float((t + stats.t.isf(1 - POWER, df)) * se)
    return Estimate(float(value), low, high, float(p), kind, detectable, df, note)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """McNemar's exact two-sided p that two checkpoints are equally often right.

    a, b: (N,) bool, correctness of each on the same images.
    """
    a, b = np.asarray(a), np.asarray(b)
    must_be_bool(a, b)
    only_a = int((a & ~b).sum())
    only_b = int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def compare(
    y: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    functional: Functional = "average",
    *,
    same_runs: bool = False,
    others: Sequence[ArrayLike] = (),
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean over runs of the functional, A - B, on the same images.

    a, b: (S_A, N) and (S_B, N) bool.
    same_runs: a[s] and b[s] are one network twice (two attacks); the seed variance is that of their
        differences.
    others: more runs for the pooled seed variance; runs with under 1 % or over 99 % of the images
        right are left out, as seeds cannot differ at the floor.
    The variance is s2 (1/S_A + 1/S_B), s2 the seed variance pooled over a, b and `others`, plus
    that of a class-stratified paired bootstrap over images, with any minimum inside.
    "worst" must hold for the plug-in minimum and for the cross-fit one: the interval is the hull of
    both.
    With one seed, kind is "checkpoints", the interval covers images, and p is McNemar's.
    Raises ClaimError where same_runs is set and the numbers of runs differ.
    """
    y, a = checked(y, np.atleast_2d(a))
    _, b = checked(y, np.atleast_2d(b))
    if same_runs and len(a) != len(b):
        raise ClaimError(f"same_runs needs as many runs of each, not {len(a)} and {len(b)}")
    others = [other for other in map(np.asarray, others) if 0.01 < other.mean() < 0.99]
    one_seed = min(len(a), len(b)) == 1
    if one_seed:
        a, b = a[:1], b[:1]
    counts, sizes = resample(y, np.vstack([a, b]), draws, seed)

    def estimate(f: Functional) -> Estimate:
        values = evaluate(f, counts, sizes)
        in_a, in_b = np.split(values, [len(a)], axis=1)
        difference = in_a.mean(1) - in_b.mean(1)
        pool = (per_run(y, np.atleast_2d(other), f) for other in others)
        seeds, df = _seed_variance(in_a[0], in_b[0], pool, same_runs)
        return _by_t(difference[0], seeds + difference[1:].var(ddof=1), df)

    if functional == "worst":
        result = _both(estimate("worst"), estimate("crossfit"))
    else:
        result = estimate(functional)
    if not one_seed:
        return result
    return replace(result, p=mcnemar(a[0], b[0]), kind="checkpoints", note="one seed")


def _seed_variance(
    a: NDArray, b: NDArray, pool: Iterable[NDArray], same_runs: bool
) -> tuple[float, float]:
    """Variance of mean(a) - mean(b) that comes from the seeds, and its degrees of freedom.

    a, b: (S_A,), (S_B,) values of the runs; with one run there is no such variance: 0, inf.
    pool: values of other methods' runs, whose variance is pooled with theirs.
    """
    if min(a.size, b.size) == 1:
        return 0.0, inf
    if same_runs:
        return (a - b).var(ddof=1) / a.size, a.size - 1
    groups = [a, b, *pool]
    df = sum(group.size - 1 for group in groups)
    squares = sum(((group - group.mean()) ** 2).sum() for group in groups)
    return squares / df * (1 / a.size + 1 / b.size), df


def _both(plug_in: Estimate, cross_fit: Estimate) -> Estimate:
    """The worst class by plug-in and by cross-fit: beyond 0 only where both are.

    Plug-in is biased low, cross-fit high.
    """
    low, high = min(plug_in.low, cross_fit.low), max(plug_in.high, cross_fit.high)
    p = max(plug_in.p, cross_fit.p) if plug_in.value * cross_fit.value > 0 else 1.0
    detectable = max(plug_in.detectable, cross_fit.detectable)
    note = f"cross-fit {cross_fit.value:+.4f}"
    return replace(plug_in, low=low, high=high, p=p, detectable=detectable, note=note)


def against_published(ours: ArrayLike, mean: float, sd: float, n: int = 5) -> Estimate:
    """Mean of our runs (m,) minus a published mean: +- t_{n-1} sd sqrt(1/m + 1/n).

    mean, sd, n: the published mean, standard deviation and number of runs.
    """
    ours = np.asarray(ours, float)
    variance = sd**2 * (1 / ours.size + 1 / n)
    return _by_t(ours.mean() - mean, variance, n - 1, "published")


def share(k: ArrayLike, n: ArrayLike, reference: float, *, shared: bool = True) -> Estimate:
    """Mean over runs of k_s / n_s (S,) minus a reference share: t_{S-1}, over seeds and images.

    shared: the runs share their images, so the binomial variance is not divided by S; False where
        each run has separate trials, such as epochs.
    With one run, kind is "checkpoints".
    """
    k, n = np.atleast_1d(k).astype(float), np.atleast_1d(n).astype(float)
    if not n.all():
        return Estimate(nan, nan, nan, nan, note="no image to count")
    value = (k / n).mean() - reference
    low, high = wilson(k, n)
    if k.size == 1:
        p = stats.binomtest(int(k[0]), int(n[0]), reference).pvalue
        low, high = low[0] - reference, high[0] - reference
        return Estimate(value, low, high, p, "checkpoints", note="one seed")
    se = (high - low) / 2 / stats.norm.isf((1 - LEVEL) / 2)
    images = (se**2).mean() / (1 if shared else k.size)
    seeds = (k / n).var(ddof=1) / k.size
    return _by_t(value, seeds + images, k.size - 1)


def _correlated(
    value: float, low: float, high: float, p: float, n_classes: int, note: str = ""
) -> Estimate:
    """An estimate of a correlation over n_classes, with the detectable value by Fisher's z."""
    z = stats.norm.isf([(1 - LEVEL) / 2, 1 - POWER]).sum()
    detectable = np.tanh(z / np.sqrt(max(n_classes - 3, 1)))
    return Estimate(
        float(value), float(low), float(high), float(p), "correlation", float(detectable), note=note
    )


def _orders(y: NDArray, groups: Sequence[ArrayLike], draws: int, seed: int) -> list[NDArray]:
    """Class values (1 + draws, K) of each group, the observed ones first.

    A bool group, per image, is resampled, all groups alike; a (K,) group is fixed.
    """
    arrays = [np.atleast_2d(group) for group in groups]
    present = np.unique(y)
    for group in arrays:
        if group.dtype != bool and not present[-1] < group.shape[-1] < y.size:
            raise ClaimError(
                f"a class order must be bool per image ({y.size}) or one number per class, "
                f"not of shape {group.shape}"
            )
    sampled = [checked(y, group)[1] for group in arrays if group.dtype == bool]
    counts, sizes = resample(y, np.vstack(sampled), draws, seed)
    counts = counts.sum(-1)  # of 1,000 classes a hundred megabytes: one array at a time
    counts /= sizes.sum(-1)
    edges = np.cumsum([len(group) for group in sampled])[:-1]
    accuracies = iter(np.split(counts, edges, axis=1))
    orders = []
    for group in arrays:
        if group.dtype == bool:
            orders.append(next(accuracies).mean(1))
        else:
            orders.append(np.tile(group[0, present], (1 + draws, 1)))
    return orders


def rank_correlation(
    y: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    beat: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Spearman's rho of two class orders: permutation p over classes, bootstrap over images.

    a: (N,) or (S, N) bool; its class accuracies are averaged over runs.
    b, beat: the same, or (K,) numbers.
    With `beat`, usually clean correctness, the value is rho(a, b) - rho(a, beat), and p is the
    bootstrap's.
    Raises ClaimError on another shape.
    """
    (y,) = checked(y)
    orders = _orders(y, [a, b] if beat is None else [a, b, beat], draws, seed)
    if any(np.ptp(order[0]) == 0 for order in orders):
        return Estimate(nan, nan, nan, nan, "correlation", note="all classes tie: no order")
    rho = spearman(orders[0], orders[1])
    note = f"rho {rho[0]:+.3f}"
    if beat is None:
        p = permutation_p(orders[0][0], orders[1][0], seed)
    else:
        baseline = spearman(orders[0], orders[2])
        rho, note = rho - baseline, f"{note}, baseline {baseline[0]:+.3f}"
        fewer = min((rho[1:] <= 0).sum(), (rho[1:] >= 0).sum())
        p = min(1.0, 2 * (1 + fewer) / (1 + draws))
    low, high = np.nanquantile(rho, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # images add noise to a noisy order, so the bootstrap lies below rho: widen the interval to rho
    low, high = min(low, rho[0]), max(high, rho[0])
    return _correlated(rho[0], low, high, p, orders[0].shape[1], note)


def pearson(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Pearson's r of (K,) and (K,) with Fisher's interval."""
    r = stats.pearsonr(np.asarray(x, float), np.asarray(y, float))
    low, high = r.confidence_interval(LEVEL)
    return _correlated(r.statistic, low, high, r.pvalue, np.size(x))
