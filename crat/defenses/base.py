"""What a training method is: it crafts, then returns a loss and class-wise statistics. It never
steps the optimizer.

A method is a dataclass: its attack and its own settings. What it updates is tensors in `state`;
those of shape (K,) are class-wise values, and land in history.csv under their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crat.attacks import PGD
from crat.attacks.noise import Source
from crat.attacks.objectives import Objective, PlainCrossEntropy
from crat.config import ConfigError
from crat.defenses.stats import ClassStats


class Words(str):
    """An entry of the table that is told, not set: no preset takes it for a value."""


@dataclass(frozen=True)
class Row:
    """A line of a method's table "paper / released code / crat".

    name: a setting of the method or of the run (then it is part of the preset), or a habit in
    words. None: not stated, or not seen by us; under crat: the method's own default, or the
    profile's.
    """

    name: str
    paper: Any = None
    released: Any = None
    crat: Any = None
    why: str = ""


@dataclass(frozen=True)
class Task:
    """What a method is told of the run: training images of each class (K,), the images' shape
    (C, H, W), epochs.
    """

    class_counts: Tensor
    image_shape: tuple[int, ...] = (1, 28, 28)
    epochs: int = 1

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.class_counts)


@dataclass
class Defense:
    """A training method. `revision` is raised whenever its numbers may change: stored runs are
    then trained anew.
    """

    # eps, step_size and steps are the run's; the start and BatchNorm's mode are the method's own
    attack: PGD

    revision: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    code: ClassVar[str] = ""  # the authors' repository and the commit that was read
    head: ClassVar[str | None] = None  # the head that the method needs; None: any
    extra_outputs: ClassVar[int] = 0  # M of an augmented head, where the method brings it
    start: ClassVar[str] = "uniform"  # of the training attack
    batch_norm: ClassVar[str] = "train"  # its mode while crafting
    # or "clean": what the best epoch is chosen by, on validation
    selects_on: ClassVar[str] = "robust"
    rows: ClassVar[tuple[Row, ...]] = ()
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({},)  # choices of options whose tables differ

    def __post_init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def prepare(self, task: Task) -> None:
        """Called once before training: the place to begin `state`. Raises ConfigError where the
        task does not fit.
        """

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: float = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """The inner maximisation, BatchNorm as the paper has it; `scale` shrinks eps and step
        during a warm-up.

        Here: the attack on the cross-entropy, within state["eps"][y] where the method has one.
        """
        return self.search(model, x, y, scale, generator)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The scalar to descend and the batch's statistics; the model is in train mode.

        Of several processes each passes its own images: what is no mean over images (a class's
        mean, a weighted mean, a maximum) is taken over crat.distributed.whole(values), all of the
        batch, here and in `craft`.
        """
        raise TypeError(f"{type(self).__name__} must define its loss")

    def after_step(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Called behind the optimizer's step (CFA's code passes the clean images once more
        there).
        """

    def class_probs(self) -> Tensor | None:
        """Probabilities (K,) with which classes are drawn in the next epoch, or None for plain
        epochs.
        """
        return None

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """The place where a class-wise policy moves; a class may be absent from either (n = 0)."""

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        scale: float,
        generator: Source,
        objective: Objective | None = None,
    ) -> Tensor:
        """The method's attack with an objective (None: its own), budget state["eps"], step
        state["step_size"].
        """
        a = self.attack
        objective = self.ascended() if objective is None else objective
        eps, step = self.of("eps", y, a.eps), self.of("step_size", y, a.step_size)
        return a.perturb(
            model,
            x,
            y,
            eps=eps * scale,
            step_size=step * scale,
            objective=objective,
            generator=generator,
        )

    def ascended(self) -> Objective:
        """Cross-entropy as it is ascended: its log-odds, but itself under BatchNorm "moving", as
        in released code.
        """
        return PlainCrossEntropy() if self.attack.batch_norm == "moving" else self.attack.objective

    def of(self, name: str, y: Tensor, default: float) -> Tensor | float:
        """The class-wise value `name` of each sample (B,), or the default where the method keeps
        none.
        """
        return self.state[name][y] if name in self.state else default

    def class_values(self) -> dict[str, Tensor]:
        """What is class-wise in the state, (K,) each: columns of history.csv."""
        return {name: value for name, value in self.state.items() if value.ndim == 1}

    def to(self, device: torch.device) -> Defense:
        """Moves the state; returns itself."""
        self.load_state_dict({name: value.to(device) for name, value in self.state.items()})
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that changes in training, for the checkpoint."""
        return self.state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what state_dict gave; in place, so that a method that wraps another shares
        its state.
        """
        self.state.update(state)

    @classmethod
    def crafting(cls, **chosen: Any) -> tuple[str, str]:
        """Start of the training attack and BatchNorm's mode in it."""
        return cls.start, cls.batch_norm

    @classmethod
    def table(cls, **chosen: Any) -> tuple[Row, ...]:
        """The rows of the table; a method with variants answers for the one that is chosen."""
        return cls.rows

    @classmethod
    def options(cls) -> dict[str, Any]:
        """The method's own settings and their defaults."""
        return {f.name: f.default for f in fields(cls) if f.name != "attack"}


def checked(what: str, value: Any, test: Callable[[Any], bool], allowed: str) -> None:
    """Raises ConfigError, one line, where a method's setting is out of range."""
    try:
        right = test(value)
    except TypeError:
        right = False
    if not right:
        raise ConfigError(f"{what} is {allowed}, not {value!r}")
