"""AT with self-distillation (Cho, Lee and Kim 2025): a balanced teacher for a long tail."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from crat.attacks.objectives import full
from crat.defenses.base import Distilled, Row, Task, Words, checked
from crat.defenses.losses import balanced_softmax_loss, log_counts, soft_divergence
from crat.defenses.stats import ClassStats


@dataclass
class SelfDistillation(Distilled):
    """min E[(1 - a) CE(z(x') + log n, y) + a T^2 KL(q_T || p_T(x'))], x' ascending the plain CE.

    q_T = softmax(z_T(x) / T) of the teacher's logits, p_T likewise of z(x'); n_k the training
    images of class k. The teacher is the same network, trained adversarially on a balanced set that
    is drawn from the long tail: another run, which the config names. The logits z answer, and z is
    attacked.
    No code was found by us outside OpenReview's supplement, which was not at hand. The paper's
    abstract and its public reviews were read: two phases, the first of 30 epochs or so on the
    balanced set, the second with distillation and a balanced softmax on the tail; gradient matching
    is named, too. The form of the distillation, its weight and its temperature are ours.
    """

    share: float = 0.5  # a
    temperature: float = 1.0  # T

    paper = "Cho, Lee and Kim 2025 (ICLR), arXiv 2503.06461; its formulas were not seen by us"
    start = "gaussian"
    batch_norm = "eval"
    rows = (
        Row("share", None, None, None, "not found"),
        Row("temperature", None, None, None, "not found"),
        Row(
            "teacher",
            "the same network, AT on a balanced set drawn from the tail",
            None,
            Words("the run that the config names"),
            "notebook 08's: AT whose classes are drawn alike, or a subset as small as the last "
            "class",
        ),
        Row(
            "distillation",
            "its form was not seen; gradient matching is named",
            None,
            "KL from the teacher's soft label of the clean image",
            "ARD's",
        ),
        Row("balanced loss", "balanced softmax", None, "balanced softmax, as in AT-BSL"),
        Row("model", "resnet18", why="the paper's figure 1"),
        Row("imbalance_ratio", 50.0, why="CIFAR-10; CIFAR-100 and Tiny-ImageNet have 10"),
    )

    def prepare(self, task: Task) -> None:
        """Begins state["bias"] with log n. Raises ConfigError where a setting is out of range."""
        super().prepare(task)
        checked("share of self_distillation", self.share, lambda a: 0 <= a <= 1, "in [0, 1]")
        checked("temperature of self_distillation", self.temperature, lambda t: t > 0, "above 0")
        self.state["bias"] = log_counts(task.class_counts)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Both terms from one pass; statistics count z's answers."""
        t = self.temperature
        logits = full(model(x_adv))
        losses = (1 - self.share) * balanced_softmax_loss(logits, y, self.state["bias"])
        divergence = soft_divergence(self.taught_logits(x) / t, logits / t)
        losses = losses + self.share * t * t * divergence
        return losses.mean(), ClassStats.of(y, losses, logits)
