"""What a model answers on each image of a set, clean and under each attack: computed once, kept, read again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from crat import store
from crat.attacks import Attack, AutoAttack
from crat.attacks.judge import REVISION, attacked_batches

Battery = Mapping[str, Attack | AutoAttack]
BATCH = {"cpu": 500, "cuda": 2000}
SAVE_EVERY = 30.0  # seconds between partial results of a long attack


@dataclass(frozen=True)
class Outcomes:
    """What a model did on each of N images, clean and under each attack.

    y: (N,) int64. logits: name -> (N, K) float16. predictions: name -> (N,) int64, taken from the float32 logits
    (float16 can round two logits to a tie). "clean" is always among the names. broken_by: name of a battery such as
    AutoAttack -> (N,) strings: which attack broke the image, "clean" where it was wrong from the start, "" where it
    survived.
    """

    split: str
    classes: tuple[str, ...]
    y: np.ndarray
    logits: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    broken_by: dict[str, np.ndarray]

    @property
    def clean(self) -> np.ndarray:
        """Clean predictions (N,)."""
        return self.predictions["clean"]

    def robust(self, attack: str) -> np.ndarray:
        """R of each sample, (N,) bool: clean-correct and correct under the attack."""
        return (self.clean == self.y) & (self.predictions[attack] == self.y)


class Subject(NamedTuple):
    """A model, the model that examples are crafted on where it is another, and the images x (N, C, H, W), y (N,)."""

    model: nn.Module
    crafted_on: nn.Module | None
    x: Tensor
    y: Tensor


@dataclass
class Verdicts:
    """The kept outcomes of one subject; it is loaded only when something is missing.

    name: for the progress bar. folders: where outcomes may lie; new ones go to the last. decided_by: all that decides
    an outcome besides the attack (the weights' fingerprint, the images, seed, precision): its hash names the file.
    """

    name: str
    folders: Sequence[Path]
    decided_by: dict[str, Any]
    load: Callable[[], Subject]
    progress: bool = False

    def __post_init__(self) -> None:
        self._subject: Subject | None = None

    def of(self, battery: Battery, split: str, classes: Sequence[str]) -> Outcomes:
        """The outcomes on clean images and under every attack of a battery."""
        kept = {name: self.outcome(name, attack) for name, attack in {"clean": None, **battery}.items()}
        return Outcomes(
            split,
            tuple(classes),
            kept["clean"]["y"].astype(np.int64),
            {name: arrays["logits"] for name, arrays in kept.items()},
            {name: arrays["prediction"].astype(np.int64) for name, arrays in kept.items()},
            {name: arrays["broken_by"] for name, arrays in kept.items() if "broken_by" in arrays},
        )

    def path(self, attack: Attack | AutoAttack | None) -> Path:
        """Relative place of an outcome, named by the hash of all that decides it."""
        what = self.decided_by | {"attack": repr(attack), "revision": [store.FORMAT, REVISION]}
        if attack is None:
            what |= {"dtype": None, "crafted_on": None}
        return Path("eval") / f"{what['split']}-{store.digest(what)}.npz"

    def outcome(self, name: str, attack: Attack | AutoAttack | None) -> dict[str, np.ndarray]:
        """The arrays y, prediction, logits (and broken_by) of one attack, read or computed."""
        place = self.path(attack)
        for folder in self.folders:
            if (folder / place).exists():
                return store.read_arrays(folder / place)
        return self._compute(name, attack, self.folders[-1] / place)

    def _compute(self, name: str, attack: Attack | AutoAttack | None, path: Path) -> dict[str, np.ndarray]:
        if self._subject is None:
            self._subject = self.load()
        model, crafted_on, x, y = self._subject
        parts = _Parts(path.with_suffix(".part.npz"))
        bar = tqdm(
            total=len(x), initial=parts.done, desc=f"{name} on {self.name}", unit="img", disable=not self.progress
        )
        batches = attacked_batches(
            model, x, y, attack, crafted_on=crafted_on, begin=parts.done, batch_size=BATCH.get(x.device.type, 500),
            seed=self.decided_by["seed"], dtype=self.decided_by["dtype"],
        )  # fmt: skip
        for batch in batches:
            parts.add(batch.logits, batch.broken_by)
            bar.update(len(batch.logits))
        bar.close()
        logits, broken_by = parts.whole()
        told = {key: value for key, value in self.decided_by.items() if key != "weights"}
        arrays = {
            "y": y.cpu().numpy().astype(np.int16),
            "prediction": logits.argmax(1).astype(np.int16),
            "logits": logits.astype(np.float16),
            "meta": np.array(json.dumps({"name": name, "attack": repr(attack)} | told)),
        }
        if isinstance(attack, AutoAttack):
            arrays["broken_by"] = np.array([*attack.names, ""])[broken_by]  # -1, survived, is the last
        store.write_arrays(path, arrays, compressed=True)
        parts.file.unlink(missing_ok=True)
        return arrays


class _Parts:
    """The batches of an attack so far, saved now and then, so that a killed evaluation goes on where it was."""

    def __init__(self, file: Path) -> None:
        self.file, self.saved = file, time.monotonic()
        try:
            kept = store.read_arrays(file) if file.exists() else None
        except store.StoreError:
            if file.exists():
                raise
            kept = None  # another who judges the same has just finished, and took it away
        self.batches = [(kept["logits"], kept["broken_by"])] if kept else []

    @property
    def done(self) -> int:
        return sum(len(logits) for logits, _ in self.batches)

    def add(self, logits: Tensor, broken_by: Tensor | None) -> None:
        found = np.full(len(logits), -1, np.int8) if broken_by is None else broken_by.cpu().numpy()
        self.batches.append((logits.cpu().numpy(), found))
        if time.monotonic() - self.saved > SAVE_EVERY:
            logits_so_far, found_so_far = self.whole()
            store.write_arrays(self.file, {"logits": logits_so_far, "broken_by": found_so_far})
            self.saved = time.monotonic()

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        logits, broken_by = zip(*self.batches, strict=True)
        return np.concatenate(logits), np.concatenate(broken_by)
