"""Projected gradient ascent and its kin: FGSM, PGD (L-inf, L2), Temperature-PGD, CW in its L-inf form.

They differ in the objective, the start and the number of steps; the loop is one. All are judged on the last iterate, as
the papers do: leaving at the first error is another attack, and records another wrong class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from crat.attacks.frozen import BATCH_NORM_MODES, frozen
from crat.attacks.objectives import CrossEntropy, Margin, Objective, full
from crat.attacks.threat import (
    NORMS,
    Budget,
    ascent_direction,
    gaussian_start,
    per_sample,
    project,
    uniform_start,
)

STARTS = ("uniform", "gaussian", "none")


def gradient_of(model: nn.Module, x: Tensor, y: Tensor, objective: Objective) -> Tensor:
    """d sum_i objective_i / dx, shape of x. One forward and one backward pass, none through parameters if frozen."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        total = objective(full(model(x)), y).sum()
    return torch.autograd.grad(total, x)[0]


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
) -> Tensor:
    """The loop: step along the ascent direction, back into the ball and the box; returns the last iterate."""
    x_adv = x_start
    for _ in range(steps):
        direction = ascent_direction(gradient_of(model, x_adv, y, objective), norm)
        x_adv = project(x_adv + step_size * direction, x, eps, norm)
    return x_adv


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent attack (Madry et al. 2018). Call it: `PGD(...)(model, x, y) -> x_adv`.

    eps, step_size: radius and step in units of [0, 1]; at call time also an (N,) tensor, one per sample
        (class-wise margins are `eps_k[y]`).
    start: "uniform" in the ball, "gaussian" (x + 0.001 N(0, 1), TRADES) or "none".
    restarts: best of several starts, each judged on its last iterate: wrong before right, then the larger objective.
    batch_norm: its mode inside the attack ("eval", "train", "as_is"), because the papers differ.
    x: (N, C, H, W) in [0, 1]; y: (N,) int64. `generator` draws the start (None: a new one with seed 0, so the start is
        the same in every call); the global random state is not touched.
    Raises ValueError on an unknown norm, start or mode, and where eps or step_size has the wrong shape.
    """

    eps: float
    step_size: float
    steps: int = 10
    norm: str = "Linf"
    objective: Objective = CrossEntropy()  # noqa: RUF009 (frozen, so it can be shared)
    start: str = "uniform"
    restarts: int = 1
    batch_norm: str = "eval"

    def __post_init__(self) -> None:
        for what, value, known in (
            ("norm", self.norm, NORMS),
            ("start", self.start, STARTS),
            ("batch_norm", self.batch_norm, BATCH_NORM_MODES),
        ):
            if value not in known:
                raise ValueError(f"{what} is one of {', '.join(known)}, not {value!r}")
        if self.steps < 0 or self.restarts < 1:
            raise ValueError(f"steps >= 0 and restarts >= 1, not {self.steps} and {self.restarts}")

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Budget | None = None,
        step_size: Budget | None = None,
        objective: Objective | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Adversarial images of the shape of x; eps, step_size and objective override the attack's own."""
        generator = generator or torch.Generator(x.device).manual_seed(0)
        radius = per_sample(self.eps if eps is None else eps, x)
        step = per_sample(self.step_size if step_size is None else step_size, x)
        arguments = (radius, step, self.steps, self.norm, objective or self.objective)
        with frozen(model, self.batch_norm):
            tries = (ascend(model, x, self._start(x, radius, generator), y, *arguments) for _ in range(self.restarts))
            best = next(tries)
            if self.restarts == 1:
                return best
            worth = _worth(model, best, y, arguments[-1])
            for x_adv in tries:
                value = _worth(model, x_adv, y, arguments[-1])
                better = (value > worth).view(-1, *[1] * (x.ndim - 1))
                best, worth = torch.where(better, x_adv, best), value.maximum(worth)
        return best

    def _start(self, x: Tensor, eps: Tensor | float, generator: torch.Generator | None) -> Tensor:
        if self.start == "uniform":
            return uniform_start(x, eps, self.norm, generator)
        if self.start == "gaussian":
            # Not clipped to the ball, as in the TRADES code; the first step projects.
            return gaussian_start(x, 0.001, generator) if self.steps else x
        return x


@torch.no_grad()
def _worth(model: nn.Module, x_adv: Tensor, y: Tensor, objective: Objective) -> Tensor:
    """Ranks restarts: every misclassified sample above every correct one, then by the objective."""
    logits = full(model(x_adv))
    return (logits.argmax(1) != y).float() * 2 + objective(logits, y).double().atan().div(torch.pi)


@dataclass(frozen=True)
class FGSM:
    """Fast gradient sign method (Goodfellow et al. 2015): one step of length eps from the image itself."""

    eps: float
    norm: str = "Linf"
    objective: Objective = CrossEntropy()  # noqa: RUF009
    batch_norm: str = "eval"

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Budget | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Adversarial images; eps as a number or (N,) tensor. `generator` is unread: the method draws nothing."""
        radius = self.eps if eps is None else eps
        one_step = PGD(self.eps, self.eps, 1, self.norm, self.objective, "none", batch_norm=self.batch_norm)
        return one_step(model, x, y, eps=radius, step_size=radius)


Attack = PGD | FGSM


def temperature_pgd(pgd: PGD, temperature: float) -> PGD:
    """Temperature-PGD (Tian et al. 2021): the same attack on the cross-entropy of softmax(z / temperature)."""
    return replace(pgd, objective=CrossEntropy(temperature))


def cw(pgd: PGD) -> PGD:
    """CW in the L-inf form of the papers: the same attack on the margin."""
    return replace(pgd, objective=Margin())
