"""Standard training: the control of every adversarial method."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.noise import Source
from crat.attacks.objectives import full
from crat.attacks.threat import Budget
from crat.defenses.base import Defense
from crat.defenses.stats import ClassStats


@dataclass
class Standard(Defense):
    """min E[CE(f(x), y)], no attack."""

    selects_on = "clean"  # robust accuracy is noise near zero here

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """The clean images themselves."""
        return x

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean cross-entropy of the clean images.

        `robust` in the statistics is the clean count here.
        """
        logits = full(model(x))
        losses = F.cross_entropy(logits, y, reduction="none")
        return losses.mean(), ClassStats.of(y, losses, logits, logits)
