"""FAB, the fast adaptive boundary attack (Croce and Hein 2020), which looks for the nearest point.

PGD maximises a loss in a ball; FAB looks for the nearest adversarial point. It takes the decision
boundary for the hyperplane it is to first order at the current point, steps a little over it, mixed
with the step that the clean image itself would take to the same hyperplane, and steps back towards
the clean image wherever it got across.

Source: "Minimally distorted adversarial examples with a fast adaptive boundary attack".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crat.attacks.door import check_radius, checked
from crat.attacks.frozen import frozen
from crat.attacks.hunt import Hunt, Hunted, Run, State
from crat.attacks.hyperplane import to_hyperplane
from crat.attacks.logits import finite_logits, forward_backward
from crat.attacks.noise import PerImage, Source, source
from crat.attacks.objectives import Margin, Toward, full, other_logits, true_logit
from crat.attacks.precision import exact
from crat.attacks.threat import NORMS, budget, one_of, over_images, project, size

DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}


class Boundary(NamedTuple):
    """The tie of two logits (N, K) at a point: of class `there` and of class `here`, both (N,)."""

    gradient: Tensor  # of their difference, (N, C, H, W)
    there: Tensor
    here: Tensor
    logits: Tensor


@dataclass
class Walk(State):
    """The state of the searches of n images."""

    x: Tensor
    y: Tensor
    goal: Tensor  # the class that is aimed at, (n,)
    eps: Tensor
    at: Tensor  # the point, (n, C, H, W)
    best: Tensor  # the nearest adversarial point so far
    least: Tensor  # and its distance, (n,), inf where there is none
    seen: Tensor  # the point whose logits are known
    logits: Tensor  # those, (n, K)


@dataclass(frozen=True)
class FAB(Hunted):
    """Fast adaptive boundary attack: `FAB(eps)(model, x, y) -> x_adv`; the least norm: `radius`.

    Returns the nearest adversarial point found, projected into ball and box where it lies farther
    than eps; x where none was found.

    eps: the radius within which a point counts, also (N,) at call time; it steers the search only
        through the random starts of norm eps / 2, which all restarts but the first have.
    targets: the number of classes aimed at, a run each, by rank of the clean logits (FAB-T, one
        backward pass a step; at most K - 1). 0: the boundary that looks nearest is chosen anew in
        each step (FAB, K backward passes a step).
    alpha_max, eta, beta: the largest weight of the clean image's own step, the overshoot, the step
        back.
    x: (N, C, H, W) in [0, 1].
    y: (N,) int64.
    target: (N,): each run is towards that class, the later ones (of ranks, or restarts) from random
        starts.
    judge: the model whose float32 prediction decides (None: `model`).

    Raises ValueError on an unknown norm and on settings out of range.

    Source: Algorithm 1 of the paper with the parameters of AutoAttack's code, which has no final
    search either. A step is one forward and backward pass, and one forward pass that says which
    images got across: most points do (in L1 half), so that the next gradient is taken elsewhere,
    and one pass cannot serve for both.
    Ours: where `judge` is another model, it makes that forward pass, and its logits there, carried
    on along the gradient, say how far the boundary is. FAB works where two logits are nearly
    equal; in bfloat16 alone, which cannot tell which is larger, it finds about half as much.
    """

    eps: float
    norm: str = "Linf"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        one_of("norm", self.norm, NORMS)
        check_radius(self.eps, self.norm)
        if self.steps < 1 or self.restarts < 1 or self.targets < 0:
            raise ValueError(
                "steps >= 1, restarts >= 1 and targets >= 0, "
                f"not {self.steps}, {self.restarts} and {self.targets}"
            )
        if not (0 <= self.alpha_max <= 1 and self.eta > 0 and 0 <= self.beta <= 1):
            raise ValueError(
                "alpha_max and beta in [0, 1] and eta > 0, "
                f"not {self.alpha_max}, {self.beta} and {self.eta}"
            )

    def runs(self, n_classes: int) -> Iterator[Run]:
        """A run for each target (one for all if targets = 0) and restart."""
        for rank, restart in self._tries(n_classes):
            yield partial(self._run, rank, restart)

    def _radius(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        generator: Source = None,
        target: Tensor | None = None,
        judge: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The least norm that FAB needs: radius (N,), and x_adv (N, C, H, W) at that radius.

        0 where the model is wrong on x itself; inf, and x, where nothing was found. A float32
        prediction of the judge confirms each x_adv. All runs are on all images, so it costs more
        than asking whether eps breaks them.
        """
        judge = judge or model
        with frozen(model), frozen(judge), exact():
            hunt = Hunt(judge, x, y, target)
            left, noise = hunt.index, source(generator, x)
            images = x[left]
            labels = y[left]
            goal = None if target is None else target[left]
            eps, no_limit = budget(self.eps, images), budget(float("inf"), images)
            best, least = images, full(no_limit.flatten())
            for number, (rank, restart) in enumerate(self._tries(hunt.n_classes)):
                start = self._start(rank, restart, images, eps, noise.fork(number).take(left), goal)
                found, norm = self._search(rank, model, images, labels, start, no_limit, hunt, goal)
                nearer = (norm < least) & hunt.hit(finite_logits(judge, found))
                best = torch.where(over_images(nearer, x), found, best)
                least = torch.where(nearer, norm, least)
        return least.new_zeros(len(x)).index_copy(0, left, least), x.index_copy(0, left, best)

    radius = checked(_radius, lambda attack, x: (x.new_empty(0), x.clone()))

    def _tries(self, n_classes: int) -> Iterator[tuple[int, int]]:
        """(rank of the class to aim at, 0: the closest; restart), a pair for each run."""
        ranks = range(1, min(self.targets, n_classes - 1) + 1) if self.targets else range(1)
        return product(ranks, range(self.restarts))

    def _run(
        self,
        rank: int,
        restart: int,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: Tensor,
        noise: PerImage,
        hunt: Hunt,
        target: Tensor | None = None,
    ) -> Tensor:
        start = self._start(rank, restart, x, eps, noise, target)
        return self._search(rank, model, x, y, start, eps, hunt, target)[0]

    def _start(
        self,
        rank: int,
        restart: int,
        x: Tensor,
        eps: Tensor,
        noise: PerImage,
        target: Tensor | None,
    ) -> Tensor:
        """x in the first run towards a class, then x plus noise of norm eps / 2, in the box."""
        if not restart and (target is None or rank < 2):
            return x
        shape = x.shape[1:]
        delta = noise.uniform(*shape) * 2 - 1 if self.norm == "Linf" else noise.normal(*shape)
        unit = (delta / over_images(size(delta, self.norm), x)).to(x.dtype)
        return (x + eps / 2 * unit).clamp(0, 1)

    def _search(
        self,
        rank: int,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        start: Tensor,
        eps: Tensor,
        hunt: Hunt,
        target: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """A run's nearest adversarial point in ball and box, and its distance (n,), inf for x."""
        goal = y if target is None else target
        if rank and target is None:
            goal = other_logits(answers(hunt.judge, x), y).argsort(1, descending=True)[:, rank - 1]
        none = full(torch.full_like(eps.flatten(), float("inf")))
        w = Walk(x, y, goal, eps, start, x, none, start, answers(hunt.judge, start))
        for step in range(self.steps):
            plane = self._boundary(model, w.at, w.y, w.goal, rank, target is not None)
            if model is hunt.judge:
                w.seen, w.logits = w.at, plane.logits
            w.at = w.seen = self._step(w, plane)
            w.logits = answers(hunt.judge, w.at)
            self._note(w, hunt.hit(w.logits))
            keep = hunt.leave(step, w.least <= full(w.eps.flatten()), w.best)
            if keep is not None:
                w.take(keep)
                if not len(keep):
                    break
        inside = over_images(w.least, w.x) <= full(w.eps)
        return torch.where(inside, w.best, project(w.best, w.x, w.eps, self.norm)), w.least

    def _note(self, w: Walk, across: Tensor) -> None:
        """Records the nearest of the points that are across (n,), and steps back from there."""
        norm = size(full(w.at) - full(w.x), self.norm)
        nearer = across & (norm < w.least)
        w.best = torch.where(over_images(nearer, w.x), w.at, w.best)
        w.least = torch.where(nearer, norm, w.least)
        back = w.x + self.beta * (w.at - w.x)
        w.at = torch.where(over_images(across, w.x), back, w.at)

    def _boundary(
        self, model: nn.Module, x: Tensor, y: Tensor, goal: Tensor, rank: int, given: bool
    ) -> Boundary:
        if given:
            gradient, _, logits = forward_backward(model, x, y, Toward(goal, Margin()))
            return Boundary(gradient, goal, other_logits(logits, goal).argmax(1), logits)
        if rank:
            gradient, _, logits = forward_backward(model, x, y, partial(_difference, goal))
            return Boundary(gradient, goal, y, logits)
        return closest_boundary(model, x, y, self.norm)

    def _step(self, w: Walk, plane: Boundary) -> Tensor:
        """The points beyond the hyperplane with `plane`'s gradient, drawn towards x's own crossing.

        The distance of the plane follows from the logits at w.seen, carried on along the gradient.
        """
        slope = full(plane.gradient).flatten(1).repeat(2, 1)
        points = full(torch.cat([w.at, w.x])).flatten(1)
        ahead = true_logit(w.logits, plane.there) - true_logit(w.logits, plane.here)
        since = points - full(w.seen).flatten(1).repeat(2, 1)
        delta = to_hyperplane(points, slope, -ahead.repeat(2) - (slope * since).sum(1), self.norm)
        at, clean = size(delta, self.norm).clamp_min(1e-8).chunk(2)
        alpha = over_images((at / (at + clean)).clamp_max(self.alpha_max), w.x)
        crossed, crossed_from_x = (points + self.eta * delta).view(-1, *w.x.shape[1:]).chunk(2)
        return crossed.lerp(crossed_from_x, alpha).clamp(0, 1).to(w.x.dtype)


@torch.no_grad()
def answers(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, K), at least float32."""
    return full(model(x))


def _difference(there: Tensor, logits: Tensor, y: Tensor) -> Tensor:
    return true_logit(logits, there) - true_logit(logits, y)


def closest_boundary(model: nn.Module, x: Tensor, y: Tensor, norm: str) -> Boundary:
    """The closest boundary to first order: with the least |z_k - z_y| / |its gradient|_dual."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = full(model(x))
        gaps = (logits - true_logit(logits, y)[:, None]).unbind(1)
    there = y
    gradient = torch.zeros_like(x)
    least = torch.full_like(logits[:, 0], float("inf"))
    for k, gap in enumerate(gaps):
        gradient_k = torch.autograd.grad(gap.sum(), x, retain_graph=k + 1 < len(gaps))[0]
        steepness = size(full(gradient_k), DUAL[norm]).clamp_min(torch.finfo(gap.dtype).tiny)
        distance = torch.where(y == k, float("inf"), gap.detach().abs() / steepness)
        nearer = distance < least
        there = torch.where(nearer, k, there)
        least = torch.where(nearer, distance, least)
        gradient = torch.where(over_images(nearer, x), gradient_k, gradient)
    return Boundary(gradient.detach(), there, y, logits.detach())
