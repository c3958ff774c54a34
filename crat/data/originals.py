"""Original files of data sets: downloaded, unpacked, checked, and read by torchvision.

A reader gets a row of the registry and the folder of the unpacked files, and returns x_train,
y_train, x_test, y_test.
"""

from __future__ import annotations

import gzip
import math
import shutil
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np

from crat.data.files import Arrays, DataError, one_line
from crat.data.registry import DatasetSpec


def read_originals(spec: DatasetSpec, root: Path, scratch: Path) -> Arrays:
    """Decodes a data set from its original files below root, by the reader of its row.

    Archives are unpacked into scratch, root stays as it is. Raises DataError or one of
    `files.DAMAGE` on missing, truncated or altered files.
    """
    if not (root / spec.landmark).exists():
        for archive in sorted(root.glob(spec.packed)):
            # before unpacking, which writes to the paths that the archive names
            if archive.name.endswith(".tar.gz"):
                check_md5(
                    archive, _torchvision_class(spec).tgz_md5 if spec.torchvision else spec.md5
                )
            unpack(archive, scratch / archive.parent.relative_to(root))
        root = scratch
    return resolve_name(spec.reader)(spec, root)


def download(spec: DatasetSpec, root: Path) -> Arrays:
    """Downloads a data set's original files into root, checks their md5, and decodes them."""
    if spec.torchvision:
        return read_torchvision(spec, root, download=True)
    from torchvision.datasets.utils import download_url

    download_url(spec.url, str(root), md5=spec.md5)
    return read_originals(spec, root, root)


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a .gz file, a .zip or a tar archive; raises DataError with the archive's name."""
    folder.mkdir(parents=True, exist_ok=True)
    with one_line(f"unpacking {archive}", "if it is truncated or damaged, get it anew"):
        if archive.name.endswith("-ubyte.gz"):
            with gzip.open(archive) as packed, (folder / archive.stem).open("wb") as file:
                shutil.copyfileobj(packed, file)
        else:
            shutil.unpack_archive(archive, folder)


def read_torchvision(spec: DatasetSpec, root: Path, download: bool = False) -> Arrays:
    """Decodes original files below root by torchvision; raises DataError where they are altered.

    CIFAR's original format is pickle, which runs what it holds: every file's md5 is checked before
    it is opened.
    """
    kind = _torchvision_class(spec)
    if not download:
        _check_files(kind, root)
    arrays: Arrays = {}
    for part in ("train", "test"):
        split = (
            {"split": part} if spec.torchvision in ("SVHN", "STL10") else {"train": part == "train"}
        )
        data = kind(root, download=download, **split)
        y = np.asarray(data.labels if hasattr(data, "labels") else data.targets)
        if y.min() < 0 or y.max() > 255:
            raise DataError(
                f"label {y.min()} or {y.max()} in the {part} files of {spec.name} is out of range"
            )
        arrays[f"x_{part}"] = np.ascontiguousarray(_channels_last(np.asarray(data.data)))
        arrays[f"y_{part}"] = y.astype(np.uint8)
    return arrays


def _channels_last(x: np.ndarray) -> np.ndarray:
    """Images (N, H, W), (N, 3, H, W) or (N, H, W, C) -> (N, H, W, C)."""
    if x.ndim == 3:
        return x[..., None]
    return x.transpose(0, 2, 3, 1) if x.shape[1] == 3 else x


def _torchvision_class(spec: DatasetSpec) -> Any:
    from torchvision import datasets

    kind: Any = getattr(datasets, spec.torchvision)
    if spec.torchvision == "STL10":
        # without the 100,000 unlabelled images, which torchvision else wants to see in the folder
        return type("STL10", (kind,), {"train_list": kind.train_list[:2]})
    return kind


def _check_files(kind: Any, root: Path) -> None:
    """Raises DataError on a missing original file, or one with another md5 than torchvision's."""
    for file, md5 in _files_of(kind):
        if not (root / file).is_file():
            raise DataError(f"{root / file} is missing beside the other files of its data set")
        if md5:
            check_md5(root / file, md5)
        elif "-ubyte" in file:
            _check_idx(root / file)


def _files_of(kind: Any) -> list[tuple[str, str | None]]:
    """The files of a torchvision data set, relative to its root, with their md5."""
    if hasattr(kind, "split_list"):  # SVHN
        parts = [kind.split_list[part] for part in ("train", "test")]
        return [(file, md5) for _, file, md5 in parts]
    # MNIST has the md5 of packed files only; the SHA-256 of its arrays is checked later
    if hasattr(kind, "resources"):
        return [(f"{kind.__name__}/raw/{Path(file).stem}", None) for file, _ in kind.resources]
    meta = [(kind.meta["filename"], kind.meta["md5"])] if hasattr(kind, "meta") else []
    listed = [*kind.train_list, *kind.test_list, *meta]  # CIFAR, STL-10
    return [(f"{kind.base_folder}/{file}", md5) for file, md5 in listed]


def _check_idx(path: Path) -> None:
    """Raises DataError unless an IDX file of bytes has the size in its head.

    The head is 0, 0, 8, the number of axes, then their lengths.
    """
    with one_line(f"{path} cannot be read"), path.open("rb") as file:
        head = file.read(4)
        n = head[3] if len(head) == 4 else 0
        lengths = [int.from_bytes(file.read(4), "big") for _ in range(n)]
    size = path.stat().st_size
    right = len(head) + 4 * n + math.prod(lengths)
    known_head = n in (1, 3)
    if head[:3] != b"\0\0\x08" or not known_head or size != right:
        why = f"not the {right} that its head tells" if known_head else "with another head"
        raise DataError(
            f"{path} is truncated or no IDX file of bytes ({size} bytes, {why}); "
            "nothing was replaced; get it anew"
        )


def check_md5(path: Path, md5: str) -> None:
    """Raises DataError unless a file has this md5."""
    from torchvision.datasets.utils import calculate_md5

    actual = calculate_md5(path)
    if actual != md5:
        raise DataError(
            f"{path} is truncated or altered: md5 {actual}, not {md5}; nothing was replaced"
        )
