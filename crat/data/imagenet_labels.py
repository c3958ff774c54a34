"""More labels of ImageNet's validation images: ImageNet-ReaL and ImageNet-X. No torch.

Both are read from files of yours, by the image's file name, and never fetched. ReaL: Beyer et al.
2020 (arXiv:2006.07159), real.json of google-research/reassessed-imagenet. ImageNet-X: Idrissi et
al. 2022 (arXiv:2211.01866), imagenet_x_val_{multi,top}_factor.jsonl of facebookresearch/imagenetx.
Here both were tried on hand-made files of the same format only: crat holds no ImageNet network to
judge.

Errors of predictions by these labels: crat.analysis.imagenet_errors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from crat.data.files import DataError

VALIDATION_IMAGES, CLASSES = 50_000, 1000
FACTORS = (
    "pose",
    "background",
    "pattern",
    "color",
    "smaller",
    "shape",
    "partial_view",
    "subcategory",
    "texture",
    "larger",
    "darker",
    "object_blocking",
    "person_blocking",
    "style",
    "brighter",
    "multiple_objects",
)


def read_real(
    path: str | Path, images: int | None = VALIDATION_IMAGES
) -> dict[str, frozenset[int]]:
    """The set of right classes of each validation image, empty where none is right.

    The file is one list of lists in the order of the images' names, of which the first is
    ILSVRC2012_val_00000001.JPEG. images: how many there must be (None: any number). Raises
    DataError, one line, on a file of another form.
    """
    try:
        lists = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no real.json: {error}") from None
    if not isinstance(lists, list) or not all(
        isinstance(row, list) and all(map(_is_class, row)) for row in lists
    ):
        raise DataError(
            f"{path} is no real.json: that is a list of lists of classes, 0 to {CLASSES - 1}"
        )
    if images is not None and len(lists) != images:
        raise DataError(f"{path} has labels of {len(lists)} images, not of {images}")
    return {
        f"ILSVRC2012_val_{place:08d}.JPEG": frozenset(row) for place, row in enumerate(lists, 1)
    }


def read_factors(path: str | Path, prototypes: str | Path | None = None) -> pd.DataFrame:
    """The table of ImageNet-X: a row per image (index file_name), its class and 16 FACTORS (bool).

    The file has one JSON object a line. prototypes: prototypical_paths.csv, the images that the
    raters compared with, which the authors leave out. Raises DataError, one line, with the number
    of the line that is wrong.
    """
    rows = []
    for place, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
            flags = {factor: _flag(row[factor]) for factor in FACTORS}
            if not _is_class(row["class"]):
                raise ValueError(f"class {row['class']!r}")
            rows.append({"file_name": str(row["file_name"]), "class": row["class"]} | flags)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {place}, is no ImageNet-X annotation: {error}") from None
    table = pd.DataFrame(rows, columns=["file_name", "class", *FACTORS]).set_index("file_name")
    if not table.index.is_unique:
        raise DataError(
            f"{path} has more than one line for {table.index[table.index.duplicated()][0]}"
        )
    left_out = [] if prototypes is None else [line.strip() for line in _lines(prototypes)]
    return table[~table.index.isin(left_out)]


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _is_class(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < CLASSES


def _flag(value: Any) -> bool:
    if value not in (0, 1):
        raise ValueError(f"{value!r} is neither 0 nor 1")
    return bool(value)
