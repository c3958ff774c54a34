"""What a model answers on each image of a set, clean and under each attack: computed once, kept,
read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from crat import store
from crat.attacks.door import Attack, as_attack
from crat.attacks.judge import REVISION, attacked_batches
from crat.keys.identity import Identity, attack_identity, is_plain
from crat.outcomes import files
from crat.outcomes.batteries import Battery
from crat.outcomes.files import Arrays
from crat.text import dated

BATCH = {"cpu": 500, "cuda": 2000}
NAMED = 4  # outcomes, at most, in a line on what is read again


@dataclass(frozen=True)
class Outcomes:
    """What a model did on each of N images, clean and under each attack.

    y: (N,) int64. logits: name -> (N, K) float16, or float32 where some are beyond it. predictions:
    name -> (N,) int64, taken from the float32 logits (float16 can round two logits to a tie).
    "clean" is always among the names. broken_by: name of a battery such as AutoAttack -> (N,)
    strings: which attack broke the image, "clean" where it was wrong from the start, "" where it
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
    """A model, the model that examples are crafted on where it is another, and the images x (N,
    C, H, W), y (N,).
    """

    model: nn.Module
    crafted_on: nn.Module | None
    x: Tensor
    y: Tensor


@dataclass
class OutcomeCache:
    """The kept outcomes of one subject; it is loaded only when something is missing.

    name: for the progress bar. folders: where outcomes may lie; new ones go to the last.
    decided_by: all that decides an outcome besides the attack (the weights' fingerprint, the
    images, seed, precision): its hash names the file, and "first" is how many of the images it is
    of (None: all). published: the folder whose files are as SHA256SUMS says.
    tell: gets a line on what is read again, with its date (None: silent); loud: on what is
    published, too.
    seconds: how long each attack took that was computed.
    """

    name: str
    folders: Sequence[Path]
    decided_by: dict[str, Any]
    load: Callable[[], Subject]
    progress: bool = False
    published: Path | None = None
    tell: Callable[[str], None] | None = None
    loud: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    unkept: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)
    _subject: Subject | None = field(default=None, init=False)
    _read: dict[str, Path] = field(default_factory=dict, init=False)

    def of(self, battery: Battery, split: str, classes: Sequence[str]) -> Outcomes:
        """The outcomes on clean images and under every attack of a battery.

        Raises StoreError where a kept one was altered, contradicts itself, or has other labels or
        classes.
        """
        found = {
            name: self.outcome(name, attack) for name, attack in {"clean": None, **battery}.items()
        }
        y = found["clean"]["y"]
        for name, arrays in found.items():
            if not np.array_equal(arrays["y"], y):
                raise store.StoreError(
                    f"{self.name}: the images under {name} have other labels than the clean ones"
                )
            if arrays["logits"].shape[1] != len(classes):
                raise store.StoreError(
                    f"{self.name}: {arrays['logits'].shape[1]} logits but {len(classes)} classes"
                )
        self._tell_what_was_read()
        return Outcomes(
            split,
            tuple(classes),
            y.astype(np.int64),
            {name: arrays["logits"] for name, arrays in found.items()},
            {name: arrays["prediction"].astype(np.int64) for name, arrays in found.items()},
            {name: arrays["broken_by"] for name, arrays in found.items() if "broken_by" in arrays},
        )

    @property
    def first(self) -> int | None:
        """How many images are asked for, from the first on; None: all."""
        return self.decided_by.get("first")

    def path(self, attack: Attack | None) -> Path:
        """Relative place of an outcome, named by the hash of all that decides it."""
        return self._place(attack_identity(attack), self.first)

    def _place(self, attack: Identity, first: int | None) -> Path:
        what = self.decided_by | {"attack": attack.text, "revision": [store.FORMAT, REVISION]}
        what |= {"first": first} if first else {}
        if attack.text == repr(None):
            what |= {"dtype": None, "crafted_on": None}
        if not first:
            what.pop("first", None)
        return Path("eval") / f"{what['split']}-{store.digest(what)}.npz"

    def outcome(self, name: str, attack: Attack | None) -> Arrays:
        """The arrays of one attack (crat.outcomes.files), read or computed; what has no faithful
        key is not kept.
        """
        key = attack_identity(attack)
        if key.unread:
            self.unkept[name] = key.unread
            return self._compute(name, attack, key, None)
        longer, shorter = self._prefixes(attack, key)
        if longer is not None:
            self._read[name] = longer
            return files.prefix(self._arrays(longer, key), self.first)
        if shorter is not None:
            self._read[f"{name} (a part)"] = shorter
        return self._compute(name, attack, key, shorter)

    def is_kept(self, attack: Attack | None) -> bool:
        """Whether `outcome` would only read."""
        key = attack_identity(attack)
        return not key.unread and self._prefixes(attack, key)[0] is not None

    def _prefixes(self, attack: Attack | None, key: Identity) -> tuple[Path | None, Path | None]:
        """The kept outcome of at least as many images as are asked for, else the longest of fewer:
        it can be continued.

        The very outcome that is asked goes before a longer one, and what is published before what
        is not.
        """
        place = self._place(key, self.first)
        exact = [folder for folder in self.folders if (folder / place).exists()]
        if exact:
            return exact[0] / place, None
        if not one_by_one(attack):
            return None, None
        found: dict[float, Path] = {}
        for path in (
            path for folder in self.folders for path in sorted((folder / "eval").glob("*.npz"))
        ):
            said = files.meta(path)
            first = said.get("first")
            if said.get("attack") == key.text and path.name == self._place(key, first).name:
                found.setdefault(first or np.inf, path)
        asked = self.first or np.inf
        longer, shorter = ([n for n in found if (n > asked) is more] for more in (True, False))
        return found[min(longer)] if longer else None, found[max(shorter)] if shorter else None

    def _arrays(self, path: Path, key: Identity) -> Arrays:
        """A kept outcome, checked; of a published one, that it is as it was published."""
        if self.published and self.published in path.parents:
            store.published_file(self.published, path.relative_to(self.published).as_posix())
        not_told = {"weights", "first"} | (
            {"dtype", "crafted_on"} if key.text == repr(None) else set()
        )
        told = {name: value for name, value in self.decided_by.items() if name not in not_told}
        return files.read(path, key.text, told)

    def _compute(
        self, name: str, attack: Attack | None, key: Identity, shorter: Path | None
    ) -> Arrays:
        began = time.perf_counter()
        if self._subject is None:
            self._subject = self.load()
        model, crafted_on, x, y = self._subject
        labels = y.cpu().numpy()
        names = as_attack(attack).names or None
        path = None if key.unread else self.folders[-1] / self._place(key, self.first)
        parts = files.Parts(path)
        if shorter is not None:
            before = self._arrays(shorter, key)
            if not np.array_equal(before["y"], labels[: len(before["y"])]):
                raise store.StoreError(
                    f"{shorter} is of other images than are here; remove it to make it anew"
                )
            parts.begin_with(before, names)
        bar = tqdm(
            total=len(x),
            initial=parts.done,
            desc=f"{name} on {self.name}",
            unit="img",
            disable=not self.progress,
        )
        batches = attacked_batches(
            model,
            x,
            y,
            attack,
            crafted_on=crafted_on,
            begin=parts.done,
            batch_size=BATCH.get(x.device.type, 500),
            seed=self.decided_by["seed"],
            dtype=self.decided_by["dtype"],
        )
        for batch in batches:
            parts.add(batch.logits, batch.broken_by)
            bar.update(len(batch.logits))
        bar.close()
        told = {name: value for name, value in self.decided_by.items() if name != "weights"}
        arrays = files.write(path, labels, parts, {"name": name, "attack": key.text} | told, names)
        self.seconds[name] = time.perf_counter() - began
        return arrays

    def _tell_what_was_read(self) -> None:
        """A line for each minute in which something was judged that is read again, and for what
        cannot be kept.
        """
        lines: dict[str, list[str]] = {}
        for name, path in self._read.items():
            if self.published is None or self.published not in path.parents:
                lines.setdefault(f"kept: {{}} of {self.name}, judged {dated(path)}", []).append(
                    name
                )
            elif self.loud:
                lines.setdefault(f"published: {{}} of {self.name}", []).append(name)
        for name, unread in self.unkept.items():
            lines[f"not kept: {{}} of {self.name}, as no key can hold {', '.join(unread)}"] = [name]
        for line, names in lines.items():
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            if self.tell:
                self.tell(line.format(", ".join(names[:NAMED]) + more))
        self._read.clear()
        self.unkept.clear()


def one_by_one(attack: Attack | None) -> bool:
    """Whether an image's outcome is its own, whoever else is in the batch: ours, in BatchNorm's
    eval mode.
    """
    return is_plain(attack) and as_attack(attack).batch_norm == "eval"
