"""TRADES (Zhang et al. 2019): clean cross-entropy plus beta times the divergence of the output under attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks import PGD, KLFrom, frozen
from crat.attacks.objectives import full, kl_divergence
from crat.defenses.base import ClassStats, Stateless


@dataclass
class TRADES(Stateless):
    """min E[CE(f(x), y) + beta max_{|x' - x| <= eps} KL(p(x) || p(x'))].

    As in the authors' code: eval mode while crafting, start x + 0.001 N(0, 1), gradients through both outputs of the
    KL, and the clean pass before the adversarial one (the order matters to BatchNorm's running statistics).
    Deviation: inside the attack p(x) is computed once, not once a step; it is the same number, for eval mode is fixed.
    """

    attack: PGD
    beta: float = 6.0
    revision = 1

    def craft(
        self, model: nn.Module, x: Tensor, y: Tensor, *, scale: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """PGD on KL(p(x) || p(x'))."""
        a = self.attack
        with frozen(model, a.batch_norm), torch.no_grad():
            target = KLFrom(full(model(x)))
        return a(model, x, y, eps=a.eps * scale, step_size=a.step_size * scale, objective=target, generator=generator)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, ClassStats]:
        """CE + beta KL, both averaged over the batch."""
        clean = full(model(x))
        adversarial = full(model(x_adv))
        losses = F.cross_entropy(clean, y, reduction="none")
        losses = losses + self.beta * kl_divergence(clean, adversarial)
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)
