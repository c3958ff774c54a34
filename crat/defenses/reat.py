"""REAT (Li et al. 2023): re-balanced attacks, balanced softmax, and a term on rare features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crat.attacks.objectives import Objective, full
from crat.defenses.base import Defense, Row, Task, Words
from crat.defenses.losses import balanced_softmax_loss, log_counts
from crat.defenses.stats import ClassStats
from crat.device import precise
from crat.distributed import whole
from crat.nets.models import plain


@dataclass
class REAT(Defense):
    """min E[CE(z(x') + log n, y)] + TAIL, x' ascending w_y CE, as in the code.

    w_k = 1 / E_k up to a common factor, E_k = (1 - b_k^a_k) / (1 - b_k) with b_k = (n_k - 1) / n_k
    is the effective number of class k, a_k how many training adversarial examples the last epoch's
    model answered by k (n_k at first); w stands in state["weight"]. A positive weight of a sample's
    loss changes the length of its gradient, not its sign: in eval mode, where samples do not meet,
    the L-inf steps are those of PGD. batch_norm="train" lets w matter.
    TAIL (`tail_term`): for each image i of the rarest classes the mean KL(softmax(f_i) ||
    softmax(f_j)) of its features (f_i detached) to those of the batch, per feature, times the mean
    over j of s_ij (v_i + v_j), s_ij = -1 within a class and 1 else, v_k = sqrt(N / n_k); the mean
    over these images. Of the pairs' own signs nothing is left in it, because the code's
    KLDivLoss(size_average="none") is the mean over all pairs and features.
    """

    tail_term: bool = True

    paper = "Li, Xu and Zhang 2023 (2307.10205); its formulas were not seen by us"
    code = "GuanlinLee/REAT@a7909fd98a52d2bdb6a68aea7248e80900cffa29 (loss_functions.py, train.py)"
    batch_norm = "eval"
    rows = (
        Row("tail_term", None, True),
        Row("eps", None, "8/255"),
        Row("step_size", None, "2/255"),
        Row("steps", None, 10),
        Row("model", None, "resnet18"),
        Row("epochs", None, 80),
        Row("lr", None, 0.1),
        Row("weight_decay", None, 5e-4),
        Row(
            "schedule",
            None,
            Words("0.1, 0.01 from epochs 60, 75 of 80"),
            why="one schedule for all methods",
        ),
        Row("batch_size", None, 128),
        Row("imbalance_ratio", None, 50.0),
        Row("padding", None, "zero"),
        Row(
            "rarest classes",
            "the tail",
            "the last (K - 1) - 2 [K / 3] by number",
            "as many, by training images",
            "labels need not be sorted by frequency; at least one",
        ),
        Row("random start", None, "not cut to [0, 1]", "cut", "an image has no values outside"),
        Row("weights of the attack", "1 / E", "1 / (E + 1e-5), in float32", "the same, in float64"),
        Row("best epoch chosen on", None, "test", "validation", "the test set is for reporting"),
    )

    def prepare(self, task: Task) -> None:
        """Notes log n and the rarest classes, and begins with a_k = n_k."""
        n, k = task.class_counts.double().clamp_min(1), task.n_classes
        self.state["bias"] = log_counts(n)
        rank = n.argsort(descending=True, stable=True).argsort()
        self.state["rare"] = (rank >= min(2 * (k // 3) + 1, k - 1)).double()
        self.state["weight"] = effective_weights(n, n)

    def objective(self, model: nn.Module, x: Tensor) -> Objective:
        """The cross-entropy times w_y."""
        return self._weighted(self.ascended())

    def _weighted(self, objective: Objective) -> Objective:
        def ascended(logits: Tensor, y: Tensor) -> Tensor:
            return self.state["weight"].to(logits)[y] * objective(logits, y)

        return ascended

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean balanced-softmax loss plus TAIL, from one pass.

        Without torch.compile, which hides the features.
        """
        network = plain(model)
        features = network.features(x_adv)
        logits = full(network.head(features))
        losses = balanced_softmax_loss(logits, y, self.state["bias"])
        if self.tail_term:
            rare = self.state["rare"].to(logits)
            losses = losses + tail_terms(full(features), y, rare, self.state["bias"])
        return losses.mean(), ClassStats.of(y, losses, logits)

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """Moves the weights by the answers to the epoch's adversarial examples."""
        taken_for = precise(train.confusion.sum(0))
        self.state["weight"] = effective_weights(self.state["bias"].exp().round(), taken_for)


def effective_weights(n: Tensor, a: Tensor) -> Tensor:
    """Weights (K,), of mean 1, proportional to 1 / (E + 1e-5), E the effective numbers.

    n: (K,) >= 1, training images.
    a: (K,) >= 0, answers.
    """
    b = (n - 1) / n
    inverse = 1 / ((1 - b**a) / (1 - b) + 1e-5)
    return inverse / inverse.mean()


def tail_terms(features: Tensor, y: Tensor, rare: Tensor, bias: Tensor) -> Tensor:
    """REAT's TAIL of each image (N,), whose mean is the batch's: 0 for images of common classes.

    features: (N, D).
    y: (N,).
    rare: (K,), 1.0 or 0.0.
    bias: (K,), log n.
    Of several processes each has some of the i, and the j are those of all.
    """
    every = whole(y)
    of_class = (0.5 * (bias.logsumexp(0) - bias)).exp().to(features)
    v, log_q = of_class[y], features.log_softmax(1)
    p = log_q.detach().exp()
    with torch.autocast(features.device.type, enabled=False):  # a difference of near equals
        divergence = (p * log_q.detach()).sum(1, keepdim=True) - p @ whole(log_q).T  # KL(i || j)
    sign = 1 - 2 * (y[:, None] == every).to(v)
    factor = (sign * (v[:, None] + of_class[every])).mean(1)
    per_image = rare[y] * factor * divergence.mean(1) / features.shape[1]
    return per_image * len(every) / rare[every].sum().clamp_min(1)
