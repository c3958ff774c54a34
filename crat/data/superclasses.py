"""The superclasses of the registry, and confusions between them, in plain numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crat.config import ConfigError
from crat.data.registry import DATASETS

GROUPS = {name: spec.superclasses for name, spec in DATASETS.items() if spec.superclasses}


def superclasses(name: str) -> tuple[tuple[str, ...], NDArray]:
    """The names (G,) of a data set's superclasses, and the superclass number of each class (K,).

    Raises ConfigError where the data set has none.
    """
    if name not in GROUPS:
        raise ConfigError(f"{name} has no superclasses; those that have: {', '.join(GROUPS)}")
    of = {member: g for g, group in enumerate(GROUPS[name].values()) for member in group}
    return tuple(GROUPS[name]), np.array([of[member] for member in DATASETS[name].classes])


def blocks(matrix: ArrayLike, of: ArrayLike) -> NDArray:
    """The confusion matrix between superclasses: counts (K, K), `of` (K,) -> (G, G)."""
    member = np.eye(np.max(of) + 1, dtype=int)[np.asarray(of)]  # (K, G)
    return member.T @ np.asarray(matrix) @ member


def errors_within(matrix: ArrayLike, of: ArrayLike) -> tuple[int, int, float]:
    """The errors inside the true superclass, all errors, and the share inside by chance.

    matrix: counts (K, K); of: (K,). Chance is the share that would, if each error ended in every
    wrong class alike: the mean over errors of (members - 1) / (K - 1). It is nan where there is no
    error.
    """
    wrong, of = np.array(matrix), np.asarray(of)
    np.fill_diagonal(wrong, 0)
    same = of[:, None] == of
    total = int(wrong.sum())
    alike = (same.sum(1) - 1) / (len(of) - 1)
    chance = float(wrong.sum(1) @ alike / total) if total else float("nan")
    return int(wrong[same].sum()), total, chance


def disparity(acc: ArrayLike, of: ArrayLike) -> tuple[NDArray, NDArray]:
    """The variance of class accuracies (..., K), between superclasses and within them.

    Between: of the superclasses' means, each counting its classes; within: of the classes around
    these means.
    """
    acc, of = np.asarray(acc, float), np.asarray(of)
    # (..., K): the mean of each class's superclass
    means = np.stack([acc[..., of == g].mean(-1) for g in of], -1)
    return means.var(-1), ((acc - means) ** 2).mean(-1)
