"""Outcomes without logits: the predictions and margins of all outcomes of a run, in one file.

A margin is the logit of the true class minus the largest other logit: positive where the prediction
is right, negative where it is wrong, 0 where float16 makes the two equal. For 10,000 images and 10
classes an outcome takes some 25 KB here, and 200 KB with its logits.

The file's "index" names the arrays of each outcome by the outcome's key, which is the name of its
own file in eval/. Labels that several outcomes share are in it once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crat import store
from crat.outcomes import files
from crat.outcomes.files import Arrays

NAME = "outcomes.npz"
INDEX = "index"


class Place(NamedTuple):
    """The place of a stored outcome."""

    path: Path
    key: str = ""  # of the outcome in `NAME`; "": the file is that of one outcome, with logits


def of(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The margins (N,) of logits (N, K) and labels (N,): float16, or float32 beyond its range."""
    others = logits.astype(np.float32)
    images = np.arange(len(y))
    true = others[images, y]
    others[images, y] = -np.inf
    return store.halved(true - others.max(1))


def find(folder: Path, own: Path) -> Place | None:
    """The place of an outcome in a run's folder; None where it is not there.

    own: the relative path of the file that the outcome has where its logits are kept.
    Raises StoreError where the file of several outcomes is damaged.
    """
    if (folder / own).exists():
        return Place(folder / own)
    if own.stem in index(folder):
        return Place(folder / NAME, own.stem)
    return None


def metas(folder: Path) -> dict[Place, dict[str, Any]]:
    """The settings of each stored outcome of a run's folder (crat.outcomes.files.meta)."""
    own = {Place(path): files.meta(path) for path in sorted((folder / "eval").glob("*.npz"))}
    return own | {Place(folder / NAME, key): e["meta"] for key, e in index(folder).items()}


def index(folder: Path) -> Mapping[str, dict[str, Any]]:
    """Key -> y, n_classes, meta, and broken_by (names), of each outcome without logits.

    y is the name of the array of labels. Raises StoreError where the file is damaged.
    """
    path = folder / NAME
    return _index(path, path.stat().st_mtime_ns) if path.exists() else {}


@lru_cache(maxsize=1024)
def _index(path: Path, written: int) -> dict[str, dict[str, Any]]:
    text = str(store.read_arrays(path, [INDEX])[INDEX])
    try:
        return json.loads(text)
    except ValueError:
        raise store.StoreError(f"{path} is damaged: its index is not JSON") from None


def read(place: Place, attack: str, decided_by: dict[str, Any]) -> Arrays:
    """The arrays of an outcome after their checks: y, prediction, margin, meta, n_classes.

    Of a battery also broken_by. Parameters as for `files.read`.
    Raises StoreError where the arrays are absent, contradict each other, or belong to another
    outcome. The sign of a margin says whether the prediction is right; 0 says nothing.
    """
    arrays = _arrays(place)
    path = place.path
    if not _same_lengths(arrays):
        raise files.wrong(path, "its labels, predictions and margins are of different lengths")
    files.check_classes(path, arrays, int(arrays["n_classes"]))
    if not np.isfinite(arrays["margin"]).all() or not _signs_agree(arrays):
        raise files.wrong(path, "the sign of a margin contradicts its prediction")
    files.check_meta(path, arrays, attack, decided_by)
    for name in ("y", "prediction"):  # as in a file with logits
        arrays[name] = arrays[name].astype(np.int16)
    return arrays


def answers(place: Place, stored: dict[str, Any]) -> Arrays:
    """The y, prediction and margin (N,) of an outcome, with logits or without, after its checks.

    stored: its settings, as `metas` returns them. Raises StoreError as `read`.
    """
    decided_by = {name: value for name, value in stored.items() if name != "attack"}
    if place.key:
        return read(place, stored["attack"], decided_by)
    arrays = files.read(place.path, stored["attack"], decided_by)
    return arrays | {"margin": of(arrays["logits"], arrays["y"])}


def _arrays(place: Place) -> Arrays:
    """The arrays of an outcome, as `read` returns them, unchecked; labels of the file's type."""
    path, key = place
    entry = index(path.parent)[key]
    if missing := sorted({"y", "n_classes", "meta"} - entry.keys()):
        raise files.wrong(path, f"{key} has no {missing[0]}")
    own = ["prediction", "margin"] + ["broken_by"] * ("broken_by" in entry)
    stored = store.read_arrays(path, [entry["y"], *(f"{key}/{name}" for name in own)])
    arrays = {name: stored[f"{key}/{name}"] for name in own}
    arrays["y"] = stored[entry["y"]]
    arrays["n_classes"] = np.array(entry["n_classes"])
    arrays["meta"] = np.array(json.dumps(entry["meta"]))
    if "broken_by" in entry:
        names = np.array(entry["broken_by"])
        if arrays["broken_by"].max(initial=0) >= len(names):
            raise files.wrong(path, f"an image of {key} was broken by no attack of its battery")
        arrays["broken_by"] = names[arrays["broken_by"]]
    return arrays


def _same_lengths(arrays: Arrays) -> bool:
    """Whether all arrays but the single values are (N,) with N > 0."""
    margin = arrays["margin"]
    per_image = [array for name, array in arrays.items() if name not in ("n_classes", "meta")]
    if margin.ndim != 1 or not len(margin):
        return False
    return all(array.shape == margin.shape for array in per_image)


def _signs_agree(arrays: Arrays) -> bool:
    """Whether right predictions have margins of at least 0, and wrong ones of at most 0."""
    right = arrays["prediction"] == arrays["y"]
    margin = arrays["margin"]
    return bool(np.where(right, margin >= 0, margin <= 0).all())


def write(folder: Path, sources: Iterable[Path]) -> None:
    """Adds outcomes without their logits to the file of a run's folder.

    sources: files of single outcomes, with logits; their names are the keys. An outcome that the
    folder has in a file of its own is left out, and the file is removed where none is left.
    Raises StoreError where a source contradicts itself.
    """
    outcomes = {key: _arrays(Place(folder / NAME, key)) for key in index(folder)}
    for path in sources:
        outcomes.setdefault(path.stem, _without_logits(files.checked(path)))
    outcomes = {
        key: arrays
        for key, arrays in sorted(outcomes.items())
        if not (folder / "eval" / f"{key}.npz").exists()
    }
    if outcomes:
        store.write_arrays(folder / NAME, _packed(outcomes), compressed=True)
    else:
        (folder / NAME).unlink(missing_ok=True)


def _without_logits(arrays: Arrays) -> Arrays:
    """An outcome with margins in the place of its logits."""
    logits = arrays["logits"]
    made = {name: array for name, array in arrays.items() if name != "logits"}
    return made | {"margin": of(logits, arrays["y"]), "n_classes": np.array(logits.shape[1])}


def _packed(outcomes: dict[str, Arrays]) -> Arrays:
    """The arrays of the file: each outcome's under its key, shared labels once, and the index."""
    packed: Arrays = {}
    entries: dict[str, dict[str, Any]] = {}
    labels: dict[bytes, str] = {}
    for key, arrays in outcomes.items():
        n_classes = int(arrays["n_classes"])
        small = np.uint8 if n_classes <= 256 else np.uint16
        y = arrays["y"].astype(small)
        name = labels.setdefault(y.tobytes(), f"y-{len(labels)}")
        packed[name] = y
        packed[f"{key}/prediction"] = arrays["prediction"].astype(small)
        packed[f"{key}/margin"] = arrays["margin"]
        entry = {"y": name, "n_classes": n_classes, "meta": json.loads(str(arrays["meta"]))}
        if "broken_by" in arrays:
            names, codes = np.unique(arrays["broken_by"], return_inverse=True)
            packed[f"{key}/broken_by"] = codes.astype(np.uint8)
            entry["broken_by"] = names.tolist()
        entries[key] = entry
    return packed | {INDEX: np.array(json.dumps(entries))}
