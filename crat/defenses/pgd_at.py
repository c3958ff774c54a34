"""Adversarial training with PGD (Madry et al. 2018): "AT" in the papers' tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.objectives import full
from crat.defenses.base import Defense, Row
from crat.defenses.stats import ClassStats


@dataclass
class PGDAT(Defense):
    """min E[max_{|x' - x| <= eps} CE(f(x'), y)].

    CFA's released code crafts with BatchNorm in train mode and lets each attack step move the
    running statistics; here they are left alone by the attack and move with the one training pass
    on x'.
    """

    paper = "Madry et al. 2018 (ICLR), in the setting of Wei et al. 2023 (CFA), section 5"
    code = "PKU-ML/CFA@071f3334a59d144cedbe65b18019c9757bece6f2 (attack.py, pgd_loss)"
    rows = (
        Row("eps", "8/255", "8/255"),
        Row("step_size", None, "2/255"),
        Row("steps", None, 10),
        Row("epochs", 200, 200),
        Row("lr", 0.1, 0.1),
        Row("schedule", "piecewise", "piecewise"),
        Row("weight_decay", 5e-4, 5e-4),
        Row("batch_size", None, 128),
        Row(
            "BatchNorm while crafting",
            None,
            "train, and each attack step moves the running statistics",
            "train, the running statistics left alone",
            'the attack leaves the model as it found it; batch_norm="moving" is the code\'s habit',
        ),
        Row(
            "cross-entropy that is ascended",
            None,
            "as it is",
            'its log-odds (as it is under "moving")',
            "in float32 its gradient loses the true class's part once p_y rounds to 1. In train "
            "mode the samples of a batch meet in each other's gradients, which the two forms weigh "
            "differently",
        ),
    )

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean cross-entropy of the adversarial images; no clean pass, so no clean count."""
        logits = full(model(x_adv))
        losses = F.cross_entropy(logits, y, reduction="none")
        return losses.mean(), ClassStats.of(y, losses, logits)
