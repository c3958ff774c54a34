"""Accuracy over the attack's radius, from the minimal radius of each image; no torch, no files."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crat.analysis.metrics import MetricError, checked, class_accuracy


def robust_accuracy_over_eps(
    y: ArrayLike, radius: ArrayLike, eps: ArrayLike, n_classes: int
) -> NDArray:
    """Robust accuracy R_k of each class at each radius, (E, n_classes); nan for an absent class.

    y: (N,) labels.
    radius: (N,), the smallest eps that breaks each image (0: wrong when clean, inf: never), as
        `attacks.minimal_radius` gives it.
    eps: (E,), not above the largest radius that was tried.
    An image counts at eps where its radius is larger, so eps = 0 gives clean accuracy.
    Raises MetricError on a negative or nan radius or eps.
    """
    y, radius = checked(y, radius, n_classes=n_classes)
    # 0.1 in float32 is above 0.1: both sides round alike
    grid = np.asarray(eps).astype(radius.dtype)
    if radius.ndim != 1 or grid.ndim != 1:
        raise MetricError(f"radius and eps are 1-D, not of shape {radius.shape} and {grid.shape}")
    if not ((radius >= 0).all() and (grid >= 0).all()):
        raise MetricError("radius and eps must be 0 or above, and not nan")
    return class_accuracy(y, radius > grid[:, None], n_classes)
