"""Class-wise numbers with intervals: labels and predictions in, numpy and pandas out.

Accuracies are fractions in [0, 1]. y is (N,) integer labels; `correct` is (N,) bool, or (S, N) for
S runs (seeds) on the same N images. A class with no image has accuracy nan and enters no
functional. Minima over classes are biased low, most where classes nearly tie: hence the cross-fit
beside every worst class, and intervals with the minimum inside. No torch, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, inf, nan
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Attacks = Mapping[str, ArrayLike]  # name -> predictions (N,)
Functional = str | Callable[[NDArray], float]
EXACT_CLASSES = 10  # up to here every permutation is counted; above, 99,999 seeded draws


class MetricError(ValueError):
    """Labels, predictions or options that give no number; one line names the fault."""


def checked(y: ArrayLike, *arrays: ArrayLike, n_classes: int | None = None) -> list[NDArray]:
    """Labels (N,) as int64 and per-image arrays (..., N).

    Raises MetricError on labels that are not whole numbers in 0 ... n_classes - 1, and on another
    length.
    """
    labels = np.asarray(y)
    if labels.ndim != 1 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise MetricError(
            f"labels must be a non-empty 1-D integer array, "
            f"not {labels.dtype} of shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= (n_classes or inf):
        raise MetricError(
            f"labels must lie between 0 and {(n_classes or inf) - 1}, "
            f"not between {labels.min()} and {labels.max()}"
        )
    others = [np.asarray(array) for array in arrays]
    for other in others:
        if other.shape[-1:] != labels.shape:
            raise MetricError(
                f"{labels.size} labels but an array of shape {other.shape}: "
                f"the last axis is the image"
            )
    return [labels.astype(np.int64, copy=False), *others]


def must_be_bool(*arrays: NDArray) -> None:
    """Raises MetricError unless all arrays are bool: predictions would give a wrong number."""
    if wrong := [array.dtype for array in arrays if array.dtype != bool]:
        raise MetricError(
            f"correctness must be bool, not {wrong[0]}: compare predictions with the labels first"
        )


def class_accuracy(y: ArrayLike, correct: ArrayLike, n_classes: int) -> NDArray:
    """Share correct of each class by its count: (..., N) -> (..., n_classes), nan if absent."""
    y, correct = checked(y, correct, n_classes=n_classes)
    rows = correct.reshape(-1, y.size)
    counts = np.stack([np.bincount(y, row, n_classes) for row in rows])
    with np.errstate(invalid="ignore"):
        shares = counts / np.bincount(y, minlength=n_classes)
    return shares.reshape(*correct.shape[:-1], n_classes)


def wilson(k: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[NDArray, NDArray]:
    """Wilson's score interval of k successes in n trials, elementwise; nan where n = 0.

    Source: Wilson 1927 (JASA 22).
    """
    k, n = np.asarray(k, float), np.asarray(n, float)
    z = stats.norm.isf((1 - level) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (k + z**2 / 2) / (n + z**2)
        spread = np.sqrt(k * (n - k) / n + z**2 / 4)
        half = z / (n + z**2) * spread
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def worst_interval(k: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """[min L_k, min U_k] of the worst class, each by Wilson at 1 - (1 - level) / K.

    k, n: (K,) successes and trials; absent classes are left out.
    """
    k, n = np.asarray(k), np.asarray(n)
    k, n = k[n > 0], n[n > 0]
    low, high = wilson(k, n, 1 - (1 - level) / n.size)
    return float(low.min()), float(high.min())


def robust_correct(y: ArrayLike, clean_pred: ArrayLike, *adv_preds: ArrayLike) -> NDArray:
    """(N,) bool: right on the clean image and under every attack (the worst case per sample)."""
    y, *preds = checked(y, clean_pred, *adv_preds)
    return np.logical_and.reduce([pred == y for pred in preds])


def outcomes(y: ArrayLike, clean_pred: ArrayLike, attacks: Attacks) -> dict[str, NDArray]:
    """Robust correctness (N,) by name: "clean", each attack, and "union" where there are several.

    Raises MetricError where an attack is called "clean" or "union".
    """
    if taken := {"clean", "union"} & set(attacks):
        raise MetricError(
            f"an attack may not be called {taken.pop()!r}: the name is reserved for the tables"
        )
    table = {"clean": robust_correct(y, clean_pred)}
    for name, pred in attacks.items():
        table[name] = robust_correct(y, clean_pred, pred)
    if len(attacks) > 1:
        table["union"] = robust_correct(y, clean_pred, *attacks.values())
    return table


def tail(acc: NDArray) -> NDArray:
    """Mean accuracy of the worst 20 % of the classes present (30 % for K = 10), rounded up.

    acc: (..., K) -> (...).
    """
    n_classes = int((~np.isnan(acc)).sum(-1).min())
    fraction = 0.3 if n_classes == 10 else 0.2
    worst = ceil(round(fraction * n_classes, 9))  # rounded, as 0.2 * 15 is a hair above 3
    return np.sort(acc, -1)[..., :worst].mean(-1)


def nsd(acc: NDArray) -> NDArray:
    """Normalised spread std_k / mean_k, (..., K) -> (...); nan where the mean is 0."""
    mean = np.nanmean(acc, -1)
    return np.nanstd(acc, -1) / np.where(mean > 0, mean, nan)


# over classes, each counting the same; variance and spread divide by K, as the papers' code does
# (np.var, np.std)
FUNCTIONALS: dict[str, Callable[[NDArray], NDArray]] = {
    "average": lambda acc: np.nanmean(acc, -1),
    "worst": lambda acc: np.nanmin(acc, -1),
    "tail": tail,
    "variance": lambda acc: np.nanvar(acc, -1),
    "spread": lambda acc: np.nanstd(acc, -1),
    "gap": lambda acc: np.nanmax(acc, -1) - np.nanmin(acc, -1),
    "nsd": nsd,
}


def halves(y: ArrayLike, seed: int = 0) -> NDArray:
    """(N,) 0 or 1: two random halves of every class, the same for the same seed.

    An odd image goes to half 0.
    """
    y = checked(y)[0]
    order = np.lexsort((np.random.default_rng(seed).random(y.size), y))
    first = np.searchsorted(y[order], y[order])  # where the class begins in the sorted labels
    half = np.empty(y.size, int)
    half[order] = (np.arange(y.size) - first) % 2
    return half


def _crossfit(half_acc: NDArray) -> NDArray:
    """Worst class by cross-fit: argmin on one half, value on the other, both ways, averaged.

    half_acc: (..., K, 2) accuracies on two halves -> (...).
    """
    chosen = half_acc.argmin(-2)[..., None, ::-1]
    return np.take_along_axis(half_acc, chosen, -2)[..., 0, :].mean(-1)


def resample(y: NDArray, runs: NDArray, draws: int, seed: int) -> tuple[NDArray, NDArray]:
    """Paired bootstrap over images: correct counts (1 + draws, S, K, 2) and sizes (K, 2).

    The axes are run, class (present ones only) and half; row 0 is the observed counts. All runs see
    the same resampled images. Images of a stratum with the same outcome in all runs are
    exchangeable, so their multiplicities are drawn together, as one cell.
    """
    must_be_bool(runs)
    classes, index = np.unique(y, return_inverse=True)
    half, rng = halves(y), np.random.default_rng(seed)
    counts = np.zeros((1 + draws, len(runs), classes.size, 2))
    sizes = np.zeros((classes.size, 2))
    for k, h in np.ndindex(classes.size, 2):
        members = runs[:, (index == k) & (half == h)]
        sizes[k, h] = members.shape[1]
        if members.size:
            patterns, times = np.unique(members, axis=1, return_counts=True)
            drawn = rng.multinomial(times.sum(), times / times.sum(), size=draws)
            counts[:, :, k, h] = np.vstack([times, drawn]) @ patterns.T
    return counts, sizes


def evaluate(functional: Functional, counts: NDArray, sizes: NDArray) -> NDArray:
    """Functional of each run: counts (..., K, 2) -> (...).

    Raises MetricError on an unknown functional.
    """
    if functional == "crossfit":
        # a class of one image cannot be chosen on one half and judged on the other
        both = (sizes > 0).all(-1)
        if not both.any():
            return np.full(counts.shape[:-2], nan)
        return _crossfit(counts[..., both, :] / sizes[both])
    acc = counts.sum(-1) / sizes.sum(-1)
    if callable(functional):
        return np.apply_along_axis(functional, -1, acc)
    if functional not in FUNCTIONALS:
        raise MetricError(
            f"unknown functional {functional!r}; known: crossfit, {', '.join(FUNCTIONALS)}"
        )
    return FUNCTIONALS[functional](acc)


def per_run(y: ArrayLike, correct: ArrayLike, functional: Functional) -> NDArray:
    """Functional of every run, (S, N) -> (S,).

    functional: a name of FUNCTIONALS, "crossfit", or a function of (K,).
    """
    y, correct = checked(y, correct)
    return evaluate(functional, *resample(y, np.atleast_2d(correct), 0, 0))[0]


def summary(
    y: ArrayLike, clean_pred: ArrayLike, attacks: Attacks, classes: Sequence[str]
) -> pd.DataFrame:
    """Tidy table, a row per (attack, class), of class-wise accuracies and their intervals.

    Columns: attack, class, n, clean_acc, robust_acc with Wilson's 95 % (low, high), boundary_error,
    adv_acc.
    robust_acc: clean-correct and correct under attack.
    boundary_error: clean-correct but broken.
    adv_acc: right on the attacked image alone, as in CFA's tables.
    Attack "clean" is none, "union" all together.
    """
    n_classes = len(classes)
    y, clean_pred = checked(y, clean_pred, n_classes=n_classes)
    n = np.bincount(y, minlength=n_classes)
    clean = class_accuracy(y, clean_pred == y, n_classes)
    frames = []
    for name, correct in outcomes(y, clean_pred, attacks).items():
        robust = class_accuracy(y, correct, n_classes)
        low, high = wilson(np.nan_to_num(robust) * n, n)
        columns = {
            "attack": name,
            "class": list(classes),
            "n": n,
            "clean_acc": clean,
            "robust_acc": robust,
            "low": low,
            "high": high,
            "boundary_error": clean - robust,
            "adv_acc": class_accuracy(y, _right(name, y, clean_pred, attacks), n_classes),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _right(name: str, y: NDArray, clean_pred: NDArray, attacks: Attacks) -> NDArray:
    """(N,) bool: right on the images of an attack alone ("clean" and "union" as in `outcomes`)."""
    if name == "clean":
        return clean_pred == y
    preds = list(attacks.values()) if name == "union" else [attacks[name]]
    return np.logical_and.reduce([np.asarray(pred) == y for pred in preds])


def totals(y: ArrayLike, clean_pred: ArrayLike, attacks: Attacks) -> pd.DataFrame:
    """A row per attack: every functional, the cross-fit worst, and the worst class's interval.

    worst_low, worst_high: the interval in which the worst class lies, of `worst_interval`.
    """
    (y,) = checked(y)
    rows = []
    for name, correct in outcomes(y, clean_pred, attacks).items():
        counts, sizes = resample(y, correct[None], 0, 0)
        row: dict[str, Any] = {"attack": name}
        for functional in [*FUNCTIONALS, "crossfit"]:
            row[functional] = evaluate(functional, counts, sizes).item()
        right = np.bincount(y, weights=correct)
        row["worst_low"], row["worst_high"] = worst_interval(right, np.bincount(y))
        rows.append(row)
    return pd.DataFrame(rows)


def confusion(y: ArrayLike, pred: ArrayLike, n_classes: int, normalise: bool = False) -> NDArray:
    """Confusion matrix (K, K), counts M[true, predicted].

    normalise: each row sums to 1 (nan for an absent class).
    """
    y, pred = checked(y, pred, n_classes=n_classes)
    checked(pred, n_classes=n_classes)
    matrix = np.bincount(y * n_classes + pred, minlength=n_classes**2).reshape(n_classes, n_classes)
    if not normalise:
        return matrix
    with np.errstate(invalid="ignore"):
        return matrix / matrix.sum(1, keepdims=True)


def asymmetry(matrix: ArrayLike) -> NDArray:
    """|M_ij - M_ji| of a confusion matrix, (K, K) -> (K, K)."""
    return np.abs(np.asarray(matrix) - np.asarray(matrix).T)


def off_diagonal_norm(matrix: ArrayLike) -> NDArray:
    """Spectral norm of a confusion matrix's errors, (..., K, K) -> (...), at least 0.

    Each row is divided by its sum, so counts and shares give the same; the diagonal counts as 0,
    and so does the row of an absent class. For K classes the norm lies between the mean error of a
    class and sqrt(K) times the largest.
    Source: Jin et al. 2025 (ICLR), whose bound on the worst class's robust error contains it.
    """
    counts = np.asarray(matrix, float)
    with np.errstate(invalid="ignore"):
        shares = np.nan_to_num(counts / counts.sum(-1, keepdims=True))
    errors = shares * (1 - np.eye(counts.shape[-1]))
    return np.linalg.norm(errors, 2, axis=(-2, -1))


def top_share(matrix: ArrayLike, top: int = 1, chosen_on: ArrayLike | None = None) -> NDArray:
    """(K,) share of each class's errors that end in its `top` wrong classes; nan without errors.

    chosen_on: counts (K, K) of other images (another half, another seed) by which wrong classes are
        ranked; without it they are ranked by the same matrix, which biases the share up.
    Chance is top / (K - 1).
    """
    errors = np.array(matrix, float)
    ranked = np.array(matrix if chosen_on is None else chosen_on, float)
    np.fill_diagonal(errors, 0)
    np.fill_diagonal(ranked, -1)
    first = np.argsort(-ranked, 1, kind="stable")[:, :top]
    hit = np.take_along_axis(errors, first, 1).sum(1)
    with np.errstate(invalid="ignore"):
        return hit / errors.sum(1)


def runner_up(logits: ArrayLike, y: ArrayLike) -> NDArray:
    """(N,) wrong class with the highest logit: where an untargeted attack is expected to end."""
    logits = np.array(logits, float)
    (y,) = checked(y, n_classes=logits.shape[-1])
    logits[np.arange(y.size), y] = -np.inf
    return logits.argmax(-1)


def homing_set(
    y: ArrayLike, clean_pred: ArrayLike, adv_pred: ArrayLike, label: int, ends_in: int
) -> NDArray:
    """(N,) bool: images of class `label`, right when clean, that the attack turns into `ends_in`.

    The removal test is `summary` and `confusion` of these images under a model without that class,
    and under its controls: a new seed, the logit masked.
    """
    y, clean_pred = checked(y, clean_pred)
    _, adv_pred = checked(y, adv_pred)
    return (y == label) & (clean_pred == label) & (adv_pred == ends_in)


def hazard(
    y: ArrayLike, robust: ArrayLike, robust_strong: ArrayLike, classes: Sequence[str]
) -> pd.DataFrame:
    """Share of one attack's survivors that a stronger attack breaks, per class, with Wilson's 95 %.

    robust, robust_strong: (N,) bool; a sample counts as strong-robust only where it also survived
        the first attack.
    Columns class, survivors, robust_acc, gain (R - R_strong), share_of_gain, hazard = gain / R
    (free of R on both axes), low, high.
    """
    n_classes = len(classes)
    y, robust = checked(y, robust, n_classes=n_classes)
    _, robust_strong = checked(y, robust_strong)
    must_be_bool(robust, robust_strong)
    n = np.bincount(y, minlength=n_classes)
    before = np.bincount(y, robust, n_classes)
    lost = np.bincount(y, robust & ~robust_strong, n_classes)
    low, high = wilson(lost, before)
    with np.errstate(invalid="ignore"):
        columns = {
            "class": list(classes),
            "survivors": before.astype(int),
            "robust_acc": before / n,
            "gain": lost / n,
            "share_of_gain": lost / lost.sum(),
            "hazard": lost / before,
            "low": low,
            "high": high,
        }
    return pd.DataFrame(columns)


def spearman(a: ArrayLike, b: ArrayLike) -> NDArray:
    """Spearman's rho along the last axis, ties by mid-ranks; nan where one side is constant."""
    r, q = _centred_ranks(a), _centred_ranks(b)
    squares = (r**2).sum(-1) * (q**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (r * q).sum(-1) / np.sqrt(squares)


def _centred_ranks(values: ArrayLike) -> NDArray:
    """Mid-ranks along the last axis, their mean taken off."""
    return stats.rankdata(values, axis=-1) - (np.shape(values)[-1] + 1) / 2


def permutation_p(x: ArrayLike, y: ArrayLike, seed: int = 0) -> float:
    """Two-sided p of Spearman's rho of (K,) and (K,), ties included.

    Exact up to EXACT_CLASSES classes, else by 99,999 seeded draws.
    """
    a, b = _doubled_ranks(x), _doubled_ranks(y)
    centre = a.sum() * b.sum() / a.size
    distance = abs(a @ b - centre) - 1e-9
    if a.size > EXACT_CLASSES:
        far = sum((np.abs(sums - centre) >= distance).sum() for sums in _drawn_products(a, b, seed))
        return float((1 + far) / 100_000)
    ways = _ways_of_products(a, b)
    far = ways[np.abs(np.arange(ways.size) - centre) >= distance]
    return float(far.sum() / ways.sum())


def _doubled_ranks(values: ArrayLike) -> NDArray:
    """Twice the mid-ranks (K,), which are whole numbers."""
    return np.round(2 * stats.rankdata(values)).astype(int)


def _drawn_products(a: NDArray, b: NDArray, seed: int) -> Iterator[NDArray]:
    """Sums of rank products under 99,999 seeded permutations of b, in blocks of 8 MB."""
    rng = np.random.default_rng(seed)
    block = max(1, 10**6 // a.size)
    for start in range(0, 99_999, block):
        rows = min(block, 99_999 - start)
        yield rng.permuted(np.tile(b, (rows, 1)), axis=1) @ a


def _ways_of_products(a: NDArray, b: NDArray) -> NDArray:
    """The number of permutations of b that give each sum of rank products 0, 1, 2 ...

    It is built up position by position over the subsets of ranks used so far.
    """
    top = int(np.sort(a) @ np.sort(b)) + 1
    ways = np.zeros((1 << a.size, top))
    ways[0, 0] = 1
    for used in range((1 << a.size) - 1):
        for j in range(a.size):
            if not used >> j & 1:
                product = a[used.bit_count()] * b[j]
                ways[used | 1 << j, product:] += ways[used, : top - product]
    return ways[-1]


def split_half(y: ArrayLike, correct: ArrayLike, splits: int = 200) -> float:
    """Ceiling of a rank correlation: rho between two halves of the images, stepped up to all.

    correct: (N,) or (S, N) bool.
    splits: the number of class-stratified random halves whose rho is averaged; the step is
        Spearman-Brown's.
    """
    y, correct = checked(y, np.atleast_2d(correct))
    index = np.unique(y, return_inverse=True)[1]
    right, n_strata = correct.mean(0), 2 * index.max() + 2
    strata = [2 * index + halves(y, seed) for seed in range(splits)]
    acc = np.array([class_accuracy(stratum, right, n_strata) for stratum in strata])
    first, second = acc[:, ::2], acc[:, 1::2]
    rho = float(np.nanmean(spearman(first, second)))
    return 2 * rho / (1 + rho) if rho > 0 else rho
