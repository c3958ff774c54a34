"""The outcomes of a trained run: the logits on each image, never an average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crat import data, store
from crat.attacks.decision import Decision, LogitBias
from crat.config import DATASETS, ConfigError, DataConfig
from crat.data.images import chosen_of, classes_in_turn
from crat.device import pick_device
from crat.names import one_of
from crat.outcomes import margins
from crat.outcomes.batteries import Battery
from crat.outcomes.cache import OutcomeCache, Outcomes, Subject
from crat.training.run import Run


@dataclass(frozen=True)
class Question:
    """The images, weights and settings that an outcome of a run is asked for, besides the attack.

    split: "test" or "valid".
    which: the weights, "best" or "last".
    crafted_on: a run whose adversarial examples are transferred to the judged one.
    keep_classes: the classes that the network may answer, on their images; labels are renumbered.
    bias: added to the logits of the classes, visible to the attack (Tian et al. change it at
    inference).
    temperature: numbers above 0 by which the logits of the classes are divided before, as visible.
    first: the number of images, from the first on (None: all).
    spread: whether the classes give their images in turn, so that the first are spread evenly.
    test_set: another data set with the same classes, whose test images are judged; "" is the run's
    own. Networks that were trained on the shipped images are judged on all of Fashion-MNIST's.
    images: the places, among all these images, of those that are asked for (None: all); the
    outcomes have no other image.
    dtype: precision of the search for adversarial examples; outcomes are judged in float32.
    seed: of random starts.
    Raises ConfigError on an unknown split or weights, and on less than one image.
    """

    split: str = "test"
    which: str = "best"
    crafted_on: Run | None = None
    keep_classes: Sequence[int] | None = None
    bias: Sequence[float] | None = None
    temperature: Sequence[float] | None = None
    first: int | None = None
    spread: bool = False
    test_set: str = ""
    images: Sequence[int] | None = None
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in ("test", "valid"):
            raise ConfigError(f"split is 'test' or 'valid', not {self.split!r}")
        if self.which not in ("best", "last"):
            raise ConfigError(f"which is 'best' or 'last', not {self.which!r}")
        if self.first is not None and self.first < 1:
            raise ConfigError(f"first is a number of images, at least 1, not {self.first}")
        if self.test_set:
            one_of("data set", self.test_set, DATASETS)
            if self.split != "test":
                raise ConfigError("test_set has test images: split must be 'test'")
        if self.images is not None and not len(self.images):
            raise ConfigError("images are the places of at least one image")

    @property
    def kept(self) -> list[int] | None:
        """The classes that may be answered, sorted; None: all."""
        return None if self.keep_classes is None else sorted(self.keep_classes)

    def decided_by(self, run: Run) -> dict[str, Any]:
        """Everything besides the attack that decides an outcome of a run.

        The settings "first", "bias", "temperature", "order", "test_set" and "images" are absent
        where the question does not use them.
        """
        source = self.crafted_on
        settings: dict[str, Any] = {
            "split": self.split,
            "which": self.which,
            "seed": self.seed,
            "keep": self.kept,
            "dtype": self.dtype,
            "weights": _weights(run, self.which),
            "crafted_on": _weights(source, self.which) if source else None,
        }
        if self.first:
            settings["first"] = self.first
        if self.bias is not None and len(self.bias):
            settings["bias"] = [float(b) for b in self.bias]
        if self.temperature is not None and len(self.temperature):
            settings["temperature"] = [float(t) for t in self.temperature]
        if self.first and self.spread:
            settings["order"] = "classes in turn"
        if self.test_set not in ("", run.config.data.name):
            settings["test_set"] = self.test_set
        if self.images is not None:
            settings["images"] = store.digest([int(place) for place in self.images])
        return settings

    def _data(self, own: DataConfig) -> DataConfig:
        """The settings of the images; of another test set no training image is needed.

        Raises ConfigError where the other data set has other classes or another shape.
        """
        if self.test_set in ("", own.name):
            return own
        there, here = DATASETS[self.test_set], DATASETS[own.name]
        if (there.classes, there.image_shape) != (here.classes, here.image_shape):
            raise ConfigError(
                f"{self.test_set} has other classes or shapes than {own.name}, on which the "
                "network was trained: it cannot be its test_set"
            )
        return replace(
            own, name=self.test_set, train_per_class=1, valid_per_class=1, imbalance_ratio=1.0
        )

    def _shifted(self, model: nn.Module) -> nn.Module:
        """The network whose class logits are divided and shifted, as the question says."""
        given = self.bias if self.temperature is None else self.temperature
        assert given is not None
        bias = torch.zeros(len(given)) if self.bias is None else torch.tensor(self.bias)
        divisor = None if self.temperature is None else torch.tensor(self.temperature)
        return LogitBias(model, bias, divisor)

    def subject(self, run: Run, device: torch.device) -> Subject:
        """The network, the network to craft examples on, and the images, on a device."""
        images = data.load(self._data(run.config.data))
        x = getattr(images, f"x_{self.split}").to(device)
        y = getattr(images, f"y_{self.split}").to(device)
        model = network(run, self.which, device)
        source = network(self.crafted_on, self.which, device) if self.crafted_on else None
        if self.kept is not None:
            kept = torch.tensor(self.kept, device=device)
            inside = torch.isin(y, kept)
            x = chosen_of(x, inside)
            y = torch.searchsorted(kept, y[inside])
            model = Decision(model, self.kept).to(device)
            source = Decision(source, self.kept).to(device) if source else None
        if self.bias is not None or self.temperature is not None:
            model = self._shifted(model).to(device)
        chosen: Tensor | slice = slice(self.first)
        if self.first and self.spread:
            chosen = classes_in_turn(y)[: self.first]
        x = chosen_of(x, chosen)
        y = y[chosen]
        if self.images is not None:
            places = torch.as_tensor(self.images, device=device)
            x = chosen_of(x, places)
            y = y[places]
        return Subject(model, source, x, y)


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
    """The outcomes of a trained run on clean images and under each attack, computed once.

    question: the fields of `Question`, such as split="valid" or first=1000.
    tell: receives a line about outcomes read from the store (None: silent).
    loud: whether `tell` also receives a line about published outcomes.
    Stored outcomes, here or under results/, are read. An outcome on more images serves for fewer;
    an outcome on fewer images, or of a killed evaluation, is continued. The key of an outcome
    covers the code and state of your own attacks (crat.keys.identity); where these cannot be read,
    the outcome is not stored.
    Raises ConfigError on an invalid question, and store.StoreError where the run has no weights, or
    where a file is damaged, contradicts its key or was altered after its publication.
    """
    asked = Question(**question)
    decided_by = asked.decided_by(run)
    classes = run.card()["classes"]
    cache = OutcomeCache(
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
    return cache.of(battery, asked.split, names)


def judged(run: Run, battery: Battery, **question: Any) -> bool:
    """Whether `evaluate(run, battery, **question)` would compute nothing."""
    return len(at_hand(run, battery, **question)) == 1 + len(battery)


def at_hand(run: Run, battery: Battery, **question: Any) -> list[str]:
    """The names, "clean" included, whose outcomes `evaluate` would read and not compute."""
    if not run.finished:
        return []
    cache = OutcomeCache(run.name, _folders(run), Question(**question).decided_by(run), _never)
    return [name for name, attack in {"clean": None, **battery}.items() if cache.is_stored(attack)]


def judged_as_published(run: Run, battery: Battery, **question: Any) -> bool:
    """Whether the outcome of each attack, on exactly these images, is published."""
    if not run.published:
        return False
    cache = OutcomeCache(run.name, (), Question(**question).decided_by(run), _never)
    attacks = (None, *battery.values())
    return all(margins.find(run.published, cache.path(attack)) for attack in attacks)


def _never() -> Subject:
    raise AssertionError("nothing is judged here")


def _folders(run: Run) -> list[Path]:
    """The folders of a run's outcomes: the published one first, the store's last."""
    return [run.published, run.folder] if run.published else [run.folder]


class MissingWeights(store.StoreError):
    """An outcome is not stored, and the weights to compute it are not here."""


def network(run: Run, which: str, device: torch.device) -> nn.Module:
    """The network of a run, with the class logits only; an augmented head has further outputs.

    It is trained here, or its weights are published.
    Raises MissingWeights, and StoreError where the published run has other weights.
    """
    if not run.has_network(which):
        raise MissingWeights(run.no_network(which))
    model = run.model(which, device)
    if store.fingerprint(model.state_dict()) != _weights(run, which):
        raise store.StoreError(
            f"{run.name} was published with other weights than are here, and their outcomes may "
            "not be mixed: --recompute, or a Store without published results, leaves those aside"
        )
    if run.config.model.head == "augmented":
        return Decision(model, slice(len(run.card()["classes"])))
    return model


def _weights(run: Run, which: str) -> str:
    """The fingerprint of a run's weights, from its card; raises MissingWeights."""
    if not run.finished:
        raise MissingWeights(run.no_network(which))
    return run.card()[which]["weights"]
