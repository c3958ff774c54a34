"""The outcomes of a model on each image, clean and attacked: computed once and stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from crat import store
from crat.attacks.door import Attack, as_attack
from crat.attacks.judge import REVISION, attacked_batches, one_by_one
from crat.data import Streamed
from crat.keys.identity import Identity, attack_identity
from crat.outcomes import files, margins
from crat.outcomes.batteries import Battery
from crat.outcomes.files import Arrays
from crat.outcomes.margins import Place
from crat.text import dated

NAMED = 4  # attacks, at most, that one line about stored outcomes names
CLEAN = repr(None)  # the identity of no attack at all


class Logits(dict[str, np.ndarray]):
    """Name -> logits (N, K); an outcome that was published without them raises StoreError.

    without: the names of such outcomes. subject: the name of the model.
    """

    def __init__(
        self, logits: Mapping[str, np.ndarray], without: Collection[str], subject: str
    ) -> None:
        super().__init__(logits)
        self.without = without
        self.subject = subject

    def __missing__(self, name: str) -> np.ndarray:
        if name not in self.without:
            raise KeyError(name)
        raise store.StoreError(
            f"{name} of {self.subject} was published without logits: only predictions and margins "
            "are kept; train the run and evaluate it for logits, both with --recompute"
        )


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of a model on N images, clean and under each attack; "clean" is always a name.

    y: labels, (N,) int64.
    logits: name -> (N, K) float16, or float32 where some logits are beyond float16. StoreError for
    an outcome that was published without logits (`crat publish --compact`).
    predictions: name -> (N,) int64, from float32 logits (float16 can round two logits to a tie).
    broken_by: name of a battery such as AutoAttack -> (N,) strings, the attack that broke each
    image: "clean" where the clean prediction is wrong, "" where no attack succeeded.
    margins: name -> (N,) float16 (float32 beyond its range), the logit of the true class minus the
    largest other logit.
    """

    split: str
    classes: tuple[str, ...]
    y: np.ndarray
    logits: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    broken_by: dict[str, np.ndarray]
    margins: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def clean(self) -> np.ndarray:
        """The clean predictions, (N,)."""
        return self.predictions["clean"]

    def robust(self, attack: str) -> np.ndarray:
        """Whether each image is classified correctly, clean and under the attack: (N,) bool."""
        return (self.clean == self.y) & (self.predictions[attack] == self.y)


class Subject(NamedTuple):
    """A model, the model to craft examples on (None: the same), x (N, C, H, W) and y (N,)."""

    model: nn.Module
    crafted_on: nn.Module | None
    x: Tensor | Streamed
    y: Tensor


class Stored(NamedTuple):
    """The stored outcomes that answer a question: `enough` wholly, or `fewer` in part."""

    enough: Place | None  # at least as many images as the question asks for
    fewer: Path | None  # the longest outcome of fewer images, with logits, to be continued


@dataclass
class OutcomeCache:
    """The stored outcomes of one subject, which is loaded only to compute a missing outcome.

    name: of the subject, in the progress bar and in messages.
    folders: where outcomes may be stored; new ones are written to the last.
    decided_by: everything besides the attack that decides an outcome: the weights' fingerprint, the
    images, seed, precision. Its hash names the file; "first" is the number of images (None: all).
    load: returns the subject.
    published: the folder whose files must agree with its SHA256SUMS.
    tell: receives a line, with its date, about outcomes that are read (None: silent).
    loud: whether `tell` also receives a line about published outcomes.
    seconds: name -> time that the computation of an outcome took.
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
    _subject: Subject | None = field(default=None, init=False)
    _read: dict[str, Path] = field(default_factory=dict, init=False)
    # name -> the parts of an attack that no key can hold
    _unkeyed: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)

    def of(self, battery: Battery, split: str, classes: Sequence[str]) -> Outcomes:
        """The outcomes on clean images and under every attack of a battery.

        Raises StoreError where a stored outcome was altered, contradicts itself, or has other
        labels or classes.
        """
        arrays = {"clean": self.outcome("clean", None)}
        arrays |= {name: self.outcome(name, attack) for name, attack in battery.items()}
        self._check_agreement(arrays, len(classes))
        self._tell_of_stored()
        return Outcomes(
            split,
            tuple(classes),
            arrays["clean"]["y"].astype(np.int64),
            self._logits(arrays),
            {name: a["prediction"].astype(np.int64) for name, a in arrays.items()},
            {name: a["broken_by"] for name, a in arrays.items() if "broken_by" in a},
            {name: _margins(of_attack) for name, of_attack in arrays.items()},
        )

    def _logits(self, arrays: dict[str, Arrays]) -> Logits:
        kept = {name: a["logits"] for name, a in arrays.items() if "logits" in a}
        return Logits(kept, arrays.keys() - kept.keys(), self.name)

    def _check_agreement(self, arrays: dict[str, Arrays], n_classes: int) -> None:
        """Raises StoreError unless all outcomes are of the same labels and number of classes."""
        y = arrays["clean"]["y"]
        for name, of_attack in arrays.items():
            if not np.array_equal(of_attack["y"], y):
                raise store.StoreError(
                    f"{self.name}: the images under {name} have other labels than the clean ones"
                )
            n_logits = _n_classes(of_attack)
            if n_logits != n_classes:
                raise store.StoreError(f"{self.name}: {n_logits} logits but {n_classes} classes")

    @property
    def first(self) -> int | None:
        """The number of first images that the question asks for; None: all."""
        return self.decided_by.get("first")

    def path(self, attack: Attack | None) -> Path:
        """The path of an outcome in its folder, named by the hash of everything that decides it."""
        return self._place(attack_identity(attack), self.first)

    def _place(self, attack: Identity, first: int | None) -> Path:
        """`path` for an outcome on the first images (None: all)."""
        decided_by = self.decided_by | {"attack": attack.text, "revision": [store.FORMAT, REVISION]}
        if first:
            decided_by["first"] = first
        else:
            decided_by.pop("first", None)
        if attack.text == CLEAN:
            decided_by |= {"dtype": None, "crafted_on": None}
        return Path("eval") / f"{decided_by['split']}-{store.digest(decided_by)}.npz"

    def outcome(self, name: str, attack: Attack | None) -> Arrays:
        """The arrays of one attack's outcome (crat.outcomes.files), read or computed.

        An attack that no key can hold is computed each time and not stored.
        """
        key = attack_identity(attack)
        if key.unread:
            self._unkeyed[name] = key.unread
            return self._compute(name, attack, key, None)
        stored = self._stored(attack, key)
        if stored.enough is not None:
            self._read[name] = stored.enough.path
            return files.prefix(self._arrays(stored.enough, key), self.first)
        if stored.fewer is not None:
            self._read[f"{name} (a part)"] = stored.fewer
        return self._compute(name, attack, key, stored.fewer)

    def is_stored(self, attack: Attack | None) -> bool:
        """Whether `outcome` would read the whole outcome and compute nothing."""
        key = attack_identity(attack)
        return not key.unread and self._stored(attack, key).enough is not None

    def _stored(self, attack: Attack | None, key: Identity) -> Stored:
        """The stored outcome to read or to continue.

        An outcome of exactly the images asked for is preferred to a longer one, and a published
        outcome to one that is not. One without logits is not continued.
        """
        own = self._place(key, self.first)
        for folder in self.folders:
            if place := margins.find(folder, own):
                return Stored(place, None)
        if not one_by_one(attack):
            return Stored(None, None)
        places = self._places_by_length(key)
        asked = self.first or np.inf
        longer = [length for length in places if length > asked]
        shorter = [length for length, place in places.items() if length <= asked and not place.key]
        return Stored(
            places[min(longer)] if longer else None,
            places[max(shorter)].path if shorter else None,
        )

    def _places_by_length(self, key: Identity) -> dict[float, Place]:
        """The stored outcomes of one attack: number of images (inf: all) -> place."""
        places: dict[float, Place] = {}
        for folder in self.folders:
            for place, meta in margins.metas(folder).items():
                first = meta.get("first")
                name = place.key or place.path.stem
                if meta.get("attack") == key.text and name == self._place(key, first).stem:
                    places.setdefault(first or np.inf, place)
        return places

    def _arrays(self, place: Place, key: Identity) -> Arrays:
        """A stored outcome after its checks; a published one must be as it was published."""
        path = place.path
        if self._is_published(path):
            assert self.published
            store.published_file(self.published, path.relative_to(self.published).as_posix())
        unchecked = {"weights", "first"}
        if key.text == CLEAN:
            unchecked |= {"dtype", "crafted_on"}
        expected = {k: value for k, value in self.decided_by.items() if k not in unchecked}
        if place.key:
            return margins.read(place, key.text, expected)
        return files.read(path, key.text, expected)

    def _is_published(self, path: Path) -> bool:
        return self.published is not None and self.published in path.parents

    def _compute(
        self, name: str, attack: Attack | None, key: Identity, shorter: Path | None
    ) -> Arrays:
        """Computes an outcome, from the end of a shorter one where there is one, and writes it."""
        began = time.perf_counter()
        if self._subject is None:
            self._subject = self.load()
        labels = self._subject.y.cpu().numpy()
        names = as_attack(attack).names or None
        path = None if key.unread else self.folders[-1] / self._place(key, self.first)
        parts = files.Parts(path)
        if shorter is not None:
            parts.begin_with(self._same_images(shorter, key, labels), names)
        self._judge(name, attack, parts)
        meta = {"name": name, "attack": key.text}
        meta |= {k: value for k, value in self.decided_by.items() if k != "weights"}
        arrays = files.write(path, labels, parts, meta, names)
        self.seconds[name] = time.perf_counter() - began
        return arrays

    def _same_images(self, shorter: Path, key: Identity, labels: np.ndarray) -> Arrays:
        """A shorter outcome; raises StoreError where its labels are not the first of `labels`."""
        arrays = self._arrays(Place(shorter), key)
        if not np.array_equal(arrays["y"], labels[: len(arrays["y"])]):
            raise store.StoreError(
                f"{shorter} is of other images than are here; remove it to make it anew"
            )
        return arrays

    def _judge(self, name: str, attack: Attack | None, parts: files.Parts) -> None:
        """Adds the batches that are missing to `parts`, with a progress bar."""
        assert self._subject
        model, crafted_on, x, y = self._subject
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
            seed=self.decided_by["seed"],
            dtype=self.decided_by["dtype"],
        )
        for batch in batches:
            parts.add(batch.logits, batch.broken_by)
            bar.update(len(batch.logits))
        bar.close()

    def _tell_of_stored(self) -> None:
        """Tells of outcomes read, a line for each minute of their dates, and of those unkeyed."""
        names: dict[tuple[str, str], list[str]] = {}  # beginning and end of a line -> attacks
        for name, path in self._read.items():
            if not self._is_published(path):
                names.setdefault(("kept", f", judged {dated(path)}"), []).append(name)
            elif self.loud:
                names.setdefault(("published", ""), []).append(name)
        for name, unread in self._unkeyed.items():
            end = f", as no key can hold {', '.join(unread)}"
            names.setdefault(("not kept", end), []).append(name)
        self._read.clear()
        self._unkeyed.clear()
        if self.tell is None:
            return
        for (beginning, end), attacks in names.items():
            listed = ", ".join(attacks[:NAMED])
            if len(attacks) > NAMED:
                listed += f" and {len(attacks) - NAMED} more"
            self.tell(f"{beginning}: {listed} of {self.name}{end}")


def _n_classes(arrays: Arrays) -> int:
    """The number of classes of an outcome, with logits or without."""
    return arrays["logits"].shape[1] if "logits" in arrays else int(arrays["n_classes"])


def _margins(arrays: Arrays) -> np.ndarray:
    """The margins (N,) of an outcome, with logits or without."""
    return margins.of(arrays["logits"], arrays["y"]) if "logits" in arrays else arrays["margin"]
