"""TRADES (Zhang et al. 2019): clean cross-entropy plus beta times the divergence under attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.objectives import Objective, full, kl_divergence
from crat.defenses.base import Defense, Row, Task, checked, kl_from_clean
from crat.defenses.stats import ClassStats

# crat's, TRADES', AWP's code
PASSES = ("clean adversarial", "clean adversarial clean", "adversarial clean clean")


@dataclass
class TRADES(Defense):
    """min E[CE(f(x), y) + beta max_{|x' - x| <= eps} KL(p(x) || p(x'))].

    As in the authors' code: eval mode while crafting, start x + 0.001 N(0, 1), gradients through
    both outputs of the KL, and the clean pass before the adversarial one.
    Deviations: inside the attack p(x) is computed once, not once a step; it is the same number, for
    eval mode is fixed. The code passes the clean images once more for the KL, which moves nothing
    but BatchNorm's running statistics; `passes` names the passes in their order.
    """

    beta: float = 6.0
    normalised: bool = False  # divides by 1 + beta, as CFA does (its eq. 8)
    passes: str = PASSES[0]

    paper = "Zhang et al. 2019 (ICML)"
    code = "yaodongyu/TRADES@6e8e11b7c281371c2f027ffadfbaea80361f09de (trades.py)"
    start = "gaussian"
    batch_norm = "eval"
    rows = (
        Row("beta", None, 6.0),
        Row(
            "normalised",
            None,
            False,
            why="CFA divides by 1 + beta, in its TRADES, too: a smaller rate in effect",
        ),
        Row(
            "passes",
            None,
            "clean adversarial clean",
            "clean adversarial",
            "the third repeats the first: BatchNorm's running statistics lean to clean images, and "
            "a step takes longer",
        ),
        Row("eps", None, "0.031"),
        Row("step_size", None, "0.007"),
        Row("steps", None, 10),
        Row("model", None, "wrn_34_10"),
        Row("epochs", None, 76, why="the code stops at 76, behind the first drop of the rate"),
        Row("lr", None, 0.1),
        Row("weight_decay", None, 2e-4, why="one value for all methods that are compared: CFA's"),
        Row("padding", None, "zero", why="CFA's crop, for all methods"),
        Row(
            "clean logits inside the attack",
            None,
            "once a step",
            "once",
            "the same number in eval mode",
        ),
    )

    def prepare(self, task: Task) -> None:
        """Raises ConfigError on other passes than those of PASSES."""
        checked(
            "passes of trades",
            self.passes,
            lambda p: p in PASSES,
            f"one of {', '.join(map(repr, PASSES))}",
        )

    def objective(self, model: nn.Module, x: Tensor) -> Objective:
        """KL(p(x) || p(x')) from the clean logits, with BatchNorm in the attack's mode."""
        return kl_from_clean(model, x, self.attack.batch_norm)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """CE + beta KL, both averaged over the batch; beta per class where state has one."""
        clean, adversarial = self._outputs(model, x, x_adv)
        beta = self.of("beta", y, self.beta)
        losses = F.cross_entropy(clean, y, reduction="none") + beta * kl_divergence(
            clean, adversarial
        )
        losses = losses / (1 + beta) if self.normalised else losses
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)

    def _outputs(self, model: nn.Module, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """Clean and adversarial logits.

        A repeated pass is not differentiated again, for its output is the same.
        """
        logits: dict[str, Tensor] = {}
        for which in self.passes.split():
            images = x if which == "clean" else x_adv
            if which not in logits:
                logits[which] = full(model(images))
            else:
                with torch.no_grad():
                    model(images)
        return logits["clean"], logits["adversarial"]
