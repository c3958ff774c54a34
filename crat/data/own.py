"""A data set of yours: a folder of class folders, or an npz file, becomes a row of the table.

    name = register("photos/", size=64, eps="4/255")     # photos-1a2b3c4d
    data.load(name); RunConfig(DataConfig("photos/"))     # a path is registered by itself

The name ends with a hash of the images, the classes, the size and eps: other images are another
data set, wherever they lie. The row and the decoded images are kept in `data_home()`, so that a
later command, or another process, knows the name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from crat.config import ConfigError, as_written, number
from crat.data.files import Arrays, DataError, data_home, one_line
from crat.data.folder import class_arrays
from crat.data.registry import DATASETS, DatasetSpec, Protocol

KEYS = ("x_train", "y_train", "x_test", "y_test")
READER = "crat.data.own:read"
SHAPE = "train/<class>/ and test/<class>/ (or val/<class>/) with images"
ROWS = "own"  # the folder of the rows in `data_home()`
FILED = ("image_shape", "n_classes", "train_images", "test_images", "smallest_class", "classes")
FILED += ("landmark", "sha256", "mean", "std")


def register(path: str | Path, *, size: int | None = None, eps: str | None = None) -> str:
    """The name of the data set in a folder or an npz file, whose row and images are kept.

    path: a folder with train/<class>/ and test/<class>/ (or val/), or an npz file with x_train,
        y_train, x_test, y_test (x uint8 (N, H, W), (N, H, W, C) or (N, C, H, W); y whole numbers)
        and, if you like, classes (the names).
    size: of the images' sides; larger and smaller ones are scaled, and their centre is cut out.
        None: all images have one size.
    eps: the L-inf radius, such as "8/255" (None: 8/255, above 64 pixels 4/255).
    Raises DataError, one line, on a class without images, on other classes in the test folder, on
    a file that is no image, and on images of several sizes.
    """
    place = Path(path).expanduser().resolve()
    asked = {"path": str(place), "size": size, "eps": eps, "files": _stamp(place)}
    entry = data_home() / ROWS / f"{_digest(asked)}.asked.json"
    if entry.exists():
        name = _json(entry)["name"]
        if name in DATASETS:
            return name
    arrays = _arrays(place, size)
    row = _row(place, arrays, size, eps)
    DATASETS[row.name] = row
    from crat.data.sources import cache_path, check, keep

    check(row, arrays, str(place))
    home = data_home()
    with one_line(f"writing {row.name} into {home}"):
        (home / ROWS).mkdir(parents=True, exist_ok=True)
        if not cache_path(row.name).exists():
            keep(row.name, arrays, str(place))
        _write_json(home / ROWS / f"{row.name}.json", _filed(row))
        _write_json(entry, asked | {"name": row.name})
    return row.name


def recall(name: str) -> DatasetSpec | None:
    """The row of a data set that was registered before; None where there is none of this name."""
    if Path(name).name != name:
        return None
    file = data_home() / ROWS / f"{name}.json"
    if not file.exists():
        return None
    with one_line(f"{file} is damaged", "delete it, and name the images by their path again"):
        kept = _json(file)
        values = {key: _tuples(kept[key]) for key in FILED}
        return DatasetSpec(name=name, protocol=_protocol(kept["eps"]), reader=READER, **values)


def registered() -> list[str]:
    """The names of the data sets that were registered here."""
    names = (file.stem for file in sorted((data_home() / ROWS).glob("*.json")))
    return [name for name in names if not name.endswith(".asked") and name in DATASETS]


def read(spec: DatasetSpec, folder: Path) -> Arrays:
    """The arrays of a registered data set, from the files whose path is the row's landmark."""
    size = spec.image_shape[1] if Path(spec.landmark).is_dir() else None
    return _arrays(Path(spec.landmark), size)


def _arrays(place: Path, size: int | None) -> Arrays:
    if place.is_dir():
        return class_arrays(place, (size, size) if size else None, scale=size is not None)
    if place.suffix == ".npz" and place.exists():
        return _of_npz(place, size)
    raise DataError(
        f"no images in {place}: a folder with {SHAPE}, or an npz with {', '.join(KEYS)}"
    )


def _of_npz(file: Path, size: int | None) -> Arrays:
    """The images of an npz as (N, H, W, C) uint8, and labels renumbered as the smallest uint."""
    if size:
        raise ConfigError(f"size scales images in folders; those of {file} keep theirs")
    usable = one_line(
        f"{file} cannot be used", f"it has {', '.join(KEYS)}: plain arrays, no pickle"
    )
    with usable, np.load(file, allow_pickle=False) as kept:
        arrays = {key: kept[key] for key in (*KEYS, *({"classes"} & set(kept.files)))}
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or len(x) != len(y) or not len(y):
            raise DataError(
                f"x_{part} of {file} is {x.dtype} {x.shape} with {len(y)} labels, not uint8 images "
                "(N, H, W), (N, H, W, C) or (N, C, H, W) with a label each"
            )
        if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1 or y.min() < 0:
            raise DataError(f"y_{part} of {file} is {y.dtype} {y.shape}, not whole numbers from 0")
        arrays[f"x_{part}"] = _channels_last(x)
        arrays[f"y_{part}"] = y.astype(np.uint8 if y.max() < 256 else np.uint16)
    if "classes" not in arrays:
        arrays["classes"] = np.array([str(k) for k in range(int(arrays["y_train"].max()) + 1)])
    return arrays


def _channels_last(x: np.ndarray) -> np.ndarray:
    if x.ndim == 3:
        return x[..., None]
    channels_first = x.shape[1] in (1, 3) and x.shape[3] not in (1, 3)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if channels_first else x


def _row(place: Path, arrays: Arrays, size: int | None, eps: str | None) -> DatasetSpec:
    """The row of a data set; its name is that of the file or folder and a hash."""
    x, y = arrays["x_train"], arrays["y_train"]
    height, width, channels = x.shape[1:]
    eps = eps or ("8/255" if max(height, width) <= 64 else "4/255")
    classes = tuple(map(str, arrays["classes"].tolist()))
    hashes = tuple(_sha256(arrays[key]) for key in KEYS)
    slug = re.sub(r"[^A-Za-z0-9_]+", "_", place.stem).strip("_").lower() or "images"
    mean, std = _statistics(x)
    return DatasetSpec(
        name=f"{slug}-{_digest([hashes, classes, eps])}",
        image_shape=(channels, height, width),
        n_classes=len(classes),
        train_images=len(y),
        test_images=len(arrays["y_test"]),
        smallest_class=int(np.bincount(y, minlength=len(classes)).min()),
        protocol=_protocol(eps),
        classes=classes,
        landmark=str(place),
        reader=READER,
        sha256=hashes,
        mean=mean,
        std=std,
    )


def _statistics(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each channel in [0, 1], by counts of the 256 values."""
    counts = np.zeros((x.shape[-1], 256), np.int64)
    for begin in range(0, len(x), 1000):
        for channel, count in enumerate(counts):
            count += np.bincount(x[begin : begin + 1000, ..., channel].ravel(), minlength=256)
    share = counts / counts.sum(1, keepdims=True)
    values = np.arange(256) / 255
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0)).clip(0.01)
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


def _protocol(eps: str) -> Protocol:
    """Steps of a quarter of eps, ten in training and twenty in the test, as CIFAR-10 has them."""
    step = as_written(number(eps) / 4)
    return Protocol(as_written(eps), step, 10, step, 20, "your own: PGD with steps of eps / 4")


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def _stamp(place: Path) -> list[Any]:
    """Names, sizes and times of all files: where these are the same, the images are, too."""
    if not place.is_dir():
        found = [place] if place.exists() else []
    else:
        found = sorted(file for file in place.rglob("*") if file.is_file())
    marks = [
        (str(f.relative_to(place.parent)), f.stat().st_size, f.stat().st_mtime_ns) for f in found
    ]
    return [len(marks), _digest(marks)]


def _filed(row: DatasetSpec) -> dict[str, Any]:
    return {key: getattr(row, key) for key in FILED} | {"eps": row.protocol.eps}


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _write_json(file: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_text(json.dumps(value, indent=1), encoding="utf-8", newline="\n")
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
