"""A short attack that breaks what breaks easily, and gives up on what looks safe.

A battery spends some 7,800 forward passes on an image that survives. An image that breaks easily
needs three, and the few in between are known by the margin that a few steps leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import cos, pi

import torch
from torch import Tensor, nn

from crat.attacks.door import check_radius
from crat.attacks.hunt import Hunt, Hunted, Run, State
from crat.attacks.logits import forward_backward
from crat.attacks.noise import PerImage
from crat.attacks.objectives import Margin, Objective, Toward, full, other_logits, true_logit
from crat.attacks.threat import NORMS, ascent_direction, one_of, over_images, project

SPRINT_ENDS = 0.1  # the last step of the sprint, in radii; the first is 1
PURSUIT_ENDS = 0.02


@dataclass(frozen=True)
class Hunter(Hunted):
    """Two climbs on the margin with shrinking steps: `Hunter(eps)(model, x, y) -> x_adv`.

    The sprint ascends the margin from the image itself. Whoever it leaves with less than `near` of
    the clean margin is pursued: towards the other classes in turn, in the order of the logits at
    the best point of the sprint, from the image itself again. In the other images no target is
    tried, so a survivor that is far from breaking costs the sprint only.

    eps: radius in units of [0, 1]; at call time also an (N,) tensor.
    norm: "Linf" or "L2"; in L1, where such a step moves one pixel, nothing is tried.
    sprint: steps of the sprint, one forward and backward pass each, and a forward pass at the end.
    steps: the same of a pursuit towards one class.
    targets: classes pursued, at most (K - 1 where a model has fewer).
    near: the share of the clean margin, in [0, 1], above which an image is given up; 1 gives up
        none but those whose margin did not fall.
    x: (N, C, H, W) in [0, 1].
    y: (N,) int64.
    target: (N,), the class to end in: the only one pursued, on its own margin.
    generator: unread, as nothing is drawn.

    Raises ValueError on settings out of range.

    Source: ours, from measurements (benchmarks/hunter.md). Steps that fall from the radius along a
    cosine are those of A3 (Liu et al. 2022), targets ranked at an attacked point those of the
    constraint relaxation attack (AAAI 2025), which also drops images by their margin.
    """

    eps: float
    norm: str = "Linf"
    sprint: int = 8
    steps: int = 25
    targets: int = 5
    near: float = 0.5

    def __post_init__(self) -> None:
        one_of("norm", self.norm, NORMS)
        check_radius(self.eps, self.norm)
        if min(self.sprint, self.steps) < 1 or self.targets < 0 or not 0 <= self.near <= 1:
            raise ValueError(
                "sprint and steps are at least 1, targets at least 0 and near in [0, 1], "
                f"not {self.sprint}, {self.steps}, {self.targets} and {self.near}"
            )

    @property
    def passes(self) -> int:
        """Of an image that is pursued to the end."""
        return self.sprint + self.steps * self.targets

    def runs(self, n_classes: int) -> Iterator[Run]:
        """The sprint of all images, and the pursuit of those that it nearly broke."""
        if self.norm == "L1":
            return
        yield self._sprint
        if self.targets:
            yield partial(self._pursue, min(self.targets, n_classes - 1))

    def _sprint(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: Tensor,
        noise: PerImage,
        hunt: Hunt,
        target: Tensor | None = None,
    ) -> Tensor:
        climb = Climb(x, y, eps, target)
        self._ascend(model, climb, self.sprint, SPRINT_ENDS, hunt)
        return climb.best

    def _pursue(
        self,
        most: int,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: Tensor,
        noise: PerImage,
        hunt: Hunt,
        target: Tensor | None = None,
    ) -> Tensor:
        goal = goal_of(target)
        with torch.no_grad():
            logits = full(model(hunt.x_adv[hunt.index]))
        value = goal(logits, y)
        near = (value > self.near * goal(hunt.logits[hunt.index], y)).nonzero().flatten()
        ranked = other_logits(logits, y).argsort(1, descending=True)[near]
        value = value[near]
        with hunt.only(near):
            chased = hunt.index
            for rank in range(1 if target is not None else most):
                left = (~hunt.broken[chased]).nonzero().flatten()
                if not len(left):
                    break
                at = near[left]
                towards = ranked[left, rank] if target is None else None
                climb = Climb(
                    x[at], y[at], eps[at], None if target is None else target[at], towards
                )
                climb.best = hunt.x_adv[hunt.index]
                climb.value = value[left]
                climb.place = left
                self._ascend(model, climb, self.steps, PURSUIT_ENDS, hunt)
                value = value.index_copy(0, climb.place, climb.value)
                hunt.settle(climb.best)
        return hunt.x_adv[hunt.index]

    def _ascend(self, model: nn.Module, climb: Climb, steps: int, ends: float, hunt: Hunt) -> None:
        """The loop: looks, lets broken images leave, and takes a step; at the end a last look."""
        for i in range(steps):
            gradient, _, logits = forward_backward(model, climb.here, climb.y, climb.objective)
            climb.look(logits, hunt)
            share = ends + (1 - ends) * (1 + cos(pi * i / max(steps - 1, 1))) / 2
            climb.move(share, gradient, self.norm)
            keep = hunt.leave(i, climb.found, climb.best)
            if keep is not None:
                climb.take(keep)
                if not len(keep):
                    return
        with torch.no_grad():
            climb.look(full(model(climb.here)), hunt)


def goal_of(target: Tensor | None) -> Objective:
    """What is above 0 where an image is broken: the margin; with target (N,), the target's lead."""
    return Margin() if target is None else Toward(target, Margin())


class Climb(State):
    """The state of the climbs of n images.

    x: (n, C, H, W), where each begins.
    eps: (n, 1, 1, 1).
    target: (n,), the class to end in, or None.
    towards: (n,), the class whose lead over y is ascended; None: the goal itself is.
    best, value: the point with the largest goal so far, and that goal (n,).
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        eps: Tensor,
        target: Tensor | None,
        towards: Tensor | None = None,
    ) -> None:
        self.x = self.here = self.best = x
        self.y = y
        self.eps = eps
        self.target = target
        self.towards = towards
        self.value = full(torch.full_like(eps.flatten(), float("-inf")))
        self.found = torch.zeros_like(y, dtype=torch.bool)
        self.place = torch.arange(len(x), device=x.device)  # among the images of the run

    def objective(self, logits: Tensor, y: Tensor) -> Tensor:
        """What is ascended: (n, K), (n,) -> (n,)."""
        if self.towards is None:
            return goal_of(self.target)(logits, y)
        return true_logit(logits, self.towards) - true_logit(logits, y)

    def look(self, logits: Tensor, hunt: Hunt) -> None:
        """Takes in the logits (n, K) of the point where the climb stands."""
        value = goal_of(self.target)(logits, self.y)
        better = value > self.value
        self.value = value.where(better, self.value)
        self.best = self.here.where(over_images(better, self.x), self.best)
        self.found = self.found | hunt.hit(logits)

    def move(self, share: float, gradient: Tensor, norm: str) -> None:
        """A step of so many radii along the gradient (n, C, H, W), back into ball and box."""
        ahead = self.here + share * self.eps * ascent_direction(gradient, norm)
        self.here = project(ahead, self.x, self.eps, norm)
