"""Robust accuracy under AutoAttack, class by class, from a sample of the images: numpy only.

Phase one attacks all images by cheap attacks. Phase two attacks a sample of the survivors:

- the hard part: the share of all survivors with the smallest attacked margins, taken whole
- the random part: a simple random sample of the rest, drawn class by class

An image counts as robust where it is right when clean, under phase one and under AutoAttack. A
class of n images has a survivors in the hard part, and m images in the rest. Of the rest f are
attacked, and b of these are broken. The estimate is Horvitz and Thompson's (1952, JASA 47):

    R = (a + m (1 - b / f)) / n

It is unbiased whatever the margins say; these only make it precise. Its interval adds two
independent errors in squares (MOVER: Zou and Donner 2008, Statistics in Medicine 27). That of the
images is Wilson's (1927). That of the random part is Jeffreys' (Brown, Cai and DasGupta 2001,
Statistical Science 16) with a finite population correction: it has width where b = 0. Classes lend
one another no breaks, as a network may hide the gradients of one class only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from crat.analysis.metrics import MetricError, checked, must_be_bool, tail, wilson

# the share of breaks in the random part above which a network hides its gradients; five
# adversarially trained networks on Fashion-MNIST have at most 1.1 %
HIDDEN = 0.02
HIDDEN_OF_A_CLASS = 0.05  # the same in one class; T-shirts of these networks have up to 6 %


@dataclass(frozen=True)
class Design:
    """The sample of the survivors that AutoAttack meets.

    hard: the share of all survivors with the smallest margins, taken whole.
    random: the share of a class's other survivors, drawn at random.
    least: the number of images that are drawn in each class, if it has so many.
    seed: of the draw.
    Raises MetricError on a share outside [0, 1] and on less than one image for each class.
    """

    hard: float = 0.05
    random: float = 0.05
    least: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.hard <= 1 and 0 <= self.random <= 1 and self.least >= 1):
            raise MetricError(
                "hard and random are shares in [0, 1] and least is at least 1, "
                f"not {self.hard}, {self.random} and {self.least}"
            )


class Sample(NamedTuple):
    """The images that AutoAttack meets: their places (n,), ascending, and the hard ones (n,)."""

    places: NDArray
    hard: NDArray


class Counts(NamedTuple):
    """The counts of each class that is present, (K,) each."""

    n: NDArray  # images
    hard: NDArray  # attacked in the hard part
    robust: NDArray  # survivors of the hard part, a
    rest: NDArray  # survivors of phase one outside the hard part, m
    drawn: NDArray  # attacked in the random part, f
    broken: NDArray  # broken in the random part, b


def choose(
    y: ArrayLike, survived: ArrayLike, margin: ArrayLike, design: Design | None = None
) -> Sample:
    """The survivors of phase one that AutoAttack shall meet.

    y: labels, (N,). survived: right when clean and under phase one, (N,) bool.
    margin: the smallest margin under phase one's attacks, (N,); ties go to the earlier image.
    The draw of a class depends on the seed and on that class's survivors only.
    """
    design = design or Design()
    y, survived, margin = checked(y, survived, margin)
    must_be_bool(survived)
    survivors = np.flatnonzero(survived)
    order = survivors[np.argsort(margin[survivors], kind="stable")]
    n_hard = ceil(round(design.hard * order.size, 9))
    hard = order[:n_hard]
    rest = np.sort(order[n_hard:])
    parts = [hard]
    for label in np.unique(y[rest]):
        members = rest[y[rest] == label]
        share = ceil(round(design.random * members.size, 9))
        size = min(members.size, max(design.least, share))
        draw = np.random.default_rng([design.seed, label])
        parts.append(draw.choice(members, size, replace=False))
    places = np.sort(np.concatenate(parts))
    return Sample(places, np.isin(places, hard))


def counts(y: ArrayLike, survived: ArrayLike, sample: Sample, withstood: ArrayLike) -> Counts:
    """The counts of the classes that have images.

    y, survived: as in `choose`, (N,). withstood: whether AutoAttack failed on each image of the
    sample, (n,) bool.
    Raises MetricError where the sample has an image that phase one broke, or no image of a class
    with survivors outside the hard part.
    """
    y, survived = checked(y, survived)
    withstood = np.asarray(withstood)
    must_be_bool(survived, withstood, sample.hard)
    if withstood.shape != sample.places.shape or not survived[sample.places].all():
        raise MetricError("the sample's images are survivors of phase one, each with an outcome")
    _, label = np.unique(y, return_inverse=True)

    def per_class(images: NDArray) -> NDArray:
        return np.bincount(label[images], minlength=label.max() + 1)

    hard = sample.places[sample.hard]
    drawn = sample.places[~sample.hard]
    tally = Counts(
        n=np.bincount(label),
        hard=per_class(hard),
        robust=per_class(sample.places[sample.hard & withstood]),
        rest=per_class(np.flatnonzero(survived)) - per_class(hard),
        drawn=per_class(drawn),
        broken=per_class(sample.places[~sample.hard & ~withstood]),
    )
    if ((tally.rest > 0) & (tally.drawn == 0)).any():
        raise MetricError("a class has survivors outside the hard part, but none of them is drawn")
    return tally


def class_estimates(
    tally: Counts, classes: Sequence[str] | None = None, level: float = 0.95
) -> pd.DataFrame:
    """A row for each class that has images, with intervals at `level`.

    Columns: class; n; robust_acc, the estimate; low, high; se, the standard error from both parts,
    in which a random part of f images counts as b + 1/2 breaks of f + 1; attacked, the number of
    images that AutoAttack met; drawn and drawn_broken, those of the random part.
    classes: the names of these classes (None: their numbers).
    """
    accuracy, _ = _accuracy(tally)
    low, high = _limits(tally, level)
    weight = tally.rest / tally.n
    rounded = (tally.broken + 0.5) / (tally.drawn + 1)
    of_images = accuracy * (1 - accuracy) / tally.n
    of_draw = weight**2 * rounded * (1 - rounded) * _correction(tally) / tally.drawn.clip(1)
    columns = {
        "class": list(classes if classes is not None else range(len(tally.n))),
        "n": tally.n,
        "robust_acc": accuracy,
        "low": low,
        "high": high,
        "se": np.sqrt(of_images + of_draw),
        "attacked": tally.hard + tally.drawn,
        "drawn": tally.drawn,
        "drawn_broken": tally.broken,
    }
    return pd.DataFrame(columns)


def totals(tally: Counts, level: float = 0.95) -> dict[str, Any]:
    """The estimates over the classes, each with its interval [low, high] at `level`.

    average: of the classes, each counting the same. share: of all images. worst and tail (see
    `crat.analysis.metrics`): the estimate is the functional of the classes' estimates, its interval
    that of all lower and of all upper limits, each at 1 - (1 - level) / K. The estimate of the
    worst class is biased low, most where classes nearly tie.
    """
    accuracy, _ = _accuracy(tally)
    n_classes = len(tally.n)
    table: dict[str, Any] = {}
    for name, weight in {"average": np.ones(n_classes), "share": tally.n}.items():
        weight = weight / weight.sum()
        low, high = _weighted_limits(tally, weight, level)
        interval = [float(low), float(high)]
        table |= {name: float(weight @ accuracy), f"{name}_interval": interval}
    limits = _limits(tally, 1 - (1 - level) / n_classes)
    functionals: dict[str, Callable[[NDArray], NDArray]] = {"worst": np.min, "tail": tail}
    for name, functional in functionals.items():
        interval = [float(functional(limit)) for limit in limits]
        table |= {name: float(functional(accuracy)), f"{name}_interval": interval}
    return table


def warning(tally: Counts, phase_one: str, classes: Sequence[str]) -> str:
    """A line on the breaks in the random part; "" where there are none.

    phase_one: the attacks of phase one in words. classes: the names of the classes of `tally`.
    The line says that the network hides its gradients where the lower limit of the share of breaks
    exceeds HIDDEN over all classes, or HIDDEN_OF_A_CLASS in one (there at 1 - .05 / K).
    """
    broken = int(tally.broken.sum())
    drawn = int(tally.drawn.sum())
    if not broken:
        return ""
    line = (
        f"{broken} of {drawn} randomly drawn images that {phase_one} left were broken by AutoAttack"
    )
    by_class, _ = jeffreys(tally.broken, tally.drawn, 1 - 0.05 / len(tally.n))
    hidden = [classes[int(k)] for k in np.flatnonzero(by_class > HIDDEN_OF_A_CLASS)]
    overall, _ = jeffreys(broken, drawn)
    if overall > HIDDEN or hidden:
        line += ": the network hides its gradients"
    if hidden:
        line += f", most for {', '.join(hidden[:3])}{' ...' if hidden[3:] else ''}"
    return f"{line}; the intervals widen"


def jeffreys(k: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[NDArray, NDArray]:
    """Jeffreys' interval of k successes in n trials, elementwise; k and n need not be whole.

    The lower limit is 0 where k = 0, the upper limit is 1 where k = n. Source: Brown, Cai and
    DasGupta 2001 (Statistical Science 16), section 4.1.2.
    """
    k, n = np.asarray(k, float), np.asarray(n, float)
    outside = (1 - level) / 2
    low = stats.beta.ppf(outside, k + 0.5, n - k + 0.5)
    high = stats.beta.isf(outside, k + 0.5, n - k + 0.5)
    return np.where(k > 0, low, 0.0), np.where(k < n, high, 1.0)


def _accuracy(tally: Counts) -> tuple[NDArray, NDArray]:
    """The estimates of R (K,), and the share of the random part that is broken (K,)."""
    rate = tally.broken / tally.drawn.clip(1)
    return (tally.robust + tally.rest * (1 - rate)) / tally.n, rate


def _correction(tally: Counts) -> NDArray:
    """The finite population correction of each class's random part: 0 where all are drawn."""
    return 1 - tally.drawn / tally.rest.clip(1)


def _limits(tally: Counts, level: float) -> tuple[NDArray, NDArray]:
    """The limits of each class, (K,) each."""
    return _weighted_limits(tally, np.eye(len(tally.n)), level)


def _weighted_limits(tally: Counts, weights: NDArray, level: float) -> tuple[NDArray, NDArray]:
    """The limits of weighted means of the classes.

    weights: (..., K), of which each row sums to 1 -> (...).
    Of images in several classes so many count as give a mean of equal shares the same variance
    (Kish 1965, Survey Sampling, section 11.7).
    """
    accuracy, rate = _accuracy(tally)
    mean = weights @ accuracy
    n = 1 / (weights**2 @ (1 / tally.n))
    low, high = wilson(mean * n, n, level)
    rests = weights * tally.rest / tally.n
    rest = rests.sum(-1)
    variances = rests**2 / tally.drawn.clip(1)
    variance = variances.sum(-1)
    some = rest > 0  # elsewhere all survivors are attacked
    drawn = np.divide(rest**2, variance, out=np.ones_like(rest), where=some)
    broken = np.divide(rests @ rate, rest, out=np.zeros_like(rest), where=some)
    left = np.divide(variances @ _correction(tally), variance, out=np.zeros_like(rest), where=some)
    fewest, most = jeffreys(broken * drawn, drawn, level)
    scale = rest * np.sqrt(left)
    below = np.hypot(mean - low, scale * (most - broken))
    above = np.hypot(high - mean, scale * (broken - fewest))
    return np.maximum(mean - below, 0), np.minimum(mean + above, 1)
