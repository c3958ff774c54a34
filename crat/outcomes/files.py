"""The file of one attack's outcome, and the file of its finished part during the computation."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from crat import store

# y (N,), prediction (N,), logits (N, K), meta; of a battery also broken_by (N,)
Arrays = dict[str, np.ndarray]
SAVE_EVERY = 30.0  # seconds between partial results of a long attack


def write(
    path: Path | None,
    y: np.ndarray,
    parts: Parts,
    meta: dict[str, Any],
    names: Sequence[str] | None,
) -> Arrays:
    """The arrays of a whole outcome, written to `path` (None: not written).

    y: labels (N,). meta: settings that decided the outcome.
    names: of the attacks of a battery that may have broken an image; None for a single attack.
    """
    logits, prediction, broken_by = parts.whole()
    arrays = {
        "y": y.astype(np.int16),
        "prediction": prediction,
        "logits": store.halved(logits),
        "meta": np.array(json.dumps(meta)),
    }
    if names is not None:
        arrays["broken_by"] = np.array([*names, ""])[broken_by]  # -1, survived, is the last
    if path is not None:
        store.write_arrays(path, arrays, compressed=True)
        parts.remove()
    return arrays


def read(path: Path, attack: str, decided_by: dict[str, Any]) -> Arrays:
    """The arrays of an outcome after their checks.

    attack: the attack's identity. decided_by: the settings that the file's meta must hold.
    Raises StoreError where the arrays are absent, contradict each other, or belong to another
    outcome.
    """
    arrays = checked(path)
    check_meta(path, arrays, attack, decided_by)
    return arrays


def checked(path: Path) -> Arrays:
    """The arrays of any outcome; raises StoreError where they are absent or contradict each other.

    A prediction is the argmax of float32 logits; rounding to float16 keeps the order except for
    ties, so the predicted logit must still be the largest of its row.
    """
    arrays = store.read_arrays(path)
    if missing := sorted({"y", "prediction", "logits", "meta"} - arrays.keys()):
        raise wrong(path, f"it has no {missing[0]}")
    if not _same_lengths(arrays):
        raise wrong(path, "its labels, predictions and logits are of different lengths")
    logits = arrays["logits"]
    check_classes(path, arrays, logits.shape[1])
    if not np.isfinite(logits).all() or not _largest(logits, arrays["prediction"]):
        raise wrong(path, "a prediction is not the largest logit")
    return arrays


def check_classes(path: Path, arrays: Arrays, n_classes: int) -> None:
    """Raises StoreError unless labels and predictions are whole numbers from 0 to n_classes - 1."""
    for array in (arrays["y"], arrays["prediction"]):
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= n_classes:
            raise wrong(path, f"a label or prediction is none of its {n_classes} classes")


def check_meta(path: Path, arrays: Arrays, attack: str, decided_by: dict[str, Any]) -> None:
    """Raises StoreError where the meta is that of another outcome; parameters as for `read`."""
    stored = json.loads(str(arrays["meta"]))
    expected = json.loads(json.dumps(decided_by | {"attack": attack}))
    for name, value in expected.items():
        if stored.get(name) != value:
            raise wrong(path, f"it is of another {name}: {stored.get(name)}")


def _same_lengths(arrays: Arrays) -> bool:
    """Whether logits are (N, K) with N > 0, and all other arrays (N,)."""
    logits = arrays["logits"]
    per_image = [arrays[name] for name in ("y", "prediction", "broken_by") if name in arrays]
    if logits.ndim != 2 or not len(logits):
        return False
    return all(array.shape == logits.shape[:1] for array in per_image)


def _largest(logits: np.ndarray, prediction: np.ndarray) -> bool:
    """Whether every predicted logit is the largest of its row."""
    return bool((logits[np.arange(len(logits)), prediction] == logits.max(1)).all())


def wrong(path: Path, reason: str) -> store.StoreError:
    """The error of an outcome that cannot be used; reason: why, in words."""
    return store.StoreError(f"{path} is not what was asked ({reason}); remove it to make it anew")


def meta(path: Path) -> dict[str, Any]:
    """The settings in an outcome's file, without its arrays; {} where it cannot be read."""
    return _meta(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _meta(path: Path, written: int) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return json.loads(str(file["meta"]))
    except Exception:  # a damaged zip fails in many ways; `read` reports the damage of this file
        return {}


def prefix(arrays: Arrays, first: int | None) -> Arrays:
    """An outcome on its first images only; first: their number (None: all)."""
    return {name: array[:first] if array.ndim else array for name, array in arrays.items()}


class Batch(NamedTuple):
    """The outcome of one attack on some images."""

    logits: np.ndarray  # (n, K) float32
    prediction: np.ndarray  # (n,) int16
    broken_by: np.ndarray  # (n,) int8, the place of an attack in the battery's names, -1 for none


class Parts:
    """The batches of an attack so far, saved now and then, so that a later evaluation continues.

    path: the file of the whole outcome, named by its key (None: nothing is saved). A part saved
    under another key is not used.
    Raises StoreError where the saved part is damaged or contradicts itself.
    """

    def __init__(self, path: Path | None) -> None:
        self.file = path and path.with_suffix(".part.npz")
        self.key = path.stem if path else ""
        self.saved = time.monotonic()
        self.batches: list[Batch] = []
        arrays = self._read()
        if arrays and str(arrays.get("key")) == self.key:
            self.batches.append(self._checked(arrays))

    def _read(self) -> Arrays:
        """The arrays of the saved part; {} if there is none."""
        if not self.file or not self.file.exists():
            return {}
        try:
            return store.read_arrays(self.file)
        except store.StoreError:
            if self.file.exists():
                raise
            return {}  # another worker has just finished this outcome and removed the part

    def _checked(self, arrays: Arrays) -> Batch:
        logits = arrays["logits"]
        prediction = arrays["prediction"]
        broken_by = arrays["broken_by"]
        same_lengths = logits.ndim == 2 and logits.shape[:1] == prediction.shape == broken_by.shape
        if not same_lengths or not _largest(logits, prediction):
            raise store.StoreError(f"{self.file} contradicts itself; remove it to judge anew")
        return Batch(logits, prediction, broken_by)

    @property
    def done(self) -> int:
        """The number of images so far."""
        return sum(len(batch.logits) for batch in self.batches)

    def begin_with(self, arrays: Arrays, names: Sequence[str] | None) -> None:
        """Replaces the batches by the arrays of an outcome, if these are of more images.

        names: as in `write`.
        """
        n = len(arrays["y"])
        if n <= self.done:
            return
        places = {name: i for i, name in enumerate(names or ())} | {"": -1}
        broken_by = [places[str(name)] for name in arrays.get("broken_by", [""] * n)]
        logits = arrays["logits"].astype(np.float32)
        self.batches = [Batch(logits, arrays["prediction"], np.array(broken_by, np.int8))]

    def add(self, logits: Tensor, broken_by: Tensor | None) -> None:
        """Adds a batch: logits (n, K), and broken_by (n,), places in `names`, -1 for none."""
        array = logits.cpu().numpy()
        if broken_by is None:
            places = np.full(len(array), -1, np.int8)
        else:
            places = broken_by.cpu().numpy()
        self.batches.append(Batch(array, array.argmax(1).astype(np.int16), places))
        if self.file and time.monotonic() - self.saved > SAVE_EVERY:
            store.write_arrays(self.file, self.whole()._asdict() | {"key": np.array(self.key)})
            self.saved = time.monotonic()

    def whole(self) -> Batch:
        """All batches as one."""
        columns = zip(*self.batches, strict=True)
        return Batch(*(np.concatenate(parts) for parts in columns))

    def remove(self) -> None:
        """Removes the saved part."""
        if self.file:
            self.file.unlink(missing_ok=True)
