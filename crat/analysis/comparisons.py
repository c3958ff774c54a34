"""Comparisons on which a verdict may rest: each gives an `Estimate`.

Fractions, not percent. y is (N,) labels; runs are (S, N) bool, S seeds on N images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, nan
from typing import NamedTuple

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
EQUIVALENCE = 0.90  # two one-sided tests at 5 % are an interval of 90 %
UPPER = (1 + EQUIVALENCE) / 2
FLOOR = 0.05  # below it nothing is left that could differ
LEVELS = ("average", "worst", "crossfit", "tail")  # functionals that are accuracies


class ClaimError(ValueError):
    """A claim that cannot be decided as it stands; one line names the fault and what is allowed."""


@dataclass(frozen=True)
class Estimate:
    """A difference, correlation, or share minus its reference, with 95 % interval and two-sided p.

    kind: scope of the interval, runs | checkpoints (one seed: images only) | floor (both sides
        below FLOOR) | correlation | published.
    low90, high90: the interval that shows equivalence; nan where it was not computed.
    detectable: the true value that would be detected with probability .8.
    df: degrees of freedom of the t interval.
    seeds: runs on each side. seed_variance, seed_df, image_variance: the parts of the variance of
        the value; nan where there is no such part.
    """

    value: float
    low: float
    high: float
    p: float
    kind: str = "runs"
    detectable: float = nan
    df: float = nan
    note: str = ""
    low90: float = nan
    high90: float = nan
    seeds: int = 0
    seed_variance: float = nan
    seed_df: float = nan
    image_variance: float = nan


class Noise(NamedTuple):
    """A part of an estimate's variance, and the degrees of freedom with which it is known."""

    variance: float
    df: float = inf


def together(*parts: Noise) -> Noise:
    """The sum of independent parts, its degrees of freedom by Satterthwaite's rule.

    Source: Satterthwaite 1946 (Biometrics Bulletin 2).
    """
    variance = sum(part.variance for part in parts)
    weights = sum(part.variance**2 / part.df for part in parts)
    return Noise(variance, variance**2 / weights if weights > 0 else inf)


def detectable_value(noise: Noise, level: float = LEVEL) -> float:
    """The true value that a two-sided t test at 1 - level finds with probability POWER."""
    t = stats.t.isf([(1 - level) / 2, 1 - POWER], noise.df).sum()
    return float(t * np.sqrt(noise.variance))


def _by_t(
    value: float, seeds: Noise, images: float = 0.0, n_seeds: int = 0, kind: str = "runs"
) -> Estimate:
    """value +- t_df sqrt(variance), its p, and the value detectable with probability POWER.

    images: the variance that the images give, known well enough to count as known.
    """
    noise = together(seeds, Noise(images))
    se = float(np.sqrt(noise.variance))
    p = 2 * stats.t.sf(abs(value) / se, noise.df) if se > 0 else value == 0
    half, half90 = (se * stats.t.isf((1 - q) / 2, noise.df) for q in (LEVEL, EQUIVALENCE))
    return Estimate(
        float(value),
        float(value - half),
        float(value + half),
        float(p),
        kind,
        detectable_value(noise),
        float(noise.df),
        low90=float(value - half90),
        high90=float(value + half90),
        seeds=n_seeds,
        seed_variance=float(seeds.variance),
        seed_df=float(seeds.df),
        image_variance=float(images),
    )


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
    like_a: Sequence[ArrayLike] = (),
    like_b: Sequence[ArrayLike] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean over seeds of the functional, method A - method B, on the same images.

    a, b: (S_A, N) and (S_B, N) bool; a[s] and b[s] have one seed, and the first seeds that both
        have are compared. Or (M, S, N): the mean over M methods, each with S seeds.
    like_a, like_b: runs of further methods in A's and in B's stratum (averaged over updates, or
        not); None: B is in A's, whose methods stand in like_a.
    A run is method + seed + rest, the seed being a block: one seed means the same first weights and
    the same batches for every method. The variance of the rest is pooled within a stratum. That of
    the images is a class-stratified paired bootstrap's, with any minimum inside.
    "worst" must hold for the plug-in minimum and for the cross-fit one: the interval is the hull of
    both.
    With one seed, kind is "checkpoints", the interval covers images, and p is McNemar's (nan of
    several methods). Where both lie below FLOOR, kind is "floor".
    """
    y, a, b = checked(y, *(np.array(runs, ndmin=3) for runs in (a, b)))
    n_seeds = min(a.shape[1], b.shape[1])
    share_a, share_b = (1 / (n_seeds * len(methods)) for methods in (a, b))  # of a mean
    like = [_lenders(y, runs, functional) for runs in (like_a, like_b or ())]

    def noise(in_a: NDArray, in_b: NDArray, f: Functional) -> Noise:
        if n_seeds == 1:
            return Noise(0.0)
        groups: list[list[NDArray]] = [[*a], [*b], *like]
        own_a, own_b, with_a, with_b = ([per_run(y, runs, f) for runs in g] for g in groups)
        if like_b is None:
            rest = residual([*own_a, *own_b, *with_a])
            return Noise((share_a + share_b) * rest.variance, rest.df)
        rest_a, rest_b = residual([*own_a, *with_a]), residual([*own_b, *with_b])
        return together(
            Noise(share_a * rest_a.variance, rest_a.df), Noise(share_b * rest_b.variance, rest_b.df)
        )

    first_a, first_b = (runs[:, :n_seeds].reshape(-1, y.size) for runs in (a, b))
    return _paired(y, first_a, first_b, functional, noise, n_seeds, draws, seed)


def contrast(
    y: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    functional: Functional = "average",
    *,
    siblings: Sequence[tuple[ArrayLike, ArrayLike]] = (),
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean over seeds of the functional, A - B, of the same networks twice: under two attacks.

    a, b: (S, N) bool. siblings: the same two of further methods in the stratum, whose variance over
    seeds is pooled with this one; where either lies at a floor or ceiling, nothing is lent.
    All else as in `compare`. Raises ClaimError where the numbers of runs differ.
    """
    y, a = checked(y, np.atleast_2d(a))
    _, b = checked(y, np.atleast_2d(b))
    if len(a) != len(b):
        raise ClaimError(f"a contrast needs as many runs of each, not {len(a)} and {len(b)}")
    lenders = [pair for pair in siblings if len(_lenders(y, pair, functional)) == len(pair)]

    def noise(in_a: NDArray, in_b: NDArray, f: Functional) -> Noise:
        if len(a) == 1:
            return Noise(0.0)
        lent = [per_run(y, one, f) - per_run(y, two, f) for one, two in lenders]
        spread = pooled([in_a - in_b, *lent])
        return Noise(spread.variance / len(a), spread.df)

    return _paired(y, a, b, functional, noise, len(a), draws, seed)


def _paired(
    y: NDArray,
    a: NDArray,
    b: NDArray,
    functional: Functional,
    noise: Callable[[NDArray, NDArray, Functional], Noise],
    n_seeds: int,
    draws: int,
    seed: int,
) -> Estimate:
    """The estimate of A - B, over n_seeds runs of a method.

    noise: of the values of all runs of A and of B, what the seeds give the mean.
    """
    counts, sizes = resample(y, np.vstack([a, b]), draws, seed)

    def estimate(f: Functional) -> Estimate:
        values = evaluate(f, counts, sizes)
        in_a, in_b = np.split(values, [len(a)], axis=1)
        difference = in_a.mean(1) - in_b.mean(1)
        images = difference[1:].var(ddof=1)
        found = _by_t(difference[0], noise(in_a[0], in_b[0], f), images, n_seeds)
        level = max(in_a[0].mean(), in_b[0].mean()) if f in LEVELS else max(a.mean(), b.mean())
        return replace(found, kind="floor", note="floor") if level < FLOOR else found

    if functional == "worst":
        result = _both(estimate("worst"), estimate("crossfit"))
    else:
        result = estimate(functional)
    if n_seeds > 1:
        return result
    p = mcnemar(a[0], b[0]) if len(a) == len(b) == 1 else nan
    return replace(result, p=p, kind="checkpoints", note="one seed")


def _lenders(y: NDArray, methods: Sequence[ArrayLike], functional: Functional) -> list[NDArray]:
    """The methods with several runs that are not at a floor or ceiling, where seeds cannot differ.

    A floor is one of the functional where that is an accuracy, else of the average.
    """
    f = functional if functional in LEVELS else "average"
    several = [runs for runs in map(np.asarray, methods) if len(runs) > 1]
    return [runs for runs in several if 0.01 < per_run(y, runs, f).mean() < 0.99]


def residual(groups: Sequence[NDArray]) -> Noise:
    """The variance of one run beside its method and its seed, in methods of one stratum.

    groups: the values (S_m,) of each method's runs; place s is the same seed in all. A single
    method has no block to compare with: its own variance.
    """
    if len(groups) == 1:
        return pooled(groups)
    values = np.concatenate(groups)
    sizes = [len(group) for group in groups]
    method = np.repeat(np.arange(len(groups)), sizes)
    place = np.concatenate([np.arange(size) for size in sizes])
    design = np.hstack(
        [method[:, None] == np.arange(len(groups)), place[:, None] == np.arange(1, max(sizes))]
    ).astype(float)
    effects, _, rank, _ = np.linalg.lstsq(design, values)
    rest = values - design @ effects
    df = values.size - int(rank)
    return Noise(float(rest @ rest) / df, df)


def pooled(groups: Sequence[NDArray]) -> Noise:
    """The variance over seeds of values (S_m,), pooled over methods."""
    df = sum(group.size - 1 for group in groups)
    squares = sum(((group - group.mean()) ** 2).sum() for group in groups)
    return Noise(float(squares) / df, df)


def _both(plug_in: Estimate, cross_fit: Estimate) -> Estimate:
    """The worst class by plug-in and by cross-fit: beyond 0 only where both are.

    Plug-in is biased low, cross-fit high. The variances are those of the wider one.
    """
    wider = max(plug_in, cross_fit, key=lambda e: e.detectable)
    return replace(
        wider,
        value=plug_in.value,
        low=min(plug_in.low, cross_fit.low),
        high=max(plug_in.high, cross_fit.high),
        low90=min(plug_in.low90, cross_fit.low90),
        high90=max(plug_in.high90, cross_fit.high90),
        p=max(plug_in.p, cross_fit.p) if plug_in.value * cross_fit.value > 0 else 1.0,
        kind=plug_in.kind,
        note=plug_in.note or f"cross-fit {cross_fit.value:+.4f}",
    )


def against_published(ours: ArrayLike, mean: float, sd: float, n: int = 5) -> Estimate:
    """Mean of our runs (m,) minus a published mean: +- t_{n-1} sd sqrt(1/m + 1/n).

    mean, sd, n: the published mean, standard deviation and number of runs.
    """
    ours = np.asarray(ours, float)
    spread = Noise(sd**2 * (1 / ours.size + 1 / n), n - 1)
    return _by_t(ours.mean() - mean, spread, n_seeds=ours.size, kind="published")


def share(
    k: ArrayLike,
    n: ArrayLike,
    reference: float,
    *,
    shared: bool = True,
    siblings: Sequence[tuple[ArrayLike, ArrayLike]] = (),
) -> Estimate:
    """Mean over runs of k_s / n_s (S,) minus a reference share, over seeds and images.

    shared: the runs share their images, so the binomial variance is not divided by S; False where
        each run has separate trials, such as epochs.
    siblings: k and n of further methods in the stratum, whose variance over seeds is pooled.
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
        return Estimate(value, low, high, p, "checkpoints", note="one seed", seeds=1)
    se = (high - low) / 2 / stats.norm.isf((1 - LEVEL) / 2)
    images = (se**2).mean() / (1 if shared else k.size)
    lent = [np.asarray(hits, float) / np.asarray(of, float) for hits, of in siblings]
    spread = pooled([k / n, *(share for share in lent if share.size > 1)])
    return _by_t(value, Noise(spread.variance / k.size, spread.df), float(images), k.size)


def over_seeds(values: ArrayLike) -> Estimate:
    """Mean over seeds of a statistic of whole runs, (S,), such as a correlation over methods.

    The interval is over seeds alone: all of them are judged on the same images, whose part of the
    variance is not counted. With one seed nothing can be said, and kind is "checkpoints".
    """
    values = np.asarray(values, float)
    if not values.size:
        return Estimate(nan, nan, nan, nan, note="no run to count")
    if values.size == 1:
        value = float(values[0])
        return Estimate(value, nan, nan, nan, "checkpoints", note="one seed", seeds=1)
    spread = pooled([values])
    of_mean = Noise(spread.variance / values.size, spread.df)
    return _by_t(float(values.mean()), of_mean, n_seeds=values.size)


def _correlated(
    value: float, bounds: NDArray, p: float, n_classes: int, note: str = ""
) -> Estimate:
    """An estimate of a correlation over n_classes, with the detectable value by Fisher's z.

    bounds: low, low90, high90, high.
    """
    z = stats.norm.isf([(1 - LEVEL) / 2, 1 - POWER]).sum()
    detectable = float(np.tanh(z / np.sqrt(max(n_classes - 3, 1))))
    low, low90, high90, high = map(float, bounds)
    return Estimate(
        float(value),
        low,
        high,
        float(p),
        "correlation",
        detectable,
        note=note,
        low90=low90,
        high90=high90,
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
    bounds = np.nanquantile(rho, [(1 - LEVEL) / 2, 1 - UPPER, UPPER, (1 + LEVEL) / 2])
    # images add noise to a noisy order, so the bootstrap lies below rho: widen the interval to rho
    bounds = np.r_[np.minimum(bounds[:2], rho[0]), np.maximum(bounds[2:], rho[0])]
    return _correlated(rho[0], bounds, p, orders[0].shape[1], note)


def pearson(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Pearson's r of (K,) and (K,) with Fisher's interval."""
    r = stats.pearsonr(np.asarray(x, float), np.asarray(y, float))
    low, high = r.confidence_interval(LEVEL)
    low90, high90 = r.confidence_interval(EQUIVALENCE)
    bounds = np.array([low, low90, high90, high])
    return _correlated(r.statistic, bounds, r.pvalue, np.size(x))
