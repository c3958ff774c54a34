"""BAT, balance adversarial training (Sun et al. 2022): learns from both sides of the boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.frozen import frozen
from crat.attacks.logits import forward_backward
from crat.attacks.noise import Source, drawing
from crat.attacks.objectives import full, kl_divergence
from crat.attacks.threat import Budget, gaussian_start, over_images, per_sample, project
from crat.defenses.base import Defense, Row, Task, checked, kl_from_clean
from crat.defenses.stats import ClassStats


@dataclass
class BAT(Defense):
    """CE(f(x_last), y) + beta KL(p(x) || p(x_first)) + balance (U(x_last) + U(x_first)).

    On the way of TRADES' attack, x_last is the last iterate before the first error, and x_first
    lies `tau` steps behind that error; where none occurs both are the end of the way. U(x) =
    KL(p(x) || u), u uniform. `craft` returns the two as one tensor (2, B, C, H, W), x_first before
    x_last.
    All samples stay in the batch, and those that stopped do not move: no loop over samples, no host
    synchronisation.
    """

    beta: float = 6.0
    balance: float = 1.0
    tau: int = 1

    paper = "Sun et al. 2022 (arXiv 2209.07534)"
    code = (
        "silvercherry/Improving-Robust-Fairness-via-Balance-Adversarial-Training"
        "@9bcee67aedeea64cd5c3790e88d292f7dafe8a8f "
        "(train.py, train_mode/; whether its owner is an author we do not know)"
    )
    start = "gaussian"
    batch_norm = "eval"
    rows = (
        Row(
            "tau",
            None,
            1,
            1,
            "by the name of x_first it should be 0; the one code that we know has 1",
        ),
        Row("beta", None, 6.0),
        Row("balance", None, 1.0),
        Row(
            "random starts",
            None,
            "one for x_first, another for x_last",
            "one way gives both",
            "half the passes",
        ),
        Row(
            "x_last without an error",
            None,
            "the end of the way, not checked",
            "the same",
            "a check costs a pass; it may be the first wrong iterate where only the last step "
            "crossed",
        ),
        Row(
            "order of the batch",
            None,
            "x_first shuffled against x_last",
            "kept",
            "only the rounding of sums changes",
        ),
        Row("eps", None, "0.031"),
        Row("step_size", None, "0.007"),
        Row("steps", None, 10),
        Row("model", None, "resnet18"),
        Row("epochs", None, 200, why="the rate is divided by 10 from epochs 75, 90 and 100 on"),
        Row("lr", None, 0.1),
        Row("weight_decay", None, 2e-4, why="one value for all methods that are compared: CFA's"),
        Row("padding", None, "zero", why="CFA's crop, for all methods"),
        Row("mixup", None, "none at this commit", "none"),
    )

    def prepare(self, task: Task) -> None:
        """Raises ConfigError on a negative tau."""
        checked("tau of bat", self.tau, lambda t: t >= 0, "at least 0")

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """PGD on KL(p(x) || p(x')) from x + 0.001 N(0, 1), cut to box and ball: x_first and x_last.

        The two are stacked, (2, B, C, H, W).
        """
        a = self.attack
        eps, step = (per_sample(value, x) for value in self.budget(y, scale))
        x_first = x_last = project(gaussian_start(x, 0.001, drawing(generator, x)), x, eps, a.norm)
        slack = torch.full_like(y, self.tau)
        right = torch.ones_like(y, dtype=torch.bool)
        target = kl_from_clean(model, x, a.batch_norm)
        with frozen(model, a.batch_norm):
            for _ in range(a.steps):
                gradient, _, logits = forward_backward(model, x_first, y, target)
                wrong = logits.argmax(1) != y
                right &= ~wrong
                x_last = torch.where(over_images(right, x), x_first, x_last)
                goes = (slack > 0) | ~wrong
                slack -= (wrong & goes).long()
                stepped = project(x_first + step * gradient.sign(), x, eps, a.norm)
                x_first = torch.where(over_images(goes, x), stepped, x_first)
        return torch.stack([x_first, torch.where(over_images(right, x), x_first, x_last)])

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Passes x_last, x_first and x in the code's order.

        The statistics count x_first as the attacked image.
        """
        x_first, x_last = x_adv
        last = full(model(x_last))
        first = full(model(x_first))
        clean = full(model(x))
        losses = F.cross_entropy(last, y, reduction="none")
        losses = losses + self.beta * kl_divergence(clean, first)
        losses = losses + self.balance * (from_uniform(last) + from_uniform(first))
        return losses.mean(), ClassStats.of(y, losses, first, clean)


def from_uniform(logits: Tensor) -> Tensor:
    """KL(softmax(z) || u) = log K - H, of (B, K) logits, (B,)."""
    log_p = logits.log_softmax(1)
    return math.log(logits.shape[1]) + (log_p.exp() * log_p).sum(1)
