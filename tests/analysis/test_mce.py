"""Corruption errors and mCE on hand-made predictions."""

import math

import numpy as np
import pytest

from crat.analysis.mce import (
    CORRUPTIONS,
    by_corruption,
    class_corruption_errors,
    class_mce,
    corruption_errors,
    mce,
)
from crat.analysis.metrics import MetricError

Y = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 2])
CLASSES = ("cat", "dog", "emu", "yak")  # no yak among the images


def wrong(*places):
    """Predictions that are wrong at these places only."""
    pred = Y.copy()
    pred[list(places)] = (pred[list(places)] + 1) % 3
    return pred


OURS = {"fog-1": wrong(0), "fog-2": wrong(0, 1, 2), "snow-1": wrong(2), "snow-2": wrong(2, 3, 4)}
THEIRS = {"fog-1": wrong(0, 1), "fog-2": wrong(*range(6)), "snow-1": wrong(5), "snow-2": wrong(5)}


@pytest.fixture
def errors():
    return corruption_errors(Y, wrong(9), OURS)


@pytest.fixture
def baseline():
    return corruption_errors(Y, wrong(), THEIRS)


def test_errors_by_corruption_and_severity(errors):
    assert errors["corruption"].tolist() == ["clean", "fog", "fog", "snow", "snow"]
    assert errors["severity"].tolist() == [0, 1, 2, 1, 2]
    assert errors["error"].tolist() == pytest.approx([0.1, 0.1, 0.3, 0.1, 0.3])
    assert (errors["low"] < errors["error"]).all()
    assert (errors["error"] < errors["high"]).all()


def test_mce_by_hand(errors, baseline):
    table = by_corruption(errors, baseline).set_index("corruption")
    # fog: (1 + 3) / (2 + 6); snow: (1 + 3) / (1 + 1); relative: each error less 0.1, the baseline's
    # less 0
    assert table.loc[["fog", "snow"], "error"].tolist() == pytest.approx([0.2, 0.2])
    assert table.loc[["fog", "snow"], "CE"].tolist() == pytest.approx([4 / 8, 4 / 2])
    assert table.loc[["fog", "snow"], "rel_CE"].tolist() == pytest.approx([2 / 8, 2 / 2])
    found = mce(errors, baseline)
    assert found["clean_error"] == pytest.approx(0.1)
    assert found["mean_error"] == pytest.approx(0.2)
    assert found["mCE"] == pytest.approx((0.5 + 2) / 2)
    assert found["relative_mCE"] == pytest.approx((0.25 + 1) / 2)


def test_severities_are_averaged_each_counting_the_same():
    """Errors 0.1, 0.2 and 0.9: their mean is 0.4, not the middle one."""
    found = corruption_errors(
        Y, Y, {"fog-1": wrong(0), "fog-3": wrong(0, 1), "fog-5": wrong(*range(9))}
    )
    assert by_corruption(found).set_index("corruption").loc["fog", "error"] == pytest.approx(0.4)
    assert mce(found)["mean_error"] == pytest.approx(0.4)


def test_a_model_is_as_bad_as_itself(errors):
    found = mce(errors, errors)
    assert found["mCE"] == pytest.approx(1)
    assert found["relative_mCE"] == pytest.approx(1)


def test_what_is_left_out_is_told(errors):
    table = by_corruption(errors)
    assert tuple(table["corruption"]) == CORRUPTIONS
    assert table["error"].notna().sum() == 2
    found = mce(errors)
    assert found["corruptions"] == 2
    assert found["left_out"].split(", ") == [
        name for name in CORRUPTIONS if name not in ("fog", "snow")
    ]
    assert math.isnan(found["mCE"])


def test_an_extra_enters_no_mean(errors, baseline):
    more = corruption_errors(
        Y, wrong(9), OURS | {"saturate-1": wrong(0), "saturate-2": wrong(*range(10))}
    )
    assert mce(more)["mean_error"] == mce(errors)["mean_error"]
    assert mce(more)["extras"] == "saturate"
    assert by_corruption(more)["corruption"].iloc[-1] == "saturate"
    with pytest.raises(MetricError, match="the baseline lacks saturate"):
        mce(more, baseline)


def test_a_baseline_that_never_errs_gives_no_ratio(errors):
    perfect = corruption_errors(Y, Y, {name: Y for name in OURS} | {"fog-1": wrong(0)})
    table = by_corruption(errors, perfect).set_index("corruption")
    assert table.loc["fog", "CE"] == pytest.approx(4)
    assert math.isnan(table.loc["snow", "CE"])
    assert math.isnan(mce(errors, perfect)["mCE"])  # not the mean of the ratios that are left


def test_class_by_class():
    table = class_corruption_errors(Y, wrong(9), OURS, CLASSES)
    fog = table[(table["corruption"] == "fog") & (table["severity"] == 2)].set_index("class")
    assert fog["n"].tolist() == [2, 3, 5, 0]
    assert fog["error"].tolist()[:3] == pytest.approx([1, 1 / 3, 0])
    assert math.isnan(fog.loc["yak", "error"])
    means = class_mce(table).set_index("class")
    assert means["mean_error"].tolist()[:3] == pytest.approx(
        [(0.75 + 0) / 2, (1 / 6 + 2 / 3) / 2, 0]
    )
    assert means["clean_error"].tolist()[:3] == pytest.approx([0, 0, 0.2])
    assert math.isnan(means.loc["yak", "mean_error"])
    assert means["left_out"].nunique() == 1  # an absent class lacks images, not corruptions


def test_class_errors_average_to_the_error(errors):
    table = class_corruption_errors(Y, wrong(9), OURS, CLASSES).fillna({"error": 0.0})
    table["wrong"] = table["error"] * table["n"]
    total = table.groupby(["corruption", "severity"])["wrong"].sum() / len(Y)
    assert total.to_dict() == pytest.approx(
        errors.set_index(["corruption", "severity"])["error"].to_dict()
    )


def test_class_mce_with_a_baseline(errors, baseline):
    own = class_corruption_errors(Y, wrong(9), OURS, CLASSES[:3])
    theirs = class_corruption_errors(
        Y, wrong(), {name: wrong(0, 2, 5) for name in OURS}, CLASSES[:3]
    )
    found = class_mce(own, theirs).set_index("class")
    # cat: fog (1/2 + 1) / (1/2 + 1/2), snow 0; dog: fog (0 + 1/3) / (2/3), snow (1/3 + 1) / (2/3);
    # emu: never wrong
    assert found["mCE"].tolist() == pytest.approx([(1.5 + 0) / 2, (0.5 + 2) / 2, 0])


@pytest.mark.parametrize(
    ("preds", "message"),
    [
        ({"fog": Y}, "'fog' is no corruption"),
        ({"fog-x": Y}, "'fog-x' is no corruption"),
        ({"fog-1": Y[:3]}, "10 labels but"),
        ({"fog-1": Y, "fog-2": Y, "snow-1": Y}, "snow has 1 of the 2 severities"),
        ({}, "no corruption in the table"),
    ],
)
def test_errors_say_what_is_wrong(preds, message):
    with pytest.raises(MetricError, match=message):
        mce(corruption_errors(Y, Y, preds))


def test_other_severities_are_no_baseline(errors):
    other = corruption_errors(Y, Y, {"fog-1": Y, "fog-3": Y, "snow-1": Y, "snow-3": Y})
    with pytest.raises(MetricError, match=r"severities \[1, 2\], but \[1, 3\] of the baseline"):
        mce(errors, other)


def test_a_table_of_classes_is_not_a_table_of_one_model():
    with pytest.raises(MetricError, match="4 rows of clean error"):
        mce(class_corruption_errors(Y, Y, OURS, CLASSES))
