"""Hypersphere embedding (Pang et al. 2020, NeurIPS): unit features and class weights, and a margin.

The head returns z = s cos(feature, w_k) (crat.nets.models.CosineHead), so every attack sees the
trained logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.objectives import full, kl_divergence
from crat.config import ConfigError
from crat.defenses.base import Policy, Row, Task, Words, checked
from crat.defenses.stats import ClassStats
from crat.nets.models import CosineHead

MARGINS = {"pgd_at": 0.2, "trades": 0.2, "alp": 0.3}  # the code's README, as the following
SCALES = {"pgd_at": 10.0, "trades": 15.0, "alp": 20.0}
DECAYS = {"pgd_at": 5e-4, "trades": 2e-4, "alp": 2e-4}


@dataclass
class HE(Policy):
    """AT, TRADES or ALP with each cross-entropy at s (cos_k - m [k = y]).

    pgd_at: CE_m(z(x'), y).
    trades: CE_m(z(x), y) + beta KL(p(x) || p(x')).
    alp: (CE_m(z(x), y) + CE_m(z(x'), y)) / 2 + pairing |cos(x) - cos(x')|^2 / K.
    As in the authors' code: the margin is in the loss only, not in what the attack ascends
    (cross-entropy; for trades the KL) nor in the KL; the cosines are paired unscaled; eval mode
    while crafting, start x + 0.001 N(0, 1), on every base; the clean pass before the adversarial
    one.
    Deviation: the code overwrites the head's weights with unit vectors in each forward pass,
    outside the gradient; here they are normalised within it (CosineHead), so its gradient has
    no part along the weight.
    """

    base: str = "pgd_at"
    margin: float | None = None  # m; None: the code's for the base
    beta: float = 6.0  # of TRADES
    pairing: float = 0.5  # of ALP

    bases = ("pgd_at", "trades", "alp")
    paper = "Pang et al. 2020 (NeurIPS)"
    code = (
        "ShawnXYang/AT_HE@dad6a41bb170bba94f9818e7ba891163143c3e10 (CIFAR-10: he.py, losses.py, "
        "train_adv_cifar10.py, README.md)"
    )
    head = "hypersphere"
    start = "gaussian"
    batch_norm = "eval"

    def prepare(self, task: Task) -> None:
        """Checks the settings and takes the base's margin."""
        super().prepare(task)
        checked(
            "margin of he",
            self.margin,
            lambda m: m is None or 0 <= m <= 2,
            "between 0 and 2, a cosine's range",
        )
        checked("pairing of he", self.pairing, lambda w: 0 <= w < float("inf"), "at least 0")
        self.m = MARGINS[self.base] if self.margin is None else self.margin

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The base's loss with the margin, averaged over the batch.

        Raises ConfigError without a cosine head.
        """
        s = head_scale(model)
        clean = None if self.base == "pgd_at" else full(model(x))
        adversarial = full(model(x_adv))
        if clean is None:
            losses = self._cross_entropy(adversarial, y, s)
        elif self.base == "trades":
            losses = self._cross_entropy(clean, y, s)
            losses = losses + self.beta * kl_divergence(clean, adversarial)
        else:
            both = self._cross_entropy(clean, y, s) + self._cross_entropy(adversarial, y, s)
            losses = both / 2 + self.pairing * ((clean - adversarial) / s).square().mean(1)
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)

    def _cross_entropy(self, logits: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """Of the logits with s m less at the true class, (B,)."""
        true = y[:, None] == torch.arange(logits.shape[1], device=y.device)
        return F.cross_entropy(torch.where(true, logits - s * self.m, logits), y, reduction="none")

    @classmethod
    def table(cls, **chosen: Any) -> tuple[Row, ...]:
        """Margin, scale and decay depend on the base."""
        base = chosen.get("base", cls.base)
        return (
            Row("margin", None, MARGINS.get(base), Words("the code's"), "0.2; 0.3 with ALP"),
            Row(
                "scale",
                None,
                SCALES.get(base),
                SCALES["alp"] if base == "alp" else None,
                "15, the default of the code's script, unless with ALP; its README trains AT + HE "
                "with 10",
            ),
            Row("beta", None, 6.0),
            Row("pairing", None, 0.5),
            Row("margin in the attack", None, "no", "no"),
            Row(
                "weights of the head",
                "unit vectors",
                "overwritten in each pass, outside the gradient",
                "normalised in each pass, within the gradient",
                "a forward pass changes no parameter",
            ),
            Row(
                "what attacks at test are given",
                None,
                "cosines, without s",
                "s times the cosines",
                "cross-entropy of cosines alone is all but flat: its attacks are weaker than they "
                "could be",
            ),
            Row("eps", None, "0.031"),
            Row("step_size", None, "0.007"),
            Row("steps", None, 10),
            Row("model", None, "wrn_34_10"),
            Row("epochs", None, 77, why="the code stops at 77, behind the first drop of the rate"),
            Row("lr", None, 0.1),
            Row(
                "weight_decay",
                None,
                DECAYS.get(base),
                why="one value for all methods that are compared: CFA's",
            ),
            Row("padding", None, "zero", why="CFA's crop, for all methods"),
        )


def head_scale(model: nn.Module) -> Tensor:
    """s of the model's cosine head, a scalar tensor.

    Raises ConfigError where the model has none.
    """
    for module in model.modules():
        if isinstance(module, CosineHead):
            return module.scale
    raise ConfigError("he needs a network with a hypersphere head: ModelConfig(head='hypersphere')")
