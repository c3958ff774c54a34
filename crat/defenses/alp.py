"""Adversarial logit pairing (Kannan et al. 2018) draws clean and attacked logits together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.objectives import full
from crat.defenses.base import Defense, Row, Task, checked
from crat.defenses.stats import ClassStats


@dataclass
class ALP(Defense):
    """min E[(CE(f(x), y) + CE(f(x'), y)) / 2 + pairing |z(x) - z(x')|^2 / K], x' from PGD on CE.

    As in AT_HE's code, which carries ALP to CIFAR-10: eval mode while crafting, start x + 0.001
    N(0, 1), the clean pass before the adversarial one, gradients through both logits, and the
    square averaged over the K classes.
    Deviation from the paper's own code: no targeted attack (there the target is the least likely
    class).
    """

    pairing: float = 0.5  # the paper's lambda
    # both halves in one pass, so that BatchNorm normalises by both, as in the paper's own code
    joint: bool = False

    paper = "Kannan et al. 2018 (arXiv 1803.06373)"
    code = (
        "ShawnXYang/AT_HE@dad6a41bb170bba94f9818e7ba891163143c3e10 (losses.py); the paper's own, "
        "for ImageNet: tensorflow/models@245f66dd6304869c082840dedce2f45c6af4e78f "
        "(research/adversarial_logit_pairing/train.py)"
    )
    start = "gaussian"
    batch_norm = "eval"
    rows = (
        Row(
            "pairing",
            None,
            1.0,
            0.5,
            "1 is the default of AT_HE's script; its README has 0.5 for ALP + HE, and the command "
            "of the paper's own code 0.5, too",
        ),
        Row(
            "joint",
            None,
            False,
            why="AT_HE passes the halves one by one; in the paper's own code they are one batch",
        ),
        Row(
            "attack",
            None,
            "untargeted",
            "untargeted",
            "in the paper's own code toward the least likely class",
        ),
        Row("eps", None, "0.031"),
        Row("step_size", None, "0.007"),
        Row("steps", None, 10),
        Row("model", None, "wrn_34_10"),
        Row("epochs", None, 77, why="the code stops at 77, behind the first drop of the rate"),
        Row("lr", None, 0.1),
        Row("weight_decay", None, 2e-4, why="one value for all methods that are compared: CFA's"),
        Row("padding", None, "zero", why="CFA's crop, for all methods"),
    )

    def prepare(self, task: Task) -> None:
        """Raises ConfigError on a negative or infinite weight."""
        checked("pairing of alp", self.pairing, lambda w: 0 <= w < float("inf"), "at least 0")

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Both cross-entropies, halved, and the pairing, averaged over the batch."""
        if self.joint:
            clean, adversarial = full(model(torch.cat([x, x_adv]))).chunk(2)
        else:
            clean, adversarial = full(model(x)), full(model(x_adv))
        both = F.cross_entropy(clean, y, reduction="none") + F.cross_entropy(
            adversarial, y, reduction="none"
        )
        losses = both / 2 + self.pairing * (clean - adversarial).square().mean(1)
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)
