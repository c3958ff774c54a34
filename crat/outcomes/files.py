"""The file of one attack's outcome: written, read, checked; and the part of it that a killed
evaluation leaves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

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
    """The arrays of a whole outcome, written to `path` (None: nowhere). names: of what may have
    broken an image.
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
    """The arrays of an outcome; raises StoreError, one line, where they are none, or those of
    another.

    attack: its identity; decided_by: what the file must say of itself. The prediction is the argmax
    of float32 logits; rounding them to float16 keeps the order but for ties, so its logit is still
    the largest of the row.
    """
    arrays = store.read_arrays(path)
    if missing := sorted({"y", "prediction", "logits", "meta"} - arrays.keys()):
        raise _wrong(path, f"it has no {missing[0]}")
    y, prediction, logits = (arrays[name] for name in ("y", "prediction", "logits"))
    if (
        logits.ndim != 2
        or not len(logits)
        or any(a.shape != logits.shape[:1] for a in _per_image(arrays))
    ):
        raise _wrong(path, "its labels, predictions and logits are of different lengths")
    n, k = logits.shape
    if any(a.dtype.kind != "i" or a.min() < 0 or a.max() >= k for a in (y, prediction)):
        raise _wrong(path, f"a label or prediction is none of its {k} classes")
    if not np.isfinite(logits).all() or (logits[np.arange(n), prediction] != logits.max(1)).any():
        raise _wrong(path, "a prediction is not the largest logit")
    said = json.loads(str(arrays["meta"]))
    asked = json.loads(json.dumps(decided_by | {"attack": attack}))
    if different := [name for name in asked if said.get(name) != asked[name]]:
        raise _wrong(path, f"it is of another {different[0]}: {said.get(different[0])}")
    return arrays


def _per_image(arrays: Arrays) -> list[np.ndarray]:
    return [arrays[name] for name in ("y", "prediction", "broken_by") if name in arrays]


def _wrong(path: Path, what: str) -> store.StoreError:
    return store.StoreError(f"{path} is not what was asked ({what}); remove it to make it anew")


def meta(path: Path) -> dict[str, Any]:
    """What an outcome says of itself, without its arrays; {} where it cannot be read."""
    return _meta(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _meta(path: Path, written: int) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return json.loads(str(file["meta"]))
    except Exception:  # a damaged zip fails in many ways; whoever asks for that very file is told
        return {}


def prefix(arrays: Arrays, first: int | None) -> Arrays:
    """The outcome on the first so many images."""
    return {name: array if name == "meta" else array[:first] for name, array in arrays.items()}


class Parts:
    """The batches of an attack so far, saved now and then, so that a killed evaluation goes on
    where it was.

    path: of the whole outcome, named by its key (None: nothing is saved); what lies there under
    another key, or of another shape, is not used.
    """

    def __init__(self, path: Path | None) -> None:
        self.file = path and path.with_suffix(".part.npz")
        self.key, self.saved = path.stem if path else "", time.monotonic()
        try:
            kept = store.read_arrays(self.file) if self.file and self.file.exists() else {}
        except store.StoreError:
            if self.file and self.file.exists():
                raise
            kept = {}  # another who judges the same has just finished, and took it away
        self.batches = [self._checked(kept)] if kept and str(kept.get("key")) == self.key else []

    def _checked(self, kept: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        logits, prediction, broken_by = (
            kept[name] for name in ("logits", "prediction", "broken_by")
        )
        whole = logits.ndim == 2 and logits.shape[:1] == prediction.shape == broken_by.shape
        if not whole or (logits[np.arange(len(logits)), prediction] != logits.max(1)).any():
            raise store.StoreError(f"{self.file} contradicts itself; remove it to judge anew")
        return logits, prediction, broken_by

    @property
    def done(self) -> int:
        """So many images."""
        return sum(len(logits) for logits, *_ in self.batches)

    def begin_with(self, arrays: Arrays, names: Sequence[str] | None) -> None:
        """Takes over the outcome on fewer images, where it is further than what was saved."""
        if len(arrays["y"]) > self.done:
            places = {name: i for i, name in enumerate(names or ())} | {"": -1}
            found = [places[str(name)] for name in arrays.get("broken_by", [""] * len(arrays["y"]))]
            self.batches = [
                (
                    arrays["logits"].astype(np.float32),
                    arrays["prediction"],
                    np.array(found, np.int8),
                )
            ]

    def add(self, logits: Tensor, broken_by: Tensor | None) -> None:
        """One more batch."""
        found = np.full(len(logits), -1, np.int8) if broken_by is None else broken_by.cpu().numpy()
        plain = logits.cpu().numpy()
        self.batches.append((plain, plain.argmax(1).astype(np.int16), found))
        if self.file and time.monotonic() - self.saved > SAVE_EVERY:
            names = ("logits", "prediction", "broken_by")
            store.write_arrays(
                self.file, dict(zip(names, self.whole(), strict=True)) | {"key": np.array(self.key)}
            )
            self.saved = time.monotonic()

    def whole(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits (N, K) float32, predictions (N,) and the numbers of what broke the images (N,)."""
        logits, prediction, broken_by = (
            np.concatenate(parts) for parts in zip(*self.batches, strict=True)
        )
        return logits, prediction, broken_by

    def remove(self) -> None:
        """Takes the saved part away."""
        if self.file:
            self.file.unlink(missing_ok=True)
