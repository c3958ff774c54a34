"""CFA's toy model in closed form: two classes, one robust feature and d weak ones. No torch.

y is +1 or -1; x_1 = y with probability p, else -y, and p differs between the classes; x_2 ...
x_{d+1} are N(eta y, 1). The classifier is sign(x_1 + (x_2 + ... + x_{d+1}) / w), w > 0: a large w
trusts the first feature. The attack moves every weak feature by eps against y; with `first` it
moves x_1, too.
Source: Wei et al. 2023, section 3 (our symbols).
"""

from __future__ import annotations

from math import inf, log, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats


class ToyError(ValueError):
    """A toy model out of its range; one line names what is allowed."""


def accuracy(
    w: ArrayLike, p: float, eta: float, d: int = 1, eps: float = 0.0, *, first: bool = False
) -> NDArray:
    """Accuracy of a class under the attack, in closed form; eps = 0: clean.

    w: (...), above 0 -> (...) in [0, 1].
    p: how often x_1 agrees with y in this class.
    """
    _check(p, eta, d, eps)
    w = np.asarray(w, float)
    moved = eps if first else 0.0
    # the mean of y times the weak features' sum, whose standard deviation is sqrt(d)
    weak = d * (eta - eps)
    agrees = stats.norm.cdf((weak + w * (1 - moved)) / sqrt(d))
    differs = stats.norm.cdf((weak - w * (1 + moved)) / sqrt(d))
    return p * agrees + (1 - p) * differs


def best_w(p: float, eta: float, d: int = 1, eps: float = 0.0, *, first: bool = False) -> float:
    """The w of a class's largest accuracy: ln(p / (1 - p)) / (2 (eta - eps)) with x_1 left alone.

    0 and inf are limits: nothing but the weak features, nothing but x_1. With `first` the accuracy
    has at most one inner maximum, after which it falls and then rises to p again: the larger of the
    two counts.
    """
    _check(p, eta, d, eps)
    if not first or eps == 0:
        odds = log(p / (1 - p))
        if odds <= 0:
            return 0.0
        return odds / (2 * (eta - eps)) if eps < eta else inf
    inner = _inner_maximum(p, eta, d, eps)
    return inf if accuracy(inner, p, eta, d, eps, first=True) < p else inner


def _inner_maximum(p: float, eta: float, d: int, eps: float) -> float:
    """The w of the inner maximum where the attack moves x_1, too.

    The slope has the sign of odds - 2 (eta - eps) w + 2 eps w^2 / d, and this is its first zero: 0
    where the accuracy falls from the start, inf where it never falls.
    """
    odds = log(p * (1 - eps) / ((1 - p) * (1 + eps)))
    root = (eta - eps) ** 2 - 2 * eps * odds / d
    if odds <= 0:
        return 0.0
    return d * ((eta - eps) - sqrt(root)) / (2 * eps) if root >= 0 else inf


def infinite_from(p: float, eta: float, d: int = 1) -> float:
    """Smallest eps at which w = inf is best though the attack moves x_1, too; at most eta."""

    def missing(eps: float) -> float:
        inner = _inner_maximum(p, eta, d, eps)
        if inner == inf:
            return -1.0
        return float(accuracy(inner, p, eta, d, eps, first=True)) - p

    return float(optimize.brentq(missing, 1e-6, eta))


def draw(
    n: int, p: dict[int, float], eta: float, d: int, rng: np.random.Generator
) -> tuple[NDArray, NDArray]:
    """n points of each class, +1 and -1: x (2 n, 1 + d), y (2 n,); p by class."""
    y = np.repeat([1, -1], n)
    agrees = rng.random(2 * n) < np.repeat([p[1], p[-1]], n)
    weak = rng.normal(eta * y[:, None], 1.0, (2 * n, d))
    return np.column_stack([np.where(agrees, y, -y), weak]), y


def attack(x: NDArray, y: NDArray, eps: float, *, first: bool = False) -> NDArray:
    """Worst points within eps (L-inf) of x (n, 1 + d), for every w > 0 at once.

    first: move x_1, too.
    """
    x_adv = x - eps * y[:, None]
    if not first:
        x_adv[:, 0] = x[:, 0]
    return x_adv


def classify(x: NDArray, w: float) -> NDArray:
    """sign(x_1 + sum of the others / w), (n, 1 + d) -> (n,) of +1 and -1."""
    score = x[:, 0] + x[:, 1:].sum(1) / w
    return np.where(score > 0, 1, -1)


def _check(p: float, eta: float, d: int, eps: float) -> None:
    if not (0 < p < 1 and 0 < eta < 0.5 and d >= 1 and 0 <= eps <= eta):
        raise ToyError(
            "the toy model needs p in (0, 1), eta in (0, 0.5), d >= 1, eps in [0, eta], "
            f"not {p}, {eta}, {d}, {eps}"
        )
