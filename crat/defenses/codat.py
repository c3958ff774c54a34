"""CODAT (Zhi et al. 2025): adversarial training against the worst distribution over classes.

The inner problem is solved in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.objectives import full, kl_divergence
from crat.defenses.base import Policy, Row, Task, Words, checked
from crat.defenses.stats import ClassStats, class_means
from crat.distributed import whole


@dataclass
class CODAT(Policy):
    """min over theta of max over p of sum_k p_k L_k, p on the simplex, chi^2(p || uniform) <= rho.

    L_k: the mean robust loss of class k in the batch, CE(f(x'), y), or that of TRADES.
    p: `worst_distribution`, fixed in the gradient, which by Danskin's theorem is that of the
        maximum.
    Classes that the batch lacks have no part in p. Only a description of the method was seen, and
    no code: the closed form and its constants are derived here.
    """

    base: str = "pgd_at"
    rho: float = 0.25
    beta: float = 6.0

    bases = ("pgd_at", "trades")
    paper = "Zhi et al. 2025 (arXiv 2501.04527): its abstract and a summary"

    def prepare(self, task: Task) -> None:
        """Raises ConfigError on an unknown base or a negative rho."""
        super().prepare(task)
        checked("rho of codat", self.rho, lambda r: r >= 0, "at least 0")

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """sum_k p_k L_k of the batch.

        A sample's loss in the statistics carries its factor B p_y / n_y.
        """
        clean = full(model(x)) if self.base == "trades" else None
        adversarial = full(model(x_adv))
        losses = F.cross_entropy(adversarial if clean is None else clean, y, reduction="none")
        if clean is not None:
            losses = losses + self.beta * kl_divergence(clean, adversarial)
        n, means = class_means(whole(losses.detach()), whole(y), adversarial.shape[1])
        p = worst_distribution(means, n > 0, self.rho)
        losses = (len(whole(y)) * p / n.clamp_min(1))[y] * losses
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)

    @classmethod
    def crafting(cls, **chosen: Any) -> tuple[str, str]:
        """Start and BatchNorm's mode of the base."""
        on_trades = chosen.get("base", cls.base) == "trades"
        return ("gaussian", "eval") if on_trades else ("uniform", "train")

    @classmethod
    def table(cls, **chosen: Any) -> tuple[Row, ...]:
        """The settings; where the description leaves one open, ours."""
        return (
            Row(
                "rho",
                None,
                None,
                Words("0.25"),
                "ours: the objective is then the mean of the classes' losses plus half their "
                "standard deviation, while no p_k reaches 0",
            ),
            Row(
                "chi^2",
                None,
                None,
                "K sum_k (p_k - 1/K)^2",
                "derived; another constant rescales rho",
            ),
            Row(
                "class losses", None, None, "means of the batch", "the epoch's would be a step late"
            ),
            Row(
                "fairness elasticity coefficient",
                "compares the worst class's gain with the mean's cost",
                None,
                "left out",
                "its formula was not found; it measures, it does not train",
            ),
        )


def worst_distribution(means: Tensor, present: Tensor, rho: float) -> Tensor:
    """The p (K,) that maximises sum_k p_k L_k on the simplex with K sum_k (p_k - 1/K)^2 <= rho.

    means: L, (K,).
    present: (K,) bool; p is 0 elsewhere, and K counts the classes present.
    While nothing falls below 0, p_k = (1 + sqrt(rho) (L_k - Lbar) / sigma) / K, with the value
    Lbar + sqrt(rho) sigma. Else only the m classes of largest L have a share, p_k = 1/m + c (L_k -
    Lbar_m) with c from sum p^2 = (1 + rho) / K; the largest m that gives no negative share is the
    maximum. All m are tried at once. No host synchronisation.
    """
    order = means.masked_fill(~present, float("-inf")).argsort(descending=True)
    ranked = means[order]
    here = present[order]
    k = present.sum().to(means)
    ranked = ranked - ranked[:1]  # equals: exactly 0
    m = torch.arange(1, len(means) + 1, device=means.device, dtype=means.dtype)
    inside = (m[None, :] <= m[:, None]).to(means)  # row m - 1: the m largest
    deviation = inside * (ranked - (inside * ranked).sum(1, keepdim=True) / m[:, None])
    squares = deviation.square().sum(1)
    room = ((1 + rho) / k - 1 / m).clamp_min(0)
    c = (room / squares.clamp_min(torch.finfo(means.dtype).tiny)).sqrt()
    shares = inside * (1 / m[:, None] + c[:, None] * deviation)
    valid = (shares.amin(1) >= 0) & here  # row 1 always is
    chosen = (valid * m).argmax()
    return torch.zeros_like(means).scatter(0, order, shares.index_select(0, chosen[None])[0])
