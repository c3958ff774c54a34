"""FAAL (Zhang et al. 2024, CVPR): each batch trains on the worst distribution in a KL ball.

The distribution is over classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.objectives import full, kl_divergence, other_logits, true_logit
from crat.defenses.base import Policy, Row, Task, Words, checked
from crat.defenses.losses import FLOOR, boosted_cross_entropy
from crat.defenses.stats import ClassStats, class_means
from crat.distributed import whole


@dataclass
class FAAL(Policy):
    """mean[K p_y l(x, x', y)], p = argmax of sum_i p_{y_i} m_{y_i} over the batch, KL(u || p) <= r.

    u: uniform over the K classes.
    r: `radius`.
    m_k: the mean over class k's samples of max_{j != y} p_j(x') - p_y(x').
    l: CE(f(x'), y), TRADES' or MART's loss.
    p is fixed in the gradient. For `warmup` epochs p = u, which is the base.
    As in the authors' code: eval mode while crafting, on the cross-entropy from a uniform start or
    (trades, mart) on the KL from x + 0.001 N(0, 1); the adversarial pass before the clean one; a
    class counts as often as it has samples in the batch, so that one the batch lacks enters with
    margin 0.
    Deviation: the code hands the inner problem to a convex solver on the CPU; `worst_distribution`
    solves it in place.
    """

    base: str = "pgd_at"
    radius: float = 0.5
    beta: float = 6.0
    warmup: int | None = None  # epochs on the base; None: half of them
    # the code's clean pass on pgd_at, too; it moves BatchNorm's running statistics only
    released_passes: bool = False

    bases = ("pgd_at", "trades", "mart")
    paper = "Zhang et al. 2024 (CVPR)"
    code = "TrustAI/FAAL@b20ee9dbe60c5ab700eaab3d41faa10e5295d39a (FAAL.py, ft_prn.py, utils.py)"
    batch_norm = "eval"

    def prepare(self, task: Task) -> None:
        """Sets the count of epochs to 0.

        Raises ConfigError on an unknown base or a setting out of range.
        """
        super().prepare(task)
        checked("radius of faal", self.radius, lambda r: 0 <= r <= 50, "between 0 and 50")
        checked("warmup of faal", self.warmup, lambda w: w is None or w >= 0, "at least 0")
        self.first = task.epochs // 2 if self.warmup is None else self.warmup
        self.state["epoch"] = torch.zeros((), dtype=torch.long)

    def crafts_as(self) -> str:
        """The base; for mart TRADES, as in the code."""
        return "trades" if self.base == "mart" else self.base

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The base's loss, each sample times K p_y."""
        adversarial = full(model(x_adv))
        clean = None if self.base == "pgd_at" else full(model(x))
        if clean is None and self.released_passes:
            with torch.no_grad():
                model(x)
        p = self.distribution(adversarial.detach(), y)
        losses = len(p) * p[y] * self._losses(adversarial, clean, y)
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)

    def distribution(self, logits: Tensor, y: Tensor) -> Tensor:
        """p (K,) of a batch: logits (B, K) under attack, y (B,). Uniform during the warm-up."""
        probabilities = logits.softmax(1)
        margin = other_logits(probabilities, y).amax(1) - true_logit(probabilities, y)
        n, means = class_means(whole(margin), whole(y), logits.shape[1])
        p = worst_distribution(n * means, self.radius)
        return torch.where(self.state["epoch"] < self.first, torch.full_like(p, 1 / len(p)), p)

    def _losses(self, adversarial: Tensor, clean: Tensor | None, y: Tensor) -> Tensor:
        if clean is None:
            return F.cross_entropy(adversarial, y, reduction="none")
        kl = self.beta * kl_divergence(clean, adversarial)
        if self.base == "trades":
            return F.cross_entropy(clean, y, reduction="none") + kl
        boosted = boosted_cross_entropy(adversarial, y)
        return boosted + kl * (1 - true_logit(clean.softmax(1), y) + FLOOR)

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """Counts the epochs of the warm-up."""
        self.state["epoch"] += 1

    @classmethod
    def crafting(cls, **chosen: Any) -> tuple[str, str]:
        """Eval mode; the start belongs to the objective that is ascended."""
        return "uniform" if chosen.get("base", cls.base) == "pgd_at" else "gaussian", cls.batch_norm

    @classmethod
    def table(cls, **chosen: Any) -> tuple[Row, ...]:
        """The paper's entries are those on the code's page; the paper itself was not read."""
        tuned, few = Words("a robust checkpoint is tuned"), Words("2")
        return (
            Row("base", None, "pgd_at", why="the released scripts'"),
            Row("radius", None, 0.5),
            Row("beta", None, 6.0),
            Row(
                "warmup",
                tuned,
                tuned,
                Words("half of the epochs"),
                "from scratch the base comes first, in the same run; the rate is then still high",
            ),
            Row(
                "epochs", few, few, None, "behind the checkpoint's; compare at equal epochs in all"
            ),
            Row("lr", None, Words("0.01, then 0.001"), None, "a tuning's"),
            Row(
                "released_passes",
                None,
                True,
                False,
                "running statistics there are half clean; nothing else changes",
            ),
            Row("eps", "8/255", "8/255"),
            Row("step_size", None, "2/255"),
            Row("steps", None, 10),
            Row("model", "preact_resnet18", "preact_resnet18", why="and WRN-34-10"),
            Row("weight_decay", None, 5e-4),
            Row(
                "awp",
                None,
                None,
                None,
                "its second variant, gamma 0.005: the run's awp=0.005, which moves weights by the "
                "weighted loss, the code by the plain mean; not compared",
            ),
            Row(
                "inner problem",
                None,
                "ECOS, then MOSEK or SCS where it fails; in float32",
                "exact, on the device",
                "the same optimum",
            ),
            Row(
                "MART's log p(x')",
                None,
                "log(p + 1e-12)",
                "log p",
                "log-softmax is finite by itself",
            ),
            Row(
                "best epoch chosen on",
                None,
                "20 test batches",
                "validation",
                "the test set is for reporting",
            ),
        )


def worst_distribution(gain: Tensor, radius: float, rounds: int = 8, points: int = 257) -> Tensor:
    """The p (K,) that maximises sum_k p_k a_k on the simplex with KL(u || p) <= radius, u uniform.

    gain: a, (K,).
    Lagrange's conditions give p_k proportional to 1 / (s + d_k), d_k = max a - a_k, for one s > 0,
    and KL(u || p) = mean_k log(s + d_k) + log mean_k 1 / (s + d_k) falls in s: t = log(s / max d)
    is found on a grid of `points` that narrows onto one of its cells, `rounds` times. All in
    logarithms, in gain's dtype, with no host synchronisation. Equal gains give u; a radius of 0
    gives u up to rounding.
    """
    d = gain.max() - gain
    log_d = (d / d.max().clamp_min(torch.finfo(d.dtype).tiny)).log()
    cells = torch.linspace(0, 1, points, dtype=d.dtype, device=d.device)
    low = torch.full_like(cells[:1], -200.0)
    high = torch.full_like(cells[:1], 200.0)
    for _ in range(rounds):
        t = low + (high - low) * cells
        terms = torch.logaddexp(t[:, None], log_d[None, :])
        kl = terms.mean(1) + (-terms).logsumexp(1) - log(len(d))
        above = (kl > radius).sum()[None]
        low, high = (t.gather(0, (above + side).clamp(0, points - 1)) for side in (-1, 0))
    return (-torch.logaddexp(high, log_d)).softmax(0)
