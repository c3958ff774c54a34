"""APGD (Croce and Hein 2020; L1: 2021): projected gradient ascent that adapts its step size.

Each image climbs with momentum. At checkpoints an image whose objective rose too rarely, or not at
all, goes back to its best point and halves its step. In L1 a step moves few coordinates, and how
many is what adapts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import ceil

import torch
from torch import Tensor, nn

from crat.attacks.door import check_radius
from crat.attacks.hunt import Hunt, Hunted, Run, State
from crat.attacks.logits import forward_backward
from crat.attacks.noise import PerImage, normal, uniform
from crat.attacks.objectives import (
    DLR,
    CrossEntropy,
    Objective,
    TargetedDLR,
    Toward,
    full,
    other_logits,
)
from crat.attacks.threat import NORMS, ascent_direction, one_of, over_images, project, size

LOSSES = ("ce", "dlr")


@dataclass(frozen=True)
class APGD(Hunted):
    """AutoPGD. Call it: `APGD(8 / 255)(model, x, y) -> x_adv`.

    eps: radius in units of [0, 1]; at call time also an (N,) tensor.
    norm: "Linf", "L2" or "L1".
    loss: "ce" or "dlr" (which needs three classes; its targeted form four).
    steps: steps a run, one forward and backward pass each, and one for the start.
    restarts: runs (a target).
    targets: 0 ascends away from y. Above it, APGD-T: so many runs (at most one a class), each
        towards the next of the other classes in the order of the clean logits. With the user's
        `target` (N,) every run ascends towards that.
    rho: the share of steps that must have risen for the step size to stay.
    eot: passes of which a step sums the gradients, for a model that draws random numbers; the last
        one's objective and prediction count, as in the authors' code.
    larger_radii: L1 only: 30 % of the steps in three times the ball, 30 % in twice, the rest in the
        ball itself.
    x: (N, C, H, W) in [0, 1].
    y: (N,) int64.
    generator: draws the starts: a torch.Generator, or PerImage for starts that are each image's
        own; None: seed 0. The global random state is not touched.

    Raises ValueError on settings, shapes of eps and class counts that do not fit.

    Source: Croce and Hein 2020, Algorithm 1, and their code; for L1, Croce and Hein 2021 and their
    code.
    Differences from the code: "ce" is the log-odds form (`CrossEntropy`), a monotone transform that
    does not saturate in float32, and only rises are counted. The first step's rise is measured
    against the start, as in the paper (theirs: against 0). Of the misclassified iterates the one
    with the largest objective is returned (theirs: the last).
    """

    eps: float
    norm: str = "Linf"
    loss: str = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 0
    rho: float = 0.75
    eot: int = 1
    larger_radii: bool = False

    def __post_init__(self) -> None:
        one_of("norm", self.norm, NORMS)
        check_radius(self.eps, self.norm)
        one_of("loss", self.loss, LOSSES)
        if min(self.steps, self.restarts, self.eot) < 1 or self.targets < 0:
            raise ValueError(
                "steps, restarts and eot are at least 1 and targets at least 0, "
                f"not {self.steps}, {self.restarts}, {self.eot} and {self.targets}"
            )
        if self.larger_radii and self.norm != "L1":
            raise ValueError(f"larger_radii is for the norm L1, not {self.norm}")

    def towards_the_nearest(self, n_classes: int) -> APGD:
        """APGD with the DLR loss instead of the cross-entropy, from three classes on.

        Of two classes the nearest is the only other one.
        """
        return replace(self, loss="dlr") if self.loss == "ce" and n_classes > 2 else self

    def runs(self, n_classes: int) -> Iterator[Run]:
        """A run for each pair of a target (or none) and a restart."""
        ranks: list[int | None] = (
            [*range(min(self.targets, n_classes - 1))] if self.targets else [None]
        )
        for rank, _ in product(ranks, range(self.restarts)):
            yield partial(self._run, rank)

    def _run(
        self,
        rank: int | None,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: Tensor,
        noise: PerImage,
        hunt: Hunt,
        target: Tensor | None = None,
    ) -> Tensor:
        if target is None and rank is not None:
            with torch.no_grad():
                target = other_logits(full(model(x)), y).topk(rank + 1, 1).indices[:, rank]
        third = ceil(0.3 * self.steps) if self.larger_radii else 0
        start = random_start(x, 3 * eps if self.larger_radii else eps, self.norm, noise)
        for factor in (3, 2) if self.larger_radii else ():
            wider = self._climb(x, y, start, factor * eps, target)
            self._ascend(model, wider, third, None)
            start = wider.best
        climb = self._climb(x, y, start, eps, target)
        self._ascend(model, climb, self.steps - 2 * third, hunt)
        return climb.claim.where(over_images(climb.found, climb.x), climb.best)

    def _climb(
        self, x: Tensor, y: Tensor, start: Tensor, eps: Tensor, target: Tensor | None
    ) -> Climb:
        if self.norm != "L1":
            return Climb(x, y, start, eps, target, self.norm)
        if self.larger_radii:
            start = project(start, x, eps, "L1")
        return SparseClimb(x, y, start, eps, target, self.larger_radii)

    def _ascend(self, model: nn.Module, climb: Climb, steps: int, hunt: Hunt | None) -> None:
        """The loop; without a hunt (in a ball wider than the one hunted in) nothing is claimed."""
        checkpoints = windows(steps, self.norm)
        self._look(model, climb, hunt)
        for i in range(steps):
            climb.move(1.0 if i == 0 else 0.75)
            self._look(model, climb, hunt)
            if i in checkpoints:
                climb.check(checkpoints[i], self.rho)
            keep = None if hunt is None else hunt.leave(i, climb.found, climb.claim)
            if keep is not None:
                climb.take(keep)
                if not len(keep):
                    return

    def _look(self, model: nn.Module, climb: Climb, hunt: Hunt | None) -> None:
        """Takes gradient and objective where the climb stands.

        The sum of gradients has the direction of their mean.
        """
        objective = self._objective(climb.target)
        gradient, value, logits = forward_backward(model, climb.here, climb.y, objective)
        for _ in range(1, self.eot):
            more, value, logits = forward_backward(model, climb.here, climb.y, objective)
            gradient = gradient + more
        hit = torch.zeros_like(climb.found) if hunt is None else hunt.hit(logits)
        climb.arrive(gradient, value, hit)

    def _objective(self, target: Tensor | None) -> Objective:
        if target is None:
            return DLR() if self.loss == "dlr" else CrossEntropy()
        return TargetedDLR(target) if self.loss == "dlr" else Toward(target)


def apgd_t(
    eps: float, norm: str = "Linf", *, targets: int = 9, steps: int = 100, restarts: int = 1
) -> APGD:
    """APGD-T of AutoAttack: the targeted DLR loss towards up to nine classes in turn."""
    return APGD(eps, norm, "dlr", steps, restarts, targets)


def windows(steps: int, norm: str) -> dict[int, int]:
    """{checkpoint: steps since the checkpoint before}; a checkpoint is the step that it follows.

    Steps count from 0. The first window is 22 % of the steps, each next one 3 % shorter, down to 6
    %. In L1 each window is 4 %.
    """
    shares = (0.04, 0.04, 0.0) if norm == "L1" else (0.22, 0.06, 0.03)
    window, shortest = (max(int(share * steps), 1) for share in shares[:2])
    shorter = max(int(shares[2] * steps), 1)
    found, end = {}, window
    while end <= steps:
        found[end - 1] = window
        window = max(window - shorter, shortest)
        end += window
    return found


def random_start(x: Tensor, eps: Tensor, norm: str, noise: PerImage) -> Tensor:
    """x plus noise of norm eps (L-inf uniform, L2 normal) in the box; L1 projects normal noise."""
    if norm == "L1":
        return project(x + normal(tuple(x.shape), x, noise), x, eps, norm)
    if norm == "Linf":
        draw = uniform(tuple(x.shape), x, noise) * 2 - 1
    else:
        draw = normal(tuple(x.shape), x, noise)
    length = over_images(size(draw, norm).clamp_min(torch.finfo(x.dtype).tiny), x)
    return (x + eps * draw / length).clamp_(0, 1)


class Climb(State):
    """The state of the climbs of n images, for L-inf and L2.

    start: (n, C, H, W), in the ball of radius eps (n, 1, 1, 1) around x and in the box.
    target: (n,) or None.
    """

    def __init__(
        self, x: Tensor, y: Tensor, start: Tensor, eps: Tensor, target: Tensor | None, norm: str
    ) -> None:
        self.x = x
        self.y = y
        self.eps = eps
        self.target = target
        self.norm = norm
        self.here = self.before = self.best = self.claim = start
        self.gradient = self.best_gradient = torch.zeros_like(x)
        self.step = 2 * eps
        if norm == "Linf":
            self.low = (x - eps).clamp_min_(0)
            self.high = (x + eps).clamp_max_(1)
        lowest = torch.full((len(x),), float("-inf"), device=x.device)
        self.value = -lowest
        self.best_value = lowest
        self.claim_value = lowest
        self.checked_value = lowest
        self.rises = torch.zeros_like(lowest)
        self.found = self.halved = torch.zeros_like(lowest, dtype=torch.bool)

    def arrive(self, gradient: Tensor, value: Tensor, hit: Tensor) -> None:
        """Takes in the gradient, the objective and whether the goal is reached, (n,), at `here`."""
        better = value > self.best_value
        claimed = hit & (value > self.claim_value)
        self.rises = self.rises + (value > self.value)
        self.found = self.found | hit
        self.gradient, self.value = gradient, value
        self.best_value = value.where(better, self.best_value)
        self.claim_value = value.where(claimed, self.claim_value)
        self.claim = self.here.where(over_images(claimed, gradient), self.claim)
        self.best = self.here.where(over_images(better, gradient), self.best)
        self.best_gradient = gradient.where(over_images(better, gradient), self.best_gradient)

    def move(self, share: float) -> None:
        """One step: the gradient counts `share`, the rest is the last step's momentum."""
        ahead = torch.addcmul(self.here, self.step, ascent_direction(self.gradient, self.norm))
        ahead = self._inside(ahead).lerp_(self.here, 1 - share)
        ahead = ahead.add_(self.here - self.before, alpha=1 - share)
        self.here, self.before = self._inside(ahead), self.here

    def check(self, window: int, rho: float) -> None:
        """A checkpoint, `window` steps after the last: stuck images go back and halve their step.

        Stuck is an image that rose in at most rho of these steps (condition 1), or has the same
        step and the same best value as at the checkpoint before (condition 2).
        """
        same_best = ~self.halved & (self.best_value <= self.checked_value)
        stuck = (self.rises <= rho * window) | same_best
        self.halved = stuck
        self.checked_value = self.best_value
        self.rises = torch.zeros_like(self.rises)
        self.step = torch.where(over_images(stuck, self.step), self.step / 2, self.step)
        self._back_to_best(stuck)

    def _inside(self, point: Tensor) -> Tensor:
        if self.norm == "Linf":
            return point.clamp_(self.low, self.high)
        return project(point, self.x, self.eps, self.norm)

    def _back_to_best(self, chosen: Tensor) -> None:
        """The chosen images (n,) stand at their best point again."""
        chosen = over_images(chosen, self.x)
        self.here = self.best.where(chosen, self.here)
        self.gradient = self.best_gradient.where(chosen, self.gradient)


class SparseClimb(Climb):
    """The climb in L1: equal steps in the largest coordinates of the gradient, without momentum.

    A step moves 20 % of the coordinates at first, later 1 / 1.5 of those in which the best point
    differs from x.

    from_start: the later rule from the start on, because the start is where another climb ended and
        not noise.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        start: Tensor,
        eps: Tensor,
        target: Tensor | None,
        from_start: bool,
    ) -> None:
        super().__init__(x, y, start, eps, target, "L1")
        self.step = eps
        self.changed = self._changed() if from_start else torch.full_like(y, x[0].numel())
        # rounded up
        self.moving = (2 * self.changed + 2) // 3 if from_start else (self.changed + 4) // 5

    def move(self, share: float) -> None:
        """One step along the sign of the largest coordinates; `share` is for the other norms."""
        sizes = self.gradient.flatten(1).abs()
        last = self.moving[:, None].clamp_min(1) - 1
        smallest = sizes.sort(1, descending=True).values.gather(1, last)
        direction = self.gradient.sign() * (sizes >= smallest).view_as(self.gradient)
        direction = direction / over_images(size(direction, "L1").clamp_min(1), direction)
        self.here = project(torch.addcmul(self.here, self.step, direction), self.x, self.eps, "L1")

    def check(self, window: int, rho: float) -> None:
        """A checkpoint: where the best point got sparser by 5 %, back to it at full step.

        The other images' step shrinks.
        """
        changed = self._changed()
        sparser = 20 * changed < 19 * self.changed
        self.changed, self.moving = changed, (2 * changed + 2) // 3
        shrunk = (self.step / 1.5).maximum(self.eps / 10)
        self.step = torch.where(over_images(sparser, shrunk), self.eps, shrunk)
        self._back_to_best(sparser)

    def _changed(self) -> Tensor:
        """In how many coordinates the best point differs from x, (n,) int64."""
        return (self.best != self.x).flatten(1).sum(1)
