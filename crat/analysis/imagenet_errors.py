"""ReaL accuracy, and errors by the factors of ImageNet-X. No files.

Predictions are a pandas Series: file name -> number of the class in 0 ... 999; the labels come from
crat.data.imagenet_labels.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from crat.analysis.metrics import MetricError, wilson
from crat.data.imagenet_labels import FACTORS


def real_correct(labels: dict[str, frozenset[int]], predicted: pd.Series) -> pd.Series:
    """Series of file name -> whether the predicted class is one of the right ones.

    An image without a right class is left out. The mean is ReaL accuracy.
    Raises MetricError on an image without a label entry, or where no image has a right class.
    """
    if unknown := [name for name in predicted.index if name not in labels]:
        raise MetricError(
            f"{len(unknown)} predicted images have no ReaL entry, the first is {unknown[0]!r}"
        )
    correct = {name: int(k) in labels[name] for name, k in predicted.items() if labels[name]}
    if not correct:
        raise MetricError("no predicted image has a right class")
    return pd.Series(correct, name="correct")


def factor_errors(factors: pd.DataFrame, predicted: pd.Series) -> pd.DataFrame:
    """Error by factor, a row each: factor, n, error, Wilson's 95 % (low, high), ratio.

    ratio: error / error over all annotated images, imagenetx's `error_ratio`: 1 where the factor
        makes no difference; nan without an image or an error.
    factors: the table of `read_factors`.
    Raises MetricError where annotated images have no prediction.
    """
    if len(missing := factors.index.difference(predicted.index)):
        raise MetricError(
            f"{len(missing)} annotated images have no prediction, the first is {missing[0]!r}"
        )
    wrong = predicted.loc[factors.index].to_numpy() != factors["class"].to_numpy()
    shown = factors[list(FACTORS)].to_numpy(bool)
    n = shown.sum(0)
    k = (shown & wrong[:, None]).sum(0)
    low, high = wilson(k, n)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = k / n
    overall = wrong.mean() if wrong.any() else np.nan
    columns = {"n": n, "error": error, "low": low, "high": high, "ratio": error / overall}
    return pd.DataFrame({"factor": FACTORS, **columns})
