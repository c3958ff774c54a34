"""Projected gradient ascent and its kin: FGSM, PGD, MI-FGSM, Temperature-PGD, CW in its L-inf form.

They differ in the objective, the start and the number of steps; the loop is one. All are judged on
the last iterate, as the papers do: stopping at the first error is another attack (`stop="first"`),
and records another wrong class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crat.attacks.door import Attack, check_radius, checked
from crat.attacks.frozen import BATCH_NORM_MODES, frozen
from crat.attacks.logits import forward_backward
from crat.attacks.noise import Drawing, Source, drawing
from crat.attacks.objectives import (
    DLR,
    CrossEntropy,
    Margin,
    Objective,
    PlainCrossEntropy,
    Toward,
    full,
)
from crat.attacks.threat import (
    NORMS,
    Budget,
    ascent_direction,
    gaussian_start,
    one_of,
    over_images,
    per_sample,
    project,
    size,
    uniform_start,
)
from crat.device import precise

STARTS = ("uniform", "gaussian", "none")
STOPS = ("never", "first")
# steps from which on it pays to look for circles, and steps between looks, which wait for a device
LONG, WINDOW = 40, 10
# of these a part of the images can be taken: they hold nothing of an image
OF_NO_IMAGE = (CrossEntropy, PlainCrossEntropy, Margin, DLR)


def ascend(
    model: nn.Module,
    x: Tensor,
    x_start: Tensor,
    y: Tensor,
    eps: Tensor | float,
    step_size: Tensor | float,
    steps: int,
    norm: str,
    objective: Objective,
    stop: str = "never",
) -> Tensor:
    """The last iterate of the loop: a step along the ascent direction, then back into ball and box.

    With stop="first" a sample stays where it was first misclassified.
    """
    x_adv = x_start
    for _ in range(steps):
        gradient, _, logits = forward_backward(model, x_adv, y, objective)
        stepped = project(x_adv + step_size * ascent_direction(gradient, norm), x, eps, norm)
        x_adv = (
            torch.where(over_images(logits.argmax(1) != y, x), x_adv, stepped)
            if stop == "first"
            else stepped
        )
    return x_adv


def ascend_until_circles(
    model: nn.Module,
    x: Tensor,
    x_start: Tensor,
    y: Tensor,
    eps: Tensor | float,
    step_size: Tensor | float,
    steps: int,
    objective: Objective,
    target: Tensor | None = None,
) -> Tensor:
    """The last iterate of `ascend` in L-inf, without the passes of images that walk in a circle.

    Steps of one length along a sign meet only so many points of the ball. An image that is back at
    a point where it was p steps ago goes the same way again, if the model answers an image always
    the same: its last iterate is known. Every WINDOW steps the images with p up to WINDOW leave.
    The others' passes then round as they do in a smaller batch.
    target: (N,), the classes to ascend towards.
    Source: Doldo et al. 2025, "Stop Walking in Circles!" (arXiv 2503.19347), who hash all iterates.
    """
    last = x_start.clone()
    left = torch.arange(len(x), device=x.device)
    here = x_start
    for begin in range(0, steps, WINDOW):
        goal = objective if target is None else Toward(target, objective)
        visited = [here]
        for _ in range(min(WINDOW, steps - begin)):
            here = ascend(model, x, here, y, eps, step_size, 1, "Linf", goal)
            visited.append(here)
        to_go = steps - begin - WINDOW
        if to_go <= 0:
            break
        period = torch.zeros_like(left)
        for back, point in enumerate(reversed(visited[:-1]), start=1):
            same = (here == point).flatten(1).all(1) & (period == 0)
            period = torch.where(same, back, period)
        circling = period.nonzero().flatten()
        if not len(circling):
            continue
        lengths = period[circling]
        at = WINDOW - lengths + to_go % lengths
        circles = torch.stack([point[circling] for point in visited])
        last[left[circling]] = circles[at, torch.arange(len(circling), device=x.device)]
        walking = (period == 0).nonzero().flatten()
        if not len(walking):
            return last
        left, here = left[walking], here[walking]
        x, y = x[walking], y[walking]
        eps, step_size = _some(eps, walking), _some(step_size, walking)
        target = None if target is None else target[walking]
    last[left] = here
    return last


def _some(value: Tensor | float, chosen: Tensor) -> Tensor | float:
    """A radius or step of some images; one number is that of all."""
    return value[chosen] if isinstance(value, Tensor) and value.ndim else value


class Ascent(Attack):
    """An attack that ascends the objective it was made with."""

    objective: Objective

    def towards_the_nearest(self, n_classes: int) -> Any:
        """The margin instead of the cross-entropy of all classes."""
        if self.objective != CrossEntropy():
            return self
        return replace(self, objective=Margin())  # type: ignore[type-var]


@dataclass(frozen=True)
class PGD(Ascent):
    """Projected gradient descent attack (Madry et al. 2018): `PGD(...)(model, x, y) -> x_adv`.

    A call goes through the door (crat.attacks.door); a training's inner loop calls `perturb`, which
    checks nothing and never waits for the device.

    eps, step_size: radius and step in units of [0, 1]; at call time also an (N,) tensor, one per
        sample (class-wise margins are `eps_k[y]`).
    norm: "Linf", "L2" or "L1" (there a step moves the one coordinate that counts most).
    start: "uniform" in the ball, "gaussian" (x + 0.001 N(0, 1), TRADES) or "none".
    restarts: best of several starts, each judged on its last iterate: wrong before right, then the
        larger objective.
    batch_norm: its mode inside the attack ("eval", "train", "as_is"), because the papers differ.
    stop: "never", judged on the last iterate, or "first", where a sample stays once it is
        misclassified.
    x: (N, C, H, W) in [0, 1].
    y: (N,) int64.
    target: (N,), the classes to end in.
    generator: draws the start: a torch.Generator for the batch, or PerImage (None: a generator with
        seed 0, so the start is the same in every call); the global random state is not touched.
    search: of a call, "fast" (on a copy of the model that is in bfloat16 where that is fast; from
        256 passes x images on) or "exact" (on the model itself); see crat.attacks.door.checked.

    Raises ValueError on an unknown norm, start or mode, and where eps or step_size has the wrong
    shape.
    """

    eps: float
    step_size: float
    steps: int = 10
    norm: str = "Linf"
    objective: Objective = CrossEntropy()  # noqa: RUF009 (frozen, so it can be shared)
    start: str = "uniform"
    restarts: int = 1
    batch_norm: str = "eval"
    stop: str = "never"

    def __post_init__(self) -> None:
        one_of("norm", self.norm, NORMS)
        one_of("start", self.start, STARTS)
        one_of("batch_norm", self.batch_norm, BATCH_NORM_MODES)
        one_of("stop", self.stop, STOPS)
        if self.steps < 0 or self.restarts < 1:
            raise ValueError(f"steps >= 0 and restarts >= 1, not {self.steps} and {self.restarts}")
        check_radius(self.eps, self.norm)
        check_radius(self.step_size, self.norm, what="step_size")

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Budget | None = None,
        step_size: Budget | None = None,
        objective: Objective | None = None,
        target: Tensor | None = None,
        generator: Source = None,
        circles: bool = False,
    ) -> Tensor:
        """Adversarial images of the shape of x.

        eps, step_size and objective override the attack's own.
        circles: whether images that walk in a circle take no further passes, where that pays
            (`ascend_until_circles`); the iterates are the same, but it waits for the device.
        """
        draws = drawing(generator, x)
        goal = objective or self.objective
        towards = goal if target is None else Toward(target, goal)
        radius = per_sample(self.eps if eps is None else eps, x)
        step = per_sample(self.step_size if step_size is None else step_size, x)
        climb = self._climb(goal, target, circles)
        with frozen(model, self.batch_norm):
            tries = (
                climb(
                    model,
                    x,
                    self._start(x, radius, draws),
                    y,
                    eps=radius,
                    step_size=step,
                    steps=self.steps,
                )
                for _ in range(self.restarts)
            )
            best = next(tries)
            if self.restarts == 1:
                return best
            worth = _worth(model, best, y, towards, target)
            for x_adv in tries:
                value = _worth(model, x_adv, y, towards, target)
                best = torch.where(over_images(value > worth, x), x_adv, best)
                worth = value.maximum(worth)
        return best

    def _evaluated(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Budget | None = None,
        step_size: Budget | None = None,
        objective: Objective | None = None,
        target: Tensor | None = None,
        generator: Source = None,
    ) -> Tensor:
        """`perturb` where an evaluation may wait for the device: 40 steps and more stop early."""
        return self.perturb(
            model,
            x,
            y,
            eps=eps,
            step_size=step_size,
            objective=objective,
            target=target,
            generator=generator,
            circles=True,
        )

    __call__ = checked(_evaluated)

    def _climb(
        self, goal: Objective, target: Tensor | None, circles: bool
    ) -> Callable[..., Tensor]:
        """The way from a start to the last iterate: `ascend`, or without circles."""
        if circles and self._may_circle(goal):
            return partial(ascend_until_circles, objective=goal, target=target)
        towards = goal if target is None else Toward(target, goal)
        return partial(ascend, norm=self.norm, objective=towards, stop=self.stop)

    def _may_circle(self, objective: Objective) -> bool:
        """Whether an image's way is its own, in steps of one length, and long."""
        alone = self.norm == "Linf" and self.stop == "never" and self.batch_norm == "eval"
        return alone and self.steps >= LONG and type(objective) in OF_NO_IMAGE

    @property
    def decides(self) -> bool:
        """With stop="first" and among restarts, the answers of the search choose the image."""
        return self.stop == "first" or self.restarts > 1

    def within(self, eps: Tensor) -> dict[str, Tensor]:
        """eps and a step size in the same ratio as the attack's own."""
        return {"eps": eps, "step_size": eps * (self.step_size / self.eps)}

    def _start(self, x: Tensor, eps: Tensor | float, generator: Drawing) -> Tensor:
        if self.start == "uniform":
            return uniform_start(x, eps, self.norm, generator)
        if self.start == "gaussian":
            # Not clipped to the ball, as in the TRADES code; the first step projects.
            return gaussian_start(x, 0.001, generator) if self.steps else x
        return x


@dataclass(frozen=True)
class FallingTemperature(PGD):
    """Temperature-PGD whose temperature falls from step to step, geometrically.

    The first steps push towards every class, the last ones towards the runner-up.
    first, last: the temperatures of the first and of the last step. All else as in PGD; among
        restarts the cross-entropy chooses.
    Source: ours; Tian et al. 2021 have one temperature.
    """

    first: float = 10.0
    last: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.first >= self.last > 0 or self.objective != CrossEntropy():
            raise ValueError(
                "a falling temperature is that of the cross-entropy, from first to a last above 0: "
                f"not from {self.first!r} to {self.last!r} in {self.objective!r}"
            )

    def towards_the_nearest(self, n_classes: int) -> FallingTemperature:
        """This attack: its last steps push towards the runner-up."""
        return self

    def _climb(
        self, goal: Objective, target: Tensor | None, circles: bool
    ) -> Callable[..., Tensor]:
        if goal != self.objective:
            raise ValueError(f"a falling temperature is that of the cross-entropy, not {goal!r}")
        at = super()._climb

        def fall(
            model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, steps: int, **budget: Any
        ) -> Tensor:
            for temperature in np.geomspace(self.first, self.last, steps).tolist():
                step = at(CrossEntropy(temperature), target, circles=False)
                x_adv = step(model, x, x_adv, y, steps=1, **budget)
            return x_adv

        return fall


@torch.no_grad()
def _worth(
    model: nn.Module, x_adv: Tensor, y: Tensor, objective: Objective, target: Tensor | None
) -> Tensor:
    """The rank of a restart, (N,): samples that reached the goal first, then by the objective."""
    logits = full(model(x_adv))
    reached = logits.argmax(1) != y if target is None else logits.argmax(1) == target
    return reached.float() * 2 + precise(objective(logits, y)).atan().div(torch.pi)


@dataclass(frozen=True)
class FGSM(Ascent):
    """Fast gradient sign method (Goodfellow et al. 2015): one step of length eps from the image."""

    eps: float
    norm: str = "Linf"
    objective: Objective = CrossEntropy()  # noqa: RUF009
    batch_norm: str = "eval"

    def __post_init__(self) -> None:
        self._one_step()  # which refuses what cannot be

    def _one_step(self) -> PGD:
        return PGD(
            self.eps, self.eps, 1, self.norm, self.objective, "none", batch_norm=self.batch_norm
        )

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Budget | None = None,
        target: Tensor | None = None,
        generator: Source = None,
    ) -> Tensor:
        """Adversarial images of the shape of x.

        eps: a number or a tensor (N,).
        generator: unread, as the method draws nothing.
        """
        radius = self.eps if eps is None else eps
        return self._one_step().perturb(model, x, y, eps=radius, step_size=radius, target=target)

    __call__ = checked(perturb)


@dataclass(frozen=True)
class MIFGSM(Ascent):
    """Momentum iterative FGSM (Dong et al. 2018, Algorithm 1), made for transfer attacks.

    The gradient of each sample, divided by its L1 norm, is added to `decay` times the sum so far;
    the step goes along that sum, from the image itself.

    step_size: in units of [0, 1]; None is the paper's step, eps / steps.
    """

    eps: float
    step_size: float | None = None
    steps: int = 10
    decay: float = 1.0
    norm: str = "Linf"
    objective: Objective = CrossEntropy()  # noqa: RUF009
    batch_norm: str = "eval"

    def __post_init__(self) -> None:
        one_of("norm", self.norm, NORMS)
        if self.steps < 1 or self.decay < 0:
            raise ValueError(f"steps >= 1 and decay >= 0, not {self.steps} and {self.decay}")
        one_of("batch_norm", self.batch_norm, BATCH_NORM_MODES)
        check_radius(self.eps, self.norm)
        if self.step_size is not None:
            check_radius(self.step_size, self.norm, what="step_size")

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Budget | None = None,
        target: Tensor | None = None,
        generator: Source = None,
    ) -> Tensor:
        """Adversarial images of the shape of x.

        eps: a number or a tensor (N,).
        generator: unread, as the method draws nothing.
        """
        objective = self.objective if target is None else Toward(target, self.objective)
        radius = per_sample(self.eps if eps is None else eps, x)
        step = radius / self.steps if self.step_size is None else self.step_size
        x_adv, gathered = x, torch.zeros_like(x)
        with frozen(model, self.batch_norm):
            for _ in range(self.steps):
                gradient, _, _ = forward_backward(model, x_adv, y, objective)
                unit = gradient / over_images(size(gradient, "L1").clamp_min(1e-12), x)
                gathered = self.decay * gathered + unit
                x_adv = project(
                    x_adv + step * ascent_direction(gathered, self.norm), x, radius, self.norm
                )
        return x_adv

    __call__ = checked(perturb)


def temperature_pgd(pgd: PGD, temperature: float) -> PGD:
    """Temperature-PGD (Tian et al. 2021): PGD on the cross-entropy of softmax(z / temperature)."""
    return replace(pgd, objective=CrossEntropy(temperature))


def falling_temperature(pgd: PGD, first: float, last: float) -> FallingTemperature:
    """The same attack at temperatures that fall from `first` to `last`."""
    own = {f.name: getattr(pgd, f.name) for f in fields(pgd)}
    return FallingTemperature(**own, first=first, last=last)


def cw(pgd: PGD) -> PGD:
    """CW in the L-inf form of the papers: the same attack on the margin."""
    return replace(pgd, objective=Margin())
