"""CFOL, class focused online learning (Pethick et al. 2023, TMLR): a bandit draws AT's classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.objectives import full
from crat.defenses.base import Defense, Row, Task, Words, checked
from crat.defenses.stats import ClassStats

ETA = 5e-6
DRAWS = 100 * 40_000


@dataclass
class CFOL(Defense):
    """AT on classes drawn from p = gamma / K + (1 - gamma) softmax(w), images of each evenly.

    After each epoch w_k = w_k + eta (wrong training adversarial examples of class k) / p_k: Exp3's
    estimate of what each class costs, with the 0-1 loss. A class without images is never drawn and
    its w_k stays.
    """

    gamma: float = 0.5
    eta: float | None = None  # None: 5e-6 sqrt(4 million / (epochs x training images))

    paper = "Pethick et al. 2023 (TMLR); gamma, eta, steps and epochs from its ICLR 2022 submission"
    code = (
        "LIONS-EPFL/class-focused-online-learning-code@98abd595fcba38271d7eb2a08846377d980997d8 "
        "(class_sampler.py)"
    )
    batch_norm = "eval"
    rows = (
        Row("gamma", 0.5, 0.5),
        Row(
            "eta",
            ETA,
            ETA,
            Words("5e-6 sqrt(4 million / draws)"),
            "Exp3's rate falls with the square root of the draws; at the code's 100 epochs of "
            "40,000 images it is 5e-6, that of its cmd_generator (config.py has 1e-5, the README "
            "1e-7)",
        ),
        Row(
            "when w moves",
            "with every draw",
            "after every batch",
            "after every epoch",
            "class probabilities are read once an epoch, and p_k is that of the whole epoch; the "
            "sum of the estimates is the same to first order",
        ),
        Row("eps", None, "0.031"),
        Row("step_size", None, "0.00797"),
        Row("steps", 7, 7),
        Row(
            "iterate of the attack",
            None,
            "the one behind the largest mean loss of the batch",
            "the last",
            "the loss is that before the step, the image that after it; as long as the mean loss "
            "rises it is the last one",
        ),
        Row("model", "resnet50", "resnet50", why="of the command generator"),
        Row("epochs", 100, 100),
        Row("lr", None, 0.1, why="divided by 10 after 75 and 90 of 100 epochs"),
        Row("weight_decay", None, 5e-4),
        Row(
            "validation",
            None,
            "a fifth of the training images",
            Words("valid_per_class images of each class"),
        ),
        Row(
            "augmentation",
            None,
            "crop, flip, colour jitter, rotation by 2 degrees",
            "crop, flip",
            "CFA's, for all",
        ),
        Row("temporal ensembling", "in some tables", "an option, off", "none"),
        Row("classes weighted, not drawn", None, "an option (reweight), off", "none"),
    )

    def prepare(self, task: Task) -> None:
        """Begins with all classes alike."""
        checked("gamma of cfol", self.gamma, lambda g: 0 < g <= 1, "in (0, 1]")
        checked("eta of cfol", self.eta, lambda e: e is None or e >= 0, "at least 0")
        draws = task.epochs * max(1.0, float(task.class_counts.sum()))
        self.rate = ETA * (DRAWS / draws) ** 0.5 if self.eta is None else self.eta
        self.state["score"] = torch.zeros(task.n_classes)
        self.state["probability"] = torch.full((task.n_classes,), 1 / task.n_classes)

    def class_probs(self) -> Tensor:
        """p (K,), fixed for an epoch."""
        return self.state["probability"]

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """That of AT: the mean cross-entropy of the adversarial images, with no weights."""
        logits = full(model(x_adv))
        losses = F.cross_entropy(logits, y, reduction="none")
        return losses.mean(), ClassStats.of(y, losses, logits)

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """One step of Exp3 for all draws of the epoch."""
        wrong = train.n - train.robust
        self.state["score"] = self.state["score"] + self.rate * wrong / self.state["probability"]
        q = self.state["score"].softmax(0)
        self.state["probability"] = self.gamma / len(q) + (1 - self.gamma) * q
