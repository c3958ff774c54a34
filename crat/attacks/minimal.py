"""Attacks that look for the nearest adversarial image, and the smallest radius of any attack.

DeepFool and Carlini and Wagner's L2 attack end beside the decision boundary, where rounding
decides: they search in float32 proper, on the model itself whatever `search` a call asks for.
`minimal_radius` makes every attack with a per-sample eps into one of this kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor, nn

from crat.attacks.door import Attack, admitted, as_attack, checked
from crat.attacks.frozen import frozen
from crat.attacks.hunt import Hunt, State
from crat.attacks.logits import finite_logits
from crat.attacks.noise import PerImage, Source, source
from crat.attacks.objectives import Margin, full, other_logits, true_logit
from crat.attacks.precision import exact
from crat.attacks.threat import (
    Budget,
    ascent_direction,
    one_of,
    over_images,
    per_sample,
    project,
    size,
)

OBJECTIVES = ("margin", "own")
# the gradient's norm by which a distance in this norm is gap / norm
DUAL = {"L2": "L2", "Linf": "L1"}


@dataclass
class Crossing(State):
    """DeepFool's state for n images."""

    x: Tensor
    y: Tensor
    rivals: Tensor  # candidate classes, (n, R)
    r: Tensor  # the sum of the steps, (n, C, H, W)
    x_adv: Tensor


@dataclass(frozen=True)
class DeepFool(Attack):
    """DeepFool (Moosavi-Dezfooli et al. 2016, Algorithm 2; L-inf: their section 3.3), untargeted.

    In each step the boundary to every candidate class is taken as the plane of the first-order
    expansion, and the image moves onto the nearest of them. The steps add up to r, and the image
    tried is x + (1 + overshoot) r.

    candidates: the number of classes with the largest clean logits that count, the true one
        included.

    Raises ValueError on an unknown norm, below one step or two candidates, and on NaN logits.

    Defaults, and the 1e-4 added to each distance, are those of the authors' code.
    Ours: the box [0, 1] (foolbox's too), a step never longer than the box is wide, and the start is
    y's region, so a wrong image is returned as it is.
    """

    norm: str = "L2"
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10

    def __post_init__(self) -> None:
        one_of("norm", self.norm, tuple(DUAL))
        if self.steps < 1 or self.candidates < 2 or self.overshoot < 0:
            raise ValueError(
                "steps >= 1, candidates >= 2 and overshoot >= 0, "
                f"not {self.steps}, {self.candidates} and {self.overshoot}"
            )

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Budget | None = None,
        generator: Source = None,
    ) -> Tensor:
        """x_adv (N, C, H, W); where no step crosses, the last point.

        x: (N, C, H, W) in [0, 1].
        y: (N,).
        eps: a number or (N,), the ball into which the result is projected (it may then be
            adversarial no more).
        generator: unread, as the method draws nothing.
        """
        with frozen(model), exact(), torch.autocast(x.device.type, enabled=False):
            hunt = Hunt(model, x, y, every=1)
            self._cross(model, x[hunt.index], y[hunt.index], hunt)
        return hunt.x_adv if eps is None else project(hunt.x_adv, x, per_sample(eps, x), self.norm)

    __call__ = checked(perturb, may_copy=False)

    def _cross(self, model: nn.Module, x: Tensor, y: Tensor, hunt: Hunt) -> None:
        if not len(hunt):
            return
        others = other_logits(finite_logits(model, x), y)
        rivals = others.topk(min(self.candidates, hunt.n_classes) - 1).indices
        c = Crossing(x, y, rivals, torch.zeros_like(full(x)), x)
        for step in range(self.steps):
            c.r = c.r + self._to_nearest_plane(model, c.x_adv, c.y, c.rivals)
            c.x_adv = (c.x + (1 + self.overshoot) * c.r).clamp(0, 1).to(x.dtype)
            # all are claimed, so the verdict is the step's look at where it led
            keep = hunt.leave(step, torch.ones_like(c.y, dtype=torch.bool), c.x_adv)
            if keep is not None:
                c.take(keep)
            if not len(hunt):
                return
        hunt.x_adv[hunt.index] = c.x_adv

    def _to_nearest_plane(self, model: nn.Module, x: Tensor, y: Tensor, rivals: Tensor) -> Tensor:
        """The step (N, C, H, W) onto the nearest plane z_k = z_y, k among the rivals (N, R)."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = full(model(x))
            gaps = logits.gather(1, rivals) - true_logit(logits, y)[:, None]
        slopes = [
            full(torch.autograd.grad(gap.sum(), x, retain_graph=True)[0]) for gap in gaps.unbind(1)
        ]
        steepness = torch.stack([size(slope, DUAL[self.norm]) for slope in slopes], 1)
        across = size(torch.ones_like(slopes[0]), self.norm)  # no distance in the box is longer
        distance, nearest = (gaps.detach().abs() / steepness.clamp_min(1e-12)).min(1)
        slope = torch.stack(slopes)[nearest, torch.arange(len(x), device=x.device)]
        way = (distance + 1e-4).minimum(across)
        return over_images(way, x) * ascent_direction(slope, self.norm)


class Descent(State):
    """Adam's state for n images, each with its constant; `at` (n,): their places in the batch."""

    def __init__(self, x: Tensor, label: Tensor, const: Tensor) -> None:
        self.x, self.label = x, label
        self.const = const
        # the box is open: tanh reaches neither 0 nor 1
        self.w = torch.atanh((2 * full(x) - 1) * 0.999999)
        self.first = torch.zeros_like(self.w)  # Adam's moments
        self.second = torch.zeros_like(self.w)
        self.lowest = torch.full_like(const, inf)  # loss so far, (n,)
        self.previous = self.lowest  # at the last look
        self.at = torch.arange(len(x), device=x.device)

    def step(self, gradient: Tensor, lr: float, number: int) -> None:
        """Adam's step (Kingma and Ba 2015), the number-th from 1."""
        self.first = self.first.lerp(gradient, 0.1)
        self.second = self.second.lerp(gradient.square(), 0.001)
        scale = lr / (1 - 0.9**number)
        self.w = self.w - scale * self.first / ((self.second / (1 - 0.999**number)).sqrt() + 1e-8)


@dataclass(frozen=True)
class CWL2(Attack):
    """Carlini and Wagner's L2 attack (2017, section V-A, objective f_6), minimised by Adam.

    Minimised over w is |x' - x|^2 + c max(confidence - gap, 0) with x' = (tanh(w) + 1) / 2, where
    gap is the margin of the best wrong class (targeted: of the target). c is searched for each
    image: times 10 until the attack succeeds, then by bisection. Returned is the nearest x' with
    gap > confidence of all those passed.

    steps: of Adam, per constant.
    search_steps: constants tried.
    abort_early: look ten times per constant, and stop where the loss has not fallen by 0.01 %.

    Raises ValueError where a setting is out of range, and on NaN logits.

    Defaults are those of foolbox's L2CarliniWagnerAttack and of the authors' code (9 constants from
    0.001, lr 0.01), but 1,000 steps in the place of 10,000: a tenth of the time.
    Ours: images stop one by one, so that the batch decides nothing, and by the lowest loss so far,
    which Adam's swings do not hide; the last constant is never repeated at its upper bound. Few
    steps are not enough for black and white pixels: at the walls of the box tanh is flat.
    """

    norm: ClassVar[str] = "L2"  # type: ignore[misc]

    confidence: float = 0.0
    steps: int = 1000
    search_steps: int = 9
    lr: float = 0.01
    initial_const: float = 1e-3
    abort_early: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.search_steps < 1 or self.confidence < 0:
            raise ValueError(
                "steps >= 1, search_steps >= 1 and confidence >= 0, "
                f"not {self.steps}, {self.search_steps} and {self.confidence}"
            )
        if not (self.lr > 0 and self.initial_const > 0):
            raise ValueError(
                f"lr and initial_const must be above 0, not {self.lr} and {self.initial_const}"
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
        """x_adv (N, C, H, W); x itself where it is adversarial already, or nothing is found.

        x: (N, C, H, W) in [0, 1].
        y: (N,).
        target: (N,), the classes to end in.
        eps: a number or (N,), the L2 ball into which the result is projected (it may then be
            adversarial no more).
        generator: unread, as the method draws nothing.
        """
        label, sign = (y, 1) if target is None else (target, -1)
        x_adv = x.clone()
        with frozen(model), exact(), torch.autocast(x.device.type, enabled=False):
            gap = sign * Margin()(finite_logits(model, x), label)
            left = (gap <= self.confidence).nonzero().flatten()
            x_adv[left] = self._search(model, x[left], label[left], sign)
        return x_adv if eps is None else project(x_adv, x, per_sample(eps, x), "L2")

    __call__ = checked(perturb, may_copy=False)

    def _search(self, model: nn.Module, x: Tensor, label: Tensor, sign: int) -> Tensor:
        """The nearest adversarial images over all constants."""
        best = x
        const = torch.full((len(x),), self.initial_const, device=x.device, dtype=full(x).dtype)
        low = torch.zeros_like(const)
        high = torch.full_like(const, inf)
        nearest = torch.full_like(const, inf)
        for _ in range(self.search_steps if len(x) else 0):
            x_adv, distance = self._minimise(model, x, label, sign, const)
            best = torch.where(over_images(distance < nearest, x), x_adv, best)
            nearest, found = nearest.minimum(distance), distance.isfinite()
            low = torch.where(found, low, const)
            high = torch.where(found, const, high)
            const = torch.where(high.isinf(), const * 10, (low + high) / 2)
        return best

    def _minimise(
        self, model: nn.Module, x: Tensor, label: Tensor, sign: int, const: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Adam from x with one constant per image: the nearest x' and |x' - x|^2, inf if none."""
        best, nearest = x.clone(), torch.full_like(const, inf)
        d = Descent(x, label, const)
        for step in range(self.steps):
            x_adv, squared, gap, loss, gradient = self._look(model, d, sign)
            better = (gap > self.confidence) & (squared < nearest[d.at])
            best[d.at] = torch.where(over_images(better, x), x_adv, best[d.at])
            nearest[d.at] = torch.where(better, squared, nearest[d.at])
            d.step(gradient, self.lr, step + 1)
            d.lowest = d.lowest.minimum(loss)
            # ten times a constant, a look at the device
            if self.abort_early and step % -(-self.steps // 10) == 0:
                keep = (d.lowest <= 0.9999 * d.previous).nonzero().flatten()
                if not len(keep):
                    break
                d.take(keep)
                d.previous = d.lowest
        return best, nearest

    def _look(self, model: nn.Module, d: Descent, sign: int) -> tuple[Tensor, ...]:
        """At d.w: the image, its squared distance, gap and loss, (n,), and the gradient in w."""
        w = d.w.detach().requires_grad_()
        with torch.enable_grad():
            x_adv = ((w.tanh() + 1) / 2).to(d.x.dtype)
            squared = full(x_adv - d.x).square().flatten(1).sum(1)
            gap = sign * Margin()(full(model(x_adv)), d.label)
            loss = squared + d.const * (self.confidence - gap).clamp_min(0)
        gradient = torch.autograd.grad(loss.sum(), w)[0]
        return x_adv.detach(), squared.detach(), gap.detach(), loss.detach(), gradient


def minimal_radius(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    largest: Budget,
    rounds: int = 10,
    objective: str = "margin",
    generator: Source = None,
    judge: nn.Module | None = None,
) -> Tensor:
    """The smallest eps at which `attack` succeeded, (N,): 0 where the clean image is wrong.

    Bisection for each image between 0 and `largest` (a number or (N,)), to largest / 2^rounds: inf
    where the attack fails at `largest`; any attack with a per-sample eps. PGD's step has always the
    same ratio to eps; APGD, FAB, Square and MI-FGSM without a step_size scale by themselves. An
    attack may fail at a radius above one where it succeeded: the result is an upper bound of the
    true radius, as every attack gives. All N images are one batch.

    objective: "margin", in the place of a cross-entropy that the attack ascends by default (APGD:
        DLR, of three classes and more); "own": whatever the attack ascends. The cross-entropy
        climbs towards all wrong classes at once, and a radius is the distance to the nearest: on
        linear classifiers it is found 27 % (K = 100) to 32 % (K = 10) too large by the
        cross-entropy, .5 % by the margin, as by FAB.
    judge: the model whose float32 prediction decides (None: `model`).

    Raises AttackError (crat.attacks.door), and ValueError for a step_size that cannot follow eps.
    """
    one_of("objective", objective, OBJECTIVES)
    attack = as_attack(attack)
    x, y, _ = admitted(attack, model, x, y, {"eps": largest})
    if not len(x):
        return full(x).new_empty(0)
    judge, noise = judge or model, source(generator, x)
    high = torch.as_tensor(largest, device=x.device, dtype=full(x).dtype).expand(len(x)).clone()
    clean = _answers(judge, x)
    if objective == "margin":
        attack = attack.towards_the_nearest(clean.shape[1])
    attack.within(high)  # raises before anything is attacked

    def broken(at: Tensor, eps: Tensor, streams: PerImage) -> Tensor:
        x_adv = attack(model, x[at], y[at], generator=streams.take(at), **attack.within(eps))
        return _answers(judge, x_adv).argmax(1) != y[at]

    clean_wrong = clean.argmax(1) != y
    left = (~clean_wrong).nonzero().flatten()
    reached = broken(left, high[left], noise.fork(0)) if len(left) else clean_wrong[left]
    radius = torch.where(clean_wrong, 0, torch.full_like(high, inf))
    left = left[reached]
    low, high = torch.zeros_like(high[left]), high[left]
    for number in range(1, rounds + 1 if len(left) else 1):
        middle = (low + high) / 2
        hit = broken(left, middle, noise.fork(number))
        low = torch.where(hit, low, middle)
        high = torch.where(hit, middle, high)
    radius[left] = high
    return radius


def _answers(judge: nn.Module, x: Tensor) -> Tensor:
    with frozen(judge):
        return finite_logits(judge, x)
