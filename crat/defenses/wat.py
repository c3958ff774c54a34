"""WAT, worst-class adversarial training (Li and Liu 2023, AAAI): classes weigh by past cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.objectives import full, kl_divergence
from crat.defenses.base import Policy, Row, Task, Words, checked
from crat.defenses.stats import ClassStats

ETA, EPOCHS = 0.1, 100  # the released code's rate, and the epochs that it is meant for


@dataclass
class WAT(Policy):
    """mean of (w_y + w_0) l over the batch, l = CE(f(x), y) + beta KL(p(x) || p(x')) as in TRADES.

    After each epoch (w_1, ..., w_K, w_0) = K softmax(eta C), where C sums over the epochs the mean
    l of each class, and behind them that of all images, on validation: exponential weights among K
    + 1 experts, the last being the plain mean. All weights are 1 in the first epoch, as in the
    code; the loss is about twice that of TRADES at first, and goes towards once as the weights
    gather on a few experts.
    A class that validation lacks is taken to cost the mean.
    """

    beta: float = 6.0
    eta: float | None = None  # None: 0.1 sqrt(100 / epochs)

    paper = "Li and Liu 2023 (AAAI)"
    code = (
        "boqili/WAT@62d1184f9b88909c9e782ab8234128324235ac84 (worst_class_adversarial_train.py, "
        "attack_generator.py)"
    )
    base: ClassVar[str] = "trades"  # type: ignore[misc]
    bases = ("trades",)
    start = "gaussian"
    batch_norm = "eval"
    rows = (
        Row(
            "eta",
            None,
            ETA,
            Words("0.1 sqrt(100 / epochs)"),
            "the rate of exponential weights falls with the square root of the rounds, which are "
            "epochs; at 100 it is the code's",
        ),
        Row("beta", None, 6.0),
        Row("eps", None, "0.031"),
        Row("step_size", None, "0.007"),
        Row("steps", None, 10),
        Row("model", None, "resnet18", why="wrn_34_10 is the code's other choice"),
        Row("epochs", None, 100),
        Row("lr", None, 0.1, why="the code divides it by 10 from epochs 75 and 90 on"),
        Row("weight_decay", None, 2e-4, why="one value for all methods that are compared: CFA's"),
        Row("valid_per_class", None, 300),
        Row(
            "attack on validation",
            None,
            "that of training, on the divergence",
            "the protocol's PGD on the cross-entropy",
            "the one validation that every run makes; it moves the cost a little",
        ),
        Row(
            "cost of a class",
            None,
            "its sum over a K-th of the images, the last batch counted as full",
            "its mean",
            "the same where validation is balanced and fills its batches",
        ),
        Row(
            "choice of the method",
            None,
            "--alg wat; without it the code trains with all weights 1, no update",
            'defense="wat"',
        ),
    )

    def prepare(self, task: Task) -> None:
        """Begins with weights of 1 and no cost."""
        super().prepare(task)
        checked("eta of wat", self.eta, lambda e: e is None or e >= 0, "at least 0")
        self.rate = ETA * (EPOCHS / task.epochs) ** 0.5 if self.eta is None else self.eta
        self.state["weight"] = torch.ones(task.n_classes)
        self.state["plain_weight"] = torch.ones(())
        self.state["cost"] = torch.zeros(task.n_classes)
        self.state["plain_cost"] = torch.zeros(())

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The weighted mean; the statistics hold the losses as they are without weights."""
        clean, adversarial = full(model(x)), full(model(x_adv))
        losses = F.cross_entropy(clean, y, reduction="none")
        losses = losses + self.beta * kl_divergence(clean, adversarial)
        weights = self.state["weight"][y] + self.state["plain_weight"]
        return (weights * losses).mean(), ClassStats.of(y, losses, adversarial, clean)

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """Adds the epoch's costs on validation and weighs anew."""
        if valid is None or not valid.n.any():
            return
        costs = valid.clean_loss + self.beta * valid.divergence
        mean = costs.sum() / valid.n.sum()
        of_class = torch.where(valid.n > 0, costs / valid.n.clamp_min(1), mean)
        self.state["cost"] = self.state["cost"] + of_class
        self.state["plain_cost"] = self.state["plain_cost"] + mean
        cost = torch.cat([self.state["cost"], self.state["plain_cost"][None]])
        weights = len(valid.n) * (self.rate * cost).softmax(0)
        self.state["weight"] = weights[:-1]
        self.state["plain_weight"] = weights[-1]
