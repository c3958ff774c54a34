"""A data set of yours: a folder of class folders, or an npz file, becomes a row of the table.

    name = register("photos/", size=64, eps="4/255")     # photos-1a2b3c4d
    data.load(name); RunConfig(DataConfig("photos/"))     # a path is registered by itself

The name ends with a hash of the images, the classes, the size and eps: other images are another
data set, wherever they lie. The row and the decoded images are kept in `data_home()`, so that a
later command, or another process, knows the name. Images that would take more than FITS bytes stay
in their files and are streamed (crat.data.streamed).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crat.config import ConfigError, as_written, number
from crat.data.files import Arrays, DataError, data_home, one_line
from crat.data.folder import class_arrays, decoded, listed
from crat.data.registry import DATASETS, DatasetSpec, Protocol
from crat.data.sources import KEYS, ROWS, cache_path, check, keep
from crat.data.streamed import Streamed

READER = "crat.data.own:read"
LISTER = "crat.data.own:read_streamed"
SHAPE = "train/<class>/ and test/<class>/ (or val/<class>/) with images"
# the fields of a row that its file has
FILED: tuple[str, ...] = ("image_shape", "n_classes", "train_images", "test_images", "classes")
FILED += ("smallest_class", "landmark", "sha256", "mean", "std", "fits_memory", "augment")
FITS = 4 * 2**30  # bytes of decoded images that are held in memory
STREAMED_SIZE = 224  # pixels, where no size is asked for
SAMPLED = 1000  # training images whose mean and deviation are taken, where they are streamed


def register(
    path: str | Path,
    *,
    size: int | None = None,
    eps: str | None = None,
    streamed: bool | None = None,
) -> str:
    """The name of the data set in a folder or an npz file, whose row and images are kept.

    path: a folder with train/<class>/ and test/<class>/ (or val/), or an npz file with x_train,
        y_train, x_test, y_test (x uint8 (N, H, W), (N, H, W, C) or (N, C, H, W); y whole numbers)
        and, if you like, classes (the names).
    size: of the images' sides; larger and smaller ones are scaled, and their centre is cut out.
        None: all images have one size.
    eps: the L-inf radius, such as "8/255" (None: 8/255, above 64 pixels 4/255).
    streamed: whether a folder's images stay in their files, to be decoded in RGB when they are
        asked for (None: where they would take more than FITS bytes). They are scaled to
        size * 256 / 224 and their centre is cut out; in training a random crop, scaled and flipped.
    Raises DataError, one line, on a class without images, on other classes in the test folder, on
    a file that is no image, and on images of several sizes.
    """
    place = Path(path).expanduser().resolve()
    stamp = _stamp(place)
    asked = {"path": str(place), "size": size, "eps": eps, "files": stamp}
    if streamed is not None:
        asked["streamed"] = streamed
    entry = data_home() / ROWS / f"{_digest(asked)}.asked.json"
    if entry.exists():
        name = _json(entry)["name"]
        if name in DATASETS:
            return name
    if streamed if streamed is not None else _exceeds_memory(place, size):
        row, arrays = _streamed(place, size or STREAMED_SIZE, eps), None
    else:
        arrays = _arrays(place, size)
        row = _row(place, arrays, size, eps)
    DATASETS[row.name] = row
    _keep(row, arrays, stamp)
    with one_line(f"writing {row.name} into {data_home()}"):
        _write_json(entry, asked | {"name": row.name})
    return row.name


def _keep(row: DatasetSpec, arrays: Arrays | None, stamp: list[Any]) -> None:
    """Writes a row, and the images where they are held in memory, into `data_home()`."""
    if arrays is not None:
        check(row, arrays, row.landmark)
    home = data_home()
    with one_line(f"writing {row.name} into {home}"):
        (home / ROWS).mkdir(parents=True, exist_ok=True)
        if arrays is not None and not cache_path(row.name).exists():
            keep(row.name, arrays, row.landmark)
        _write_json(home / ROWS / f"{row.name}.json", _filed(row) | {"files": stamp})


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
        reader = READER if values["fits_memory"] else LISTER
        return DatasetSpec(name=name, protocol=_protocol(kept["eps"]), reader=reader, **values)


def read(spec: DatasetSpec, folder: Path) -> Arrays:
    """The arrays of a registered data set, from the files whose path is the row's landmark."""
    size = spec.image_shape[1] if Path(spec.landmark).is_dir() else None
    return _arrays(Path(spec.landmark), size)


def read_streamed(spec: DatasetSpec, folder: Path) -> Arrays:
    """The files of a registered data set that is streamed (crat.data.folder.listed).

    Raises DataError where they are not the files that were registered.
    """
    place = Path(spec.landmark)
    if _stamp(place) != _json(data_home() / ROWS / f"{spec.name}.json")["files"]:
        raise DataError(
            f"the files in {place} have changed since {spec.name} got its name: "
            "name them by their path again"
        )
    return listed(place)


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
    """The row of a data set that is held in memory."""
    x = arrays["x_train"]
    height, width, channels = x.shape[1:]
    hashes = tuple(_sha256(arrays[key]) for key in KEYS)
    own = {"reader": READER, "sha256": hashes}
    return _named(place, arrays, (channels, height, width), eps, _statistics(x), [], own)


def _named(
    place: Path,
    arrays: Arrays,
    shape: tuple[int, int, int],
    eps: str | None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    marks: list[Any],
    own: dict[str, Any],
) -> DatasetSpec:
    """A row; its name is that of the file or folder and a hash of all that decides the images.

    arrays: the labels and the names of the classes. statistics: mean and deviation. marks: what
        decides the images besides their hashes. own: fields of this kind of row, sha256 among them.
    """
    y = arrays["y_train"]
    classes = tuple(map(str, arrays["classes"].tolist()))
    eps = eps or ("8/255" if max(shape[1:]) <= 64 else "4/255")
    mean, std = statistics
    return DatasetSpec(
        name=f"{_slug(place)}-{_digest([own['sha256'], classes, eps, *marks])}",
        image_shape=shape,
        n_classes=len(classes),
        train_images=len(y),
        test_images=len(arrays["y_test"]),
        smallest_class=int(np.bincount(y, minlength=len(classes)).min()),
        protocol=_protocol(eps),
        classes=classes,
        landmark=str(place),
        mean=mean,
        std=std,
        **own,
    )


def _exceeds_memory(place: Path, size: int | None) -> bool:
    """Whether the decoded images of a folder would take more than FITS bytes."""
    if not place.is_dir():
        return False
    files = listed(place)
    n = len(files["y_train"]) + len(files["y_test"])
    if size is None and n:
        first = decoded(place / os.fsdecode(files["x_train"][0]))
        return 3 * n * first.width * first.height > FITS
    return 3 * n * (size or 0) ** 2 > FITS


def _streamed(place: Path, size: int, eps: str | None) -> DatasetSpec:
    """The row of a folder whose images stay in their files."""
    files = listed(place)
    train = files["x_train"]
    hashes = tuple(_sha256_of_files(place, files[key]) for key in ("x_train", "x_test"))
    some = np.linspace(0, len(train) - 1, min(SAMPLED, len(train))).astype(int)
    centres = Streamed(place, train[some], size)[:].permute(0, 2, 3, 1).numpy()
    own = {"reader": LISTER, "sha256": hashes, "augment": "resized_crop", "fits_memory": False}
    marks = [size, "streamed"]
    return _named(place, files, (3, size, size), eps, _statistics(centres), marks, own)


def _sha256_of_files(top: Path, names: np.ndarray) -> str:
    """A hash of the names and the contents of files."""

    def digest(name: bytes) -> bytes:
        with (top / os.fsdecode(name)).open("rb") as file:
            return name + hashlib.file_digest(file, "sha256").digest()

    total = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        parts = pool.map(digest, names.tolist())
        for part in tqdm(parts, "hashing", len(names), unit=" files", disable=None):
            total.update(part)
    return total.hexdigest()


def _slug(place: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", place.stem).strip("_").lower() or "images"


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
        walked = os.walk(place)
        found = sorted(Path(folder, file) for folder, _, files in walked for file in files)
    marks = []
    for file in found:
        known = file.stat()
        marks.append((os.path.relpath(file, place.parent), known.st_size, known.st_mtime_ns))
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
