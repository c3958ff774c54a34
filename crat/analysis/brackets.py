"""The class-wise bracket of robust accuracy: certified from below, attacked from above.

No torch, no files. Certified numbers of classes are published elsewhere by other means: of smoothed
classifiers (Jin et al., arXiv 2503.17172), and a score over generated images (Shah et al., arXiv
2604.12757).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from crat.analysis.metrics import MetricError, checked, class_accuracy, must_be_bool, wilson


def bracket(
    y: ArrayLike, certified: ArrayLike, robust: ArrayLike, classes: Sequence[str]
) -> pd.DataFrame:
    """Tidy table, a row per class with images: class, n, certified_acc, robust_acc, low, high.

    y: (N,). certified, robust: (N,) bool, whether no image of the ball is wrong, and whether the
    attacks found none. On these images the true robust accuracy lies in [certified_acc,
    robust_acc]. low, high: the class's, on images like them, lies between the lower end of Wilson's
    95 % interval of the one and the upper end of the other's.
    Raises MetricError where an image is certified and broken: one of both is wrong.
    """
    y, certified, robust = checked(y, certified, robust, n_classes=len(classes))
    must_be_bool(certified, robust)
    if wrong := int((certified & ~robust).sum()):
        raise MetricError(f"{wrong} of {y.size} images are certified and broken: one is wrong")
    n = np.bincount(y, minlength=len(classes))
    shares = class_accuracy(y, np.stack([certified, robust]), len(classes))
    ends = [wilson(np.nan_to_num(share) * n, n) for share in shares]
    columns = {
        "class": list(classes),
        "n": n,
        "certified_acc": shares[0],
        "robust_acc": shares[1],
        "low": ends[0][0],
        "high": ends[1][1],
    }
    return pd.DataFrame(columns)[n > 0].reset_index(drop=True)
