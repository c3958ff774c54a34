"""Adversarial training with PGD (Madry et al. 2018): "AT" in the papers' tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks import PGD
from crat.attacks.objectives import full
from crat.defenses.base import ClassStats, Stateless


@dataclass
class PGDAT(Stateless):
    """min E[max_{|x' - x| <= eps} CE(f(x'), y)].

    CFA's released code crafts with BatchNorm in train mode and lets each attack step move the running statistics;
    here they are left alone by the attack and move with the one training pass on x'.
    """

    attack: PGD
    revision = 1

    def craft(
        self, model: nn.Module, x: Tensor, y: Tensor, *, scale: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """PGD on the cross-entropy."""
        a = self.attack
        return a(model, x, y, eps=a.eps * scale, step_size=a.step_size * scale, generator=generator)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, ClassStats]:
        """Mean cross-entropy of the adversarial images; no clean pass, so no clean count."""
        logits = full(model(x_adv))
        losses = F.cross_entropy(logits, y, reduction="none")
        return losses.mean(), ClassStats.of(y, losses, logits)
