"""ImageNet-ReaL and ImageNet-X on hand-made files of their format."""

import json
import math

import pandas as pd
import pytest

from crat.analysis.imagenet_errors import factor_errors, real_correct
from crat.analysis.metrics import MetricError, wilson
from crat.data.files import DataError
from crat.data.imagenet_labels import FACTORS, read_factors, read_real


def name(place):
    return f"ILSVRC2012_val_{place:08d}.JPEG"


def predictions(*classes):
    return pd.Series(classes, index=[name(place) for place in range(1, 1 + len(classes))])


@pytest.fixture
def real(tmp_path):
    """Four images: one class, none, two classes, one class."""
    file = tmp_path / "real.json"
    file.write_text("[[65], [], [795, 970], [230]]")
    return file


def annotation(place, label, *factors):
    row = (
        {"file_name": name(place), "class": label}
        | dict.fromkeys(FACTORS, 0)
        | dict.fromkeys(factors, 1)
    )
    return json.dumps(row | {"justification": "a dog, seen from above\n", "one_word": "above"})


@pytest.fixture
def factors(tmp_path):
    file = tmp_path / "imagenet_x_val_multi_factor.jsonl"
    lines = [
        annotation(1, 7, "pose"),
        annotation(2, 7, "pose", "color"),
        annotation(3, 8, "color"),
        annotation(4, 9),
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_real_labels_are_in_validation_order_from_number_one(real):
    labels = read_real(real, images=4)
    assert list(labels) == [name(place) for place in (1, 2, 3, 4)]
    assert labels[name(3)] == {795, 970}
    assert labels[name(2)] == frozenset()


def test_real_accuracy_leaves_an_image_without_label_out(real):
    labels = read_real(real, images=None)
    correct = real_correct(labels, predictions(65, 65, 970, 231))
    assert correct.to_dict() == {name(1): True, name(3): True, name(4): False}
    assert correct.mean() == pytest.approx(2 / 3)
    # any order of images
    assert real_correct(labels, predictions(65, 65, 970, 231)[::-1]).mean() == correct.mean()


def test_real_says_what_cannot_be_judged(real):
    labels = read_real(real, images=None)
    with pytest.raises(
        MetricError,
        match=r"1 predicted images have no ReaL entry, the first is 'ILSVRC2012_val_0*5",
    ):
        real_correct(labels, predictions(65, 65, 970, 231, 1))
    with pytest.raises(MetricError, match="no predicted image has a right class"):
        real_correct(labels, predictions(65, 65)[1:])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[65], 3]", "a list of lists of classes, 0 to 999"),
        ("[[65], [1000]]", "a list of lists of classes"),
        ('{"a": [1]}', "a list of lists of classes"),
        ("[[1], [true]]", "a list of lists of classes"),
        ("[[65]", "is no real.json"),
        ("[[65], []]", "has labels of 2 images, not of 50000"),
    ],
)
def test_another_real_file_is_told_in_one_line(tmp_path, text, told):
    file = tmp_path / "real.json"
    file.write_text(text)
    with pytest.raises(DataError, match=told) as error:
        read_real(file)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"absent\.json is no real"):
        read_real(tmp_path / "absent.json")


def test_factors_are_read_and_prototypes_left_out(factors, tmp_path):
    table = read_factors(factors)
    assert list(table.columns) == ["class", *FACTORS]
    assert table["class"].tolist() == [7, 7, 8, 9]
    assert table["pose"].tolist() == [True, True, False, False]
    assert table.loc[name(2), list(FACTORS)].sum() == 2
    (tmp_path / "prototypical_paths.csv").write_text(f"file_name\n{name(4)}\n")
    assert list(read_factors(factors, tmp_path / "prototypical_paths.csv").index) == [
        name(1),
        name(2),
        name(3),
    ]


def test_error_ratios_by_hand(factors):
    table = factor_errors(read_factors(factors), predictions(7, 1, 1, 9)).set_index("factor")
    assert table["n"].to_dict() == dict.fromkeys(FACTORS, 0) | {"pose": 2, "color": 2}
    assert table.loc[["pose", "color"], "error"].tolist() == [0.5, 1]
    assert table.loc[["pose", "color"], "ratio"].tolist() == [1, 2]  # half of all images are wrong
    assert table.loc["pose", ["low", "high"]].tolist() == pytest.approx(wilson(1, 2))
    assert math.isnan(table.loc["style", "ratio"])
    perfect = factor_errors(read_factors(factors), predictions(7, 7, 8, 9)).set_index("factor")
    assert perfect.loc["pose", "error"] == 0
    assert math.isnan(perfect.loc["pose", "ratio"])


def test_predictions_of_other_images_may_be_there_but_none_may_lack(factors):
    table = read_factors(factors)
    more = factor_errors(table, predictions(7, 1, 1, 9, 5, 5)[::-1])
    pd.testing.assert_frame_equal(more, factor_errors(table, predictions(7, 1, 1, 9)))
    with pytest.raises(MetricError, match="1 annotated images have no prediction"):
        factor_errors(table, predictions(7, 1, 1))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2, is no ImageNet-X annotation"),
        ('{"file_name": "a.JPEG", "class": 1}', "line 2, is no ImageNet-X annotation: 'pose'"),
        (annotation(2, 1000), "line 2, is no ImageNet-X annotation: class 1000"),
        (annotation(2, 3).replace('"pose": 0', '"pose": 2'), "2 is neither 0 nor 1"),
        (annotation(1, 3), "more than one line for ILSVRC2012_val_00000001.JPEG"),
        ("[]", "line 2, is no ImageNet-X annotation"),
    ],
)
def test_another_annotation_file_is_told_in_one_line(tmp_path, line, told):
    file = tmp_path / "x.jsonl"
    file.write_text(annotation(1, 7) + "\n" + line + "\n")
    with pytest.raises(DataError, match=told) as error:
        read_factors(file)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_factors(tmp_path / "absent.jsonl")
