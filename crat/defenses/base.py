"""A training method crafts images, then returns a loss and class-wise statistics.

It never steps the optimizer.

A method is a dataclass: its attack and its own settings. What it updates is tensors in `state`;
those of shape (K,) are class-wise values, and land in history.csv under their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from crat.attacks.frozen import frozen
from crat.attacks.noise import Source
from crat.attacks.objectives import KLFrom, Objective, PlainCrossEntropy, full
from crat.attacks.threat import Budget
from crat.config import ConfigError
from crat.defenses.stats import ClassStats
from crat.device import moved


class Words(str):
    """An entry of the table in words: no preset takes it for a value."""


@dataclass(frozen=True)
class Row:
    """A line of a method's table "paper / released code / crat".

    name: a setting of the method or of the run (then it is part of the preset), or a habit in
        words.
    None: not stated, or not seen by us; under crat: the method's own default, or the profile's.
    """

    name: str
    paper: Any = None
    released: Any = None
    crat: Any = None
    why: str = ""


@dataclass(frozen=True)
class Task:
    """A method's knowledge of the run before it begins."""

    class_counts: Tensor  # training images of each class, (K,)
    image_shape: tuple[int, ...] = (1, 28, 28)  # (C, H, W)
    epochs: int = 1
    # the network that a distillation learns from: frozen, in eval mode, on the training's device
    teacher: nn.Module | None = None
    batch_size: int = 128

    @property
    def n_classes(self) -> int:
        """The number of classes, K."""
        return len(self.class_counts)


class Crafting(Protocol):
    """What a method asks of the attack that crafts its images, a crat.attacks.gradient.PGD."""

    @property
    def eps(self) -> float:
        """The radius, in units of [0, 1]."""
        ...

    @property
    def step_size(self) -> float:
        """The length of a step, in units of [0, 1]."""
        ...

    @property
    def steps(self) -> int:
        """How many steps it takes."""
        ...

    @property
    def norm(self) -> str:
        """The norm of its ball."""
        ...

    @property
    def batch_norm(self) -> str:
        """BatchNorm's mode while it crafts."""
        ...

    @property
    def objective(self) -> Objective:
        """What it ascends."""
        ...

    @property
    def perturb(self) -> Callable[..., Tensor]:
        """The loop without the door's checks: model, x, y -> x_adv."""
        ...


@dataclass
class Defense:
    """A training method.

    `revision` is raised whenever its numbers may change: stored runs are then trained anew.
    """

    # eps, step_size and steps are the run's; the start and BatchNorm's mode are the method's own
    attack: Crafting

    revision: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    code: ClassVar[str] = ""  # the authors' repository and the commit that was read
    head: ClassVar[str | None] = None  # the head that the method needs; None: any
    extra_outputs: ClassVar[int] = 0  # M of an augmented head, where the method brings it
    start: ClassVar[str] = "uniform"  # of the training attack
    batch_norm: ClassVar[str] = "train"  # its mode while crafting
    # "robust" or "clean": what the best epoch is chosen by, on validation
    selects_on: ClassVar[str] = "robust"
    taught: ClassVar[bool] = False  # whether it learns from a teacher, of the setting `teacher`
    rows: ClassVar[tuple[Row, ...]] = ()
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({},)  # choices of options whose tables differ

    def __post_init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    @property
    def waits(self) -> str:
        """Why a step of the method waits for the device, which no CUDA graph can; "" for none.

        It waits where Python decides by the value of a tensor.
        """
        return ""

    @property
    def updates_a_batch(self) -> int:
        """The number of updates that a batch is used for, one after another."""
        return 1

    def prepare(self, task: Task) -> None:
        """Begins `state`, once before training.

        Raises ConfigError where the task does not fit.
        """

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """The inner maximisation: the adversarial images that `loss` takes, shaped like x.

        x: (B, C, H, W) in [0, 1].
        y: (B,) int64.
        scale: in [0, 1], the share of eps and step during a warm-up.
        generator: draws the start (None: seed 0).
        BatchNorm works as the paper has it (`batch_norm`); the model is left as it was found but
        for what the mode "moving" moves. Nothing is checked, and nothing waits for the device.
        Here: the method's attack on its `objective`. A method may return more, as BAT does with
        (2, B, C, H, W).
        """
        return self.search(model, x, y, scale, generator)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The scalar to descend, with its graph, and the batch's statistics.

        x: (B, C, H, W) in [0, 1].
        y: (B,) int64.
        x_adv: as `craft` gave it.
        The model is in train mode. The order of the forward passes is the authors', because
        BatchNorm's running statistics see them. Losses are taken of float32 logits. Each subclass
        names its formula's source in its own docstring.
        Of several processes each passes its own images: what is no mean over images (a class's
        mean, a weighted mean, a maximum) is taken over crat.distributed.whole(values), all of the
        batch, here and in `craft`.

        Raises TypeError where a method has no loss, and ConfigError where the network's head is not
        what the method needs.
        """
        raise TypeError(f"{type(self).__name__} must define its loss")

    def after_step(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Called after the optimizer's step: CFA's code passes the clean images once more there."""

    def class_probs(self) -> Tensor | None:
        """Probabilities (K,) by which the next epoch draws classes; None: every image once."""
        return None

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """The place where a class-wise policy moves; a class may be absent from either (n = 0)."""

    def search(
        self, model: nn.Module, x: Tensor, y: Tensor, scale: Budget, generator: Source
    ) -> Tensor:
        """The method's attack on its objective, within its budget."""
        objective = self.objective(model, x)
        eps, step = self.budget(y, scale)
        return self.attack.perturb(
            model, x, y, eps=eps, step_size=step, objective=objective, generator=generator
        )

    def budget(self, y: Tensor | None, scale: Budget) -> tuple[Budget, Budget]:
        """eps and step of the attack times scale, each a number or (B,).

        They are state["eps"][y] and state["step_size"][y] where the method has them, else those of
        the attack, as they are for y None. Only here the warm-up's scale is multiplied.
        """
        a = self.attack
        if y is None:
            return a.eps * scale, a.step_size * scale
        return self.of("eps", y, a.eps) * scale, self.of("step_size", y, a.step_size) * scale

    def objective(self, model: nn.Module, x: Tensor) -> Objective:
        """The attack's objective on the images x; here the cross-entropy."""
        return self.ascended()

    def ascended(self) -> Objective:
        """The cross-entropy in the form that is ascended: its log-odds.

        Under BatchNorm "moving" it is the cross-entropy itself, as in released code.
        """
        return PlainCrossEntropy() if self.attack.batch_norm == "moving" else self.attack.objective

    def of(self, name: str, y: Tensor, default: float) -> Tensor | float:
        """The class-wise value `name` of each sample (B,); the default where the state has none."""
        return self.state[name][y] if name in self.state else default

    def class_values(self) -> dict[str, Tensor]:
        """The class-wise values of the state, (K,) each: columns of history.csv."""
        return {name: value for name, value in self.state.items() if value.ndim == 1}

    def to(self, device: torch.device) -> Defense:
        """Moves the state, in float32 where the device has no float64; returns itself."""
        self.load_state_dict({name: moved(value, device) for name, value in self.state.items()})
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that changes in training, for the checkpoint."""
        return self.state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what state_dict gave.

        In place, so that a method that wraps another shares its state.
        """
        self.state.update(state)

    @classmethod
    def crafting(cls, **chosen: Any) -> tuple[str, str]:
        """Start of the training attack and BatchNorm's mode in it."""
        return cls.start, cls.batch_norm

    @classmethod
    def table(cls, **chosen: Any) -> tuple[Row, ...]:
        """The rows of the table; a method with variants answers for the chosen one."""
        return cls.rows

    @classmethod
    def options(cls) -> dict[str, Any]:
        """The method's own settings and their defaults."""
        return {f.name: f.default for f in fields(cls) if f.name != "attack"}


@dataclass
class Distilled(Defense):
    """A method that learns from a teacher, the network that the config names (crat.training.start).

    It is frozen and in eval mode, answers clean images, and is no part of the state.
    """

    taught = True

    def prepare(self, task: Task) -> None:
        """Takes the teacher over."""
        self.teacher: nn.Module | None = task.teacher

    def taught_logits(self, x: Tensor) -> Tensor:
        """The teacher's logits (B, K) of clean images, without a gradient.

        Raises ConfigError where the method was made without a teacher.
        """
        if self.teacher is None:
            name = type(self).__name__.lower()
            raise ConfigError(f"{name} learns from a teacher, and its task has none")
        with torch.no_grad():
            return full(self.teacher(x))

    def ascend(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        objective: Objective,
        scale: Budget,
        generator: Source,
    ) -> Tensor:
        """The method's attack within its budget, on an objective that knows the labels."""
        eps, step = self.budget(y, scale)
        return self.attack.perturb(
            model, x, y, eps=eps, step_size=step, objective=objective, generator=generator
        )


def checked(what: str, value: Any, test: Callable[[Any], bool], allowed: str) -> None:
    """Raises ConfigError, one line, where a method's setting is out of range."""
    try:
        right = test(value)
    except TypeError:
        right = False
    if not right:
        raise ConfigError(f"{what} is {allowed}, not {value!r}")


def kl_from_clean(model: nn.Module, x: Tensor, batch_norm: str) -> KLFrom:
    """KL(p(x) || p(x')), what TRADES ascends.

    p(x) is computed once, with BatchNorm in the attack's mode.
    """
    with frozen(model, batch_norm), torch.no_grad():
        return KLFrom(full(model(x)))


# name -> method; crat.defenses fills it, so that no policy imports its base
METHODS: dict[str, type[Defense]] = {}


class Policy(Defense):
    """A method with a base that crafts for it and reads class-wise eps and beta in its state.

    base: the name of the base, a field of the subclass or a constant of it.
    bases: the names that are allowed.
    """

    base: str
    inner: Defense
    bases: ClassVar[tuple[str, ...]]

    def prepare(self, task: Task) -> None:
        """Makes the base. Raises ConfigError on an unknown one."""
        name = type(self).__name__.lower()
        checked(
            f"base of {name}",
            self.base,
            lambda b: b in self.bases,
            f"one of {', '.join(self.bases)}",
        )
        self.inner = METHODS[self.crafts_as()](self.attack, **self.settings_of_base())
        self.inner.state = self.state

    @property
    def waits(self) -> str:
        """As the base, which crafts."""
        return self.inner.waits

    def crafts_as(self) -> str:
        """The name of the method that crafts."""
        return self.base

    def settings_of_base(self) -> dict[str, Any]:
        """The options that the base is made with."""
        return {}

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """The adversarial images of the base."""
        return self.inner.craft(model, x, y, scale=scale, generator=generator)
