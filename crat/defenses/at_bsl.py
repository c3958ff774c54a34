"""AT-BSL (Yue et al. 2024): plain adversarial examples, and a loss with class frequencies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from crat.attacks.objectives import full
from crat.defenses.base import Defense, Row, Task, Words
from crat.defenses.losses import balanced_softmax_loss, log_counts
from crat.defenses.stats import ClassStats


@dataclass
class ATBSL(Defense):
    """min E[CE(z(x') + log n, y)], n_k the training images of class k; x' ascends the plain CE.

    The balanced softmax is used in training only: the logits z answer, and z is attacked. A class
    without images counts as one, as in REAT's code; log n stands in state["bias"] (K,).
    """

    paper = "Yue et al. 2024 (CVPR)"
    code = (
        "NISPLab/AT-BSL@23f433e8eeec463f1ec40188966a64d240c33443 (at_bsl_loss.py, "
        "train_at_bsl_cifar10.py)"
    )
    start = "gaussian"
    batch_norm = "eval"
    rows = (
        Row("eps", None, "8/255"),
        Row("step_size", None, "2/255"),
        Row("steps", None, 10),
        Row("model", None, "resnet18"),
        Row("epochs", None, 100),
        Row("lr", None, 0.1),
        Row("weight_decay", None, 5e-4),
        Row(
            "schedule",
            None,
            Words("0.1, 0.01 from epochs 75, 90 of 100"),
            why="one schedule for all methods",
        ),
        Row("batch_size", None, 128),
        Row("imbalance_ratio", None, 50.0, why="CIFAR-10; CIFAR-100 has 10"),
        Row("padding", None, "zero"),
        Row(
            "augmentation",
            None,
            "AutoAugment, RandAugment(2, 8) or none",
            "crop and flip",
            "an option of the code's, beside the loss",
        ),
        Row(
            "cross-entropy that is ascended",
            None,
            "as it is",
            "its log-odds",
            "the same steps in eval mode, and no part of the gradient lost where p_y rounds to 1",
        ),
        Row(
            "best epoch chosen on",
            None,
            "test, from epoch 75 on",
            "validation",
            "the test set is for reporting",
        ),
    )

    def prepare(self, task: Task) -> None:
        """Begins state["bias"] with log n."""
        self.state["bias"] = log_counts(task.class_counts)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean balanced-softmax loss of the adversarial images; statistics count z's answers."""
        logits = full(model(x_adv))
        losses = balanced_softmax_loss(logits, y, self.state["bias"])
        return losses.mean(), ClassStats.of(y, losses, logits)
