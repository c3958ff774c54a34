"""MART (Wang et al. 2020, ICLR) regularises more where the network errs without an attack."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from crat.attacks.objectives import full, kl_divergence, true_logit
from crat.defenses.base import Defense, Row
from crat.defenses.losses import FLOOR, boosted_cross_entropy
from crat.defenses.stats import ClassStats


@dataclass
class MART(Defense):
    """min E[BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x))], x' from PGD on the cross-entropy.

    BCE, the boosted cross-entropy: -log p_y(x') - log(1 - max_{k != y} p_k(x')). As in the authors'
    code: eval mode while crafting, start x + 0.001 N(0, 1), gradients through the weight 1 - p_y(x)
    and both outputs of the KL, and the clean pass before the adversarial one.
    Deviation: the code's further guards (1e-12 within two logarithms) are left out, for log-softmax
    needs none.
    """

    beta: float = 6.0

    paper = "Wang et al. 2020 (ICLR)"
    code = (
        "YisenWang/MART@2d83e17b381dd2ee52223695e517bf6d5ff09c2c (mart.py, train_wideresnet.py, "
        "train_resnet.py)"
    )
    start = "gaussian"
    batch_norm = "eval"
    rows = (
        Row("beta", None, 6.0, why="5 in the code for ResNet-18"),
        Row("eps", None, "0.031"),
        Row("step_size", None, "0.007"),
        Row("steps", None, 10),
        Row("model", None, "wrn_34_10"),
        Row("epochs", None, 90, why="120 for ResNet-18"),
        Row("lr", None, 0.1, why="0.01 for ResNet-18"),
        Row(
            "weight_decay",
            None,
            7e-4,
            why="3.5e-3 for ResNet-18; one value for all methods that are compared: CFA's",
        ),
        Row(
            "drops of the rate",
            None,
            "behind 74 and 89 epochs",
            "the schedule's",
            "one schedule for all methods",
        ),
        Row("padding", None, "zero", why="CFA's crop, for all methods"),
        Row(
            "1 - max p_k and 1 - p_y",
            "as they are",
            "1e-4 and 1e-7 added",
            "as in the code",
            "finite where p is 1",
        ),
        Row(
            "log p(x') in the KL",
            "as it is",
            "log(p(x') + 1e-12)",
            "as it is",
            "log-softmax is finite by itself",
        ),
        Row(
            "best epoch chosen on",
            None,
            "none chosen; every epoch is tested",
            "validation",
            "as for all methods",
        ),
    )

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """BCE + beta (1 - p_y(x)) KL, the batch's mean; beta per class where state has one."""
        clean, adversarial = full(model(x)), full(model(x_adv))
        beta = self.of("beta", y, self.beta)
        weight = 1 - true_logit(clean.softmax(1), y) + FLOOR
        losses = boosted_cross_entropy(adversarial, y) + beta * weight * kl_divergence(
            clean, adversarial
        )
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)
