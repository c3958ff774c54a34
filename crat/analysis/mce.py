"""Corruption errors and mCE, overall and by class; labels and predictions in, pandas out.

Errors are fractions in [0, 1] over images (a class counts by its images, as in the source).
Predictions come by the name "corruption-severity", as corruption_battery names them. A corruption
of the fifteen that was not evaluated is a row of nan, and `mce` names it under `left_out`. No
torch, no files.
Source: Hendrycks and Dietterich 2019 (arXiv:1903.12261), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from crat.analysis.metrics import MetricError, checked, class_accuracy, wilson

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
CLEAN = "clean"  # with severity 0: the row of the error without corruption


def corruption_errors(
    y: ArrayLike, clean_pred: ArrayLike, preds: Mapping[str, ArrayLike]
) -> pd.DataFrame:
    """Error and Wilson's 95 % (low, high) of the clean images and of each corruption and severity.

    y and predictions: (N,).
    preds: by the name "corruption-severity".
    Raises MetricError on another name and on lengths that differ.
    """
    rows = []
    for (name, severity), pred in _named(clean_pred, preds).items():
        labels, answers = checked(y, pred)
        wrong, n = int((answers != labels).sum()), len(labels)
        low, high = wilson(wrong, n)
        row = {"corruption": name, "severity": severity, "error": wrong / n}
        rows.append(row | {"low": float(low), "high": float(high)})
    return pd.DataFrame(rows)


def class_corruption_errors(
    y: ArrayLike, clean_pred: ArrayLike, preds: Mapping[str, ArrayLike], classes: Sequence[str]
) -> pd.DataFrame:
    """Error of each class by corruption and severity, a row each: class, n, error.

    error: by the class's count; nan for an absent class. Arguments as in `corruption_errors`.
    """
    rows = []
    for (name, severity), pred in _named(clean_pred, preds).items():
        labels, answers = checked(y, pred, n_classes=len(classes))
        columns = {
            "corruption": name,
            "severity": severity,
            "class": list(classes),
            "n": np.bincount(labels, minlength=len(classes)),
            "error": 1 - class_accuracy(labels, answers == labels, len(classes)),
        }
        rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def by_corruption(errors: pd.DataFrame, baseline: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row per corruption: error (mean over severities), relative_error, CE, rel_CE.

    relative_error: error - clean error.
    CE: sum_s E / sum_s E of the baseline.
    rel_CE: sum_s (E - clean) / sum_s (E - clean) of the baseline.
    CE and rel_CE are the paper's ratios, 1 = as bad as the baseline (there AlexNet's, times 100);
    they are nan without a baseline, and where it never errs (or never gets worse).
    The fifteen corruptions come first, those not evaluated as nan.
    errors, baseline: tables of `corruption_errors`.
    Raises MetricError unless every corruption has the same severities, in both tables.
    """
    means = _means(errors)
    extras = [name for name in means.error.index if name not in CORRUPTIONS]
    names = [*CORRUPTIONS, *extras]
    table = pd.DataFrame({"error": means.error.reindex(names)})
    table["relative_error"] = table["error"] - means.clean
    table["CE"] = table["rel_CE"] = nan
    if baseline is not None:
        base = _means(baseline)
        _must_match(means, base)
        base_error = base.error.reindex(names)
        table["CE"] = table["error"] / base_error.where(base_error > 0)
        increase = base_error - base.clean
        table["rel_CE"] = table["relative_error"] / increase.where(increase != 0)
    return table.rename_axis("corruption").reset_index()


def mce(errors: pd.DataFrame, baseline: pd.DataFrame | None = None) -> pd.Series:
    """Summary over corruptions: clean_error, mean_error, mCE, relative_mCE, and which are included.

    mean_error: mCE without a baseline, as usual on CIFAR-10-C.
    corruptions: how many of the fifteen were evaluated; the means are over these.
    left_out: those of the fifteen that were not (mCE without frost is not mCE with it).
    extras: corruptions beyond the fifteen, which enter no mean.
    """
    table = by_corruption(errors, baseline).set_index("corruption")
    fifteen = table.loc[list(CORRUPTIONS)]
    evaluated = fifteen["error"].notna()
    means = fifteen[["error", "CE", "rel_CE"]].mean(skipna=True)
    # a ratio to 0 leaves no mean of ratios
    undefined = fifteen[["CE", "rel_CE"]][evaluated].isna().any()
    values = {
        "clean_error": _means(errors).clean,
        "mean_error": means["error"],
        "mCE": nan if undefined["CE"] else means["CE"],
        "relative_mCE": nan if undefined["rel_CE"] else means["rel_CE"],
        "corruptions": int(evaluated.sum()),
        "left_out": ", ".join(name for name in CORRUPTIONS if not evaluated[name]),
        "extras": ", ".join(name for name in table.index if name not in CORRUPTIONS),
    }
    return pd.Series(values)


def class_mce(errors: pd.DataFrame, baseline: pd.DataFrame | None = None) -> pd.DataFrame:
    """`mce` of each class, a row each, from tables of `class_corruption_errors`."""
    rows = []
    for name, part in errors.groupby("class", sort=False):
        base = None if baseline is None else baseline[baseline["class"] == name]
        row = mce(part, base)
        # an absent class has no error: the corruptions left out are read from the rows alone
        if part["error"].isna().all():
            row["left_out"] = mce(part.fillna({"error": 0.0}), None)["left_out"]
        rows.append({"class": name, "n": int(part["n"].iloc[0]), **row})
    return pd.DataFrame(rows)


def _named(
    clean_pred: ArrayLike, preds: Mapping[str, ArrayLike]
) -> dict[tuple[str, int], ArrayLike]:
    """Predictions by (corruption, severity), the clean ones first as (CLEAN, 0)."""
    named: dict[tuple[str, int], ArrayLike] = {(CLEAN, 0): clean_pred}
    for name, pred in preds.items():
        corruption, _, severity = name.rpartition("-")
        if not corruption or not severity.isdecimal():
            raise MetricError(f'{name!r} is no corruption: names are written "fog-3"')
        named[corruption, int(severity)] = pred
    return named


class _Means(NamedTuple):
    """Mean error of each corruption over the severities, and the clean error."""

    error: pd.Series  # by corruption
    clean: float
    severities: list[int]


def _must_match(means: _Means, baseline: _Means) -> None:
    if missing := sorted(set(means.error.index) - set(baseline.error.index)):
        raise MetricError(
            f"the baseline lacks {', '.join(missing)}: a mean over other corruptions is another mCE"
        )
    if means.severities != baseline.severities:
        raise MetricError(
            f"severities {means.severities}, but {baseline.severities} of the baseline"
        )


def _means(errors: pd.DataFrame) -> _Means:
    """The means of a table of errors; raises MetricError unless severities are complete."""
    clean = errors["corruption"] == CLEAN
    if clean.sum() != 1:
        raise MetricError(f"{int(clean.sum())} rows of clean error for one model: one is needed")
    wide = errors[~clean].pivot(index="corruption", columns="severity", values="error")
    if wide.empty:
        raise MetricError("no corruption in the table")
    counts = errors[~clean].groupby("corruption")["severity"].nunique()
    if short := sorted(counts.index[counts < wide.shape[1]]):
        raise MetricError(
            f"{short[0]} has {counts[short[0]]} of the {wide.shape[1]} severities that others have"
        )
    clean_error = float(errors.loc[clean, "error"].iloc[0])
    return _Means(wide.mean(axis=1, skipna=False), clean_error, sorted(map(int, wide.columns)))
