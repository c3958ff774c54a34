"""What a trained run answers on each image: never an average, always its logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crat import data, store
from crat.attacks.decision import Decision, LogitBias
from crat.config import ConfigError, RunConfig
from crat.device import pick_device
from crat.outcomes.batteries import Battery
from crat.outcomes.cache import OutcomeCache, Outcomes, Subject
from crat.store import Store
from crat.training.run import Run, classes_in_turn
from crat.training.trainer import train


@dataclass(frozen=True)
class Question:
    """Which answers of a run are asked for, besides the attack.

    split: "test" or "valid". which: the weights, "best" or "last". crafted_on: a run whose examples
        are transferred to this one.
    keep_classes: the classes that the network may answer, on their images; labels are renumbered.
    bias: added to the logits of the classes and seen by the attack (the change at inference of
        Tian et al.).
    first: so many images, from the start (None: all). spread: each class in turn gives its next
        image, so that the first ones are spread evenly.
    dtype: of the search for adversarial examples; the verdict is float32. seed: of random starts.
    Raises ConfigError on an unknown split or weights, and on less than one image.
    """

    split: str = "test"
    which: str = "best"
    crafted_on: Run | None = None
    keep_classes: Sequence[int] | None = None
    bias: Sequence[float] | None = None
    first: int | None = None
    spread: bool = False
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in ("test", "valid"):
            raise ConfigError(f"split is 'test' or 'valid', not {self.split!r}")
        if self.which not in ("best", "last"):
            raise ConfigError(f"which is 'best' or 'last', not {self.which!r}")
        if self.first is not None and self.first < 1:
            raise ConfigError(f"the first so many images are at least 1, not {self.first}")

    @property
    def kept(self) -> list[int] | None:
        """The classes that may be answered, in order; None: all."""
        return None if self.keep_classes is None else sorted(self.keep_classes)

    def decided_by(self, run: Run) -> dict[str, Any]:
        """All that decides an outcome of a run besides the attack; what is not asked is left out."""
        source = self.crafted_on
        in_turn = self.first and self.spread
        asked = {
            "first": self.first,
            "bias": None if self.bias is None else [float(b) for b in self.bias],
            "order": "classes in turn" if in_turn else None,
        }
        return {
            "split": self.split,
            "which": self.which,
            "seed": self.seed,
            "keep": self.kept,
            "dtype": self.dtype,
            "weights": _weights(run, self.which),
            "crafted_on": _weights(source, self.which) if source else None,
        } | {name: value for name, value in asked.items() if value}

    def subject(self, run: Run, device: torch.device) -> Subject:
        """The network and the images, on a device."""
        images = data.load(run.config.data)
        x = getattr(images, f"x_{self.split}").to(device)
        y = getattr(images, f"y_{self.split}").to(device)
        model = _model(run, self.which, device)
        source = _model(self.crafted_on, self.which, device) if self.crafted_on else None
        if self.kept is not None:
            kept = torch.tensor(self.kept, device=device)
            inside = torch.isin(y, kept)
            x, y = x[inside], torch.searchsorted(kept, y[inside])
            model = Decision(model, self.kept).to(device)
            source = Decision(source, self.kept).to(device) if source else None
        if self.bias is not None:
            model = LogitBias(model, torch.tensor(self.bias)).to(device)
        in_turn = self.first and self.spread
        chosen = classes_in_turn(y)[: self.first] if in_turn else slice(self.first)
        return Subject(model, source, x[chosen], y[chosen])


def evaluate(
    run: Run,
    battery: Battery,
    *,
    device: str | torch.device | None = None,
    progress: bool = False,
    tell: Callable[[str], None] | None = print,
    loud: bool = False,
    **question: Any,
) -> Outcomes:
    """Outcomes of a trained run on clean images and under each attack, computed once.

    question: the fields of `Question`, such as split="valid" or first=1000.
    What was computed before (here or under results/) is read, an outcome on more images serves for
    fewer, and one on fewer, or of a killed evaluation, is continued. tell: gets a line on what is
    read again from the store (None: silent), and with `loud` on what is published. An attack of
    yours is told from others by its code and its state (crat.keys.identity); where they cannot be
    read, its outcome is not stored.
    Raises ConfigError on a question that cannot be asked, store.StoreError where the run has no
    weights, and where a file is damaged, or not what it says, or not as it was published.
    """
    asked = Question(**question)
    decided_by = asked.decided_by(run)
    classes = run.card()["classes"]
    verdicts = OutcomeCache(
        run.name,
        _folders(run),
        decided_by,
        lambda: asked.subject(run, pick_device(device)),
        progress,
        run.published,
        tell,
        loud,
    )
    names = classes if asked.kept is None else [classes[k] for k in asked.kept]
    return verdicts.of(battery, asked.split, names)


def judged(run: Run, battery: Battery, **question: Any) -> bool:
    """Whether `evaluate(run, battery, **question)` would only read."""
    return len(at_hand(run, battery, **question)) == 1 + len(battery)


def at_hand(run: Run, battery: Battery, **question: Any) -> list[str]:
    """The names of a battery, "clean" among them, that `evaluate` would only read."""
    if not run.finished:
        return []
    places = OutcomeCache(run.name, _folders(run), Question(**question).decided_by(run), _never)
    return [name for name, attack in {"clean": None, **battery}.items() if places.is_stored(attack)]


def judged_as_published(run: Run, battery: Battery, **question: Any) -> bool:
    """Whether this very outcome is published of each attack of a battery."""
    if not run.published:
        return False
    places = OutcomeCache(run.name, (), Question(**question).decided_by(run), _never)
    attacks = (None, *battery.values())
    return all((run.published / places.path(attack)).exists() for attack in attacks)


def _never() -> Subject:
    raise AssertionError("nothing is judged here")


def _folders(run: Run) -> list[Path]:
    return [*([run.published] if run.published else []), run.folder]


def outcomes(
    config: RunConfig,
    battery: Battery,
    *,
    progress: str | None = None,
    store: Store | None = None,
    **settings,
) -> Outcomes:
    """What a notebook asks for: reads what is kept, here or under results/; trains and attacks what
    is missing.

    What is read from the store says so in a line with its date, but for progress="none"; what is
    published is quiet.
    store: where runs are (None: the usual one).
    """
    run = Run.of(config, settings.get("device"), store)
    if progress == "none":
        settings = {"tell": None} | settings
    try:
        return evaluate(run, battery, **settings)
    except MissingWeights:
        for needed in filter(None, (run, settings.get("crafted_on"))):
            train(needed.config, device=settings.get("device"), progress=progress, store=store)
        return evaluate(run, battery, **settings)


class MissingWeights(store.StoreError):
    """An outcome that is not kept, of a run whose weights are not here."""


def _model(run: Run, which: str, device: torch.device) -> nn.Module:
    """The network of a run as it decides: of an augmented head, the class logits only."""
    if not run.trained_here:
        raise MissingWeights(
            f"{run.name} is not trained here: `crat train` or train(config) does it"
        )
    model = run.model(which, device)
    if store.fingerprint(model.state_dict()) != _weights(run, which):
        raise store.StoreError(
            f"{run.name} was published with other weights than are here, and their outcomes may "
            f"not be mixed: "
            "--recompute, or a Store without published results, leaves those aside"
        )
    if run.config.model.head == "augmented":
        return Decision(model, slice(len(run.card()["classes"])))
    return model


def _weights(run: Run, which: str) -> str:
    """The fingerprint of a run's weights, from its card."""
    if not run.finished:
        raise MissingWeights(
            f"{run.name} is not trained here: `crat train` or train(config) does it"
        )
    return run.card()[which]["weights"]
