"""Label augmentation (Amerehi and Healy 2024, 2025): labels name the operation, too.

With its control, label smoothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.noise import Drawing, Source, drawing, normal
from crat.attacks.objectives import Objective, full, true_logit
from crat.attacks.threat import Budget, over_images
from crat.config import ConfigError
from crat.defenses.base import Defense, Row, Task, Words, checked
from crat.defenses.stats import ClassStats
from crat.distributed import places

# AT + weight average + smoothed labels, the baseline that a method on EMA should be better than:
# `preset("label_smoothing", clean_share=0.0)`
AT_LS = (
    Row(
        "delta",
        None,
        0.4,
        0.4,
        "of (1 - delta) onehot + delta / K; 0.4 is that of the benchmark, with the average and "
        "without it",
    ),
    Row("average", None, "ema_update", "ema_update"),
    Row(
        "average_decay",
        None,
        0.9995,
        Words("that of all methods, 0.999"),
        "0.9995 at each of 39,100 updates; a short run would keep its first weights",
    ),
    Row("eps", None, "8/255"),
    Row("step_size", None, "2/255"),
    Row("steps", None, 10),
    Row(
        "batch_norm",
        None,
        "eval",
        why="torchattacks puts the network into eval mode; AT here is in train mode",
    ),
    Row("model", None, "resnet18"),
    Row("epochs", None, 100),
    Row("lr", None, 0.1),
    Row("schedule", None, "one_cycle"),
    Row("weight_decay", None, 5e-4),
    Row("batch_size", None, 128),
    Row("random start", None, "cut to [0, 1]", "cut"),
)


@dataclass
class LabelSmoothing(Defense):
    """AT with labels (1 - delta) onehot(y) + delta / K, attacked and clean images: Adv+'s control.

    It differs from LabelAugmentation only in where delta goes. delta = 0 and clean_share = 0 is
    PGDAT.
    """

    delta: float = 0.1
    # weight of the clean images in the loss; 0: attacked ones only, as in AT
    clean_share: float = 0.5

    paper = (
        "Szegedy et al. 2016 (CVPR), section 7, on the images of Adv+, a control of ours; with "
        "clean_share=0 the baseline AT + weight average + smoothed labels of Pan and Yao 2026, "
        "arXiv 2604.22853"
    )
    code = (
        "fzjcdt/FastAT_Benchmark@b99c0de60e57128254234f2d79719b74792a4037 "
        "(fast_at/pgd_at.py, configs/cifar10/pgd_at_wa.yaml), with clean_share=0"
    )
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"clean_share": 0.0})
    rows: ClassVar[tuple[Row, ...]] = (
        Row(
            "delta",
            0.1,
            None,
            None,
            "Szegedy et al. smooth by 0.1; compare at the delta of label augmentation",
        ),
        Row("clean_share", None, None, None, "that of label augmentation"),
    )
    rows_of_at: ClassVar[tuple[Row, ...]] = AT_LS

    def prepare(self, task: Task) -> None:
        """Raises ConfigError where a share is out of range."""
        checked("delta", self.delta, lambda v: 0 <= v < 1, "in [0, 1)")
        checked("clean_share", self.clean_share, lambda v: 0 <= v < 1, "in [0, 1)")

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean over both kinds of images, which pass the network, and BatchNorm, as one batch."""
        share = self.clean_share
        if not share:
            moved = full(model(x_adv))
            losses = self.cost(moved, y, self.operation(y))
            return losses.mean(), ClassStats.of(y, losses, self.answers(moved))
        clean, moved = full(model(torch.cat([x, x_adv]))).chunk(2)
        losses = share * self.cost(clean, y, torch.zeros_like(y))
        losses = losses + (1 - share) * self.cost(moved, y, self.operation(y))
        return losses.mean(), ClassStats.of(y, losses, self.answers(moved), self.answers(clean))

    @classmethod
    def table(cls, **chosen: Any) -> tuple[Row, ...]:
        """The rows of AT + weight average + smoothed labels where no clean image has a weight."""
        at = chosen.get("clean_share", cls.clean_share) == 0
        return cls.rows_of_at if at and cls.rows_of_at else cls.rows

    def operation(self, y: Tensor) -> Tensor:
        """The operation on each image of x_adv, (B,): its number among the method's; 0 is none."""
        return torch.ones_like(y)

    def cost(self, logits: Tensor, y: Tensor, operation: Tensor) -> Tensor:
        """Cross-entropy with the soft label, (B,)."""
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.delta)

    def answers(self, logits: Tensor) -> Tensor:
        """The logits that decide, (B, K)."""
        return logits


@dataclass
class LabelAugmentation(LabelSmoothing):
    """L = -(1 - delta) log p_y - delta log p_{K + j}, operation j, of K + M outputs.

    The first K outputs decide. With the attack this is Adv+ (2025), without it LA (2024). Operation
    0 is identity: each image counts as it is with weight `clean_share` and under one other
    operation with the rest. Image i of a batch, which is drawn at random, gets operation i modulo
    their number, so that each is as frequent.
    """

    adversarial: bool = True  # Adv+: the attack is the last operation
    # others, of OPERATIONS; (): none beside the attack, without it all
    operations: tuple[str, ...] = ()
    attacked: str = "classes"  # outputs whose cross-entropy the attack ascends: classes | all

    paper = "Amerehi and Healy 2024 (CoLLAs), arXiv 2408.01977, and 2025, arXiv 2503.16179"
    code = ""
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    rows_of_at = ()
    head = "augmented"
    rows = (
        Row(
            "delta",
            None,
            None,
            None,
            "the value was not found; 0.1 is what labels are usually smoothed by",
        ),
        Row(
            "clean_share",
            None,
            None,
            None,
            "not found; with attacked images only, one operation's output is always on and says "
            "nothing. At 0.5 as many attacked images are seen as in AT, and as many clean ones",
        ),
        Row(
            "operations",
            Words("identity, attack (2025)"),
            None,
            Words("the same; LA: identity, all of OPERATIONS"),
            "those of LA (2024) were not found: noise, blur, contrast and brightness at medium "
            "strength; do not judge on these corruptions what trained on them",
        ),
        Row(
            "attacked",
            None,
            None,
            None,
            "not found. The classes decide; over all outputs the attack may spend its budget on "
            "raising p_{K + j}, which lowers p_y and changes no answer",
        ),
        Row(
            "what decides",
            None,
            None,
            Words("the first K outputs"),
            "the natural reading; and attacks must be on them, for cross-entropy over all outputs "
            "is weak",
        ),
        Row("eps", "0.03", why="7.65/255 is large for ImageNet"),
        Row("steps", 10),
        Row("model", "resnet50"),
        Row("data", "imagenet"),
        Row("epochs", 10, why="from a pretrained network"),
        Row("schedule", "cosine"),
        Row(
            "BatchNorm in the loss",
            None,
            None,
            Words("clean and attacked images as one batch"),
            "not found",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ", ".join(OPERATIONS)
        checked(
            "operations",
            self.operations,
            lambda v: set(v) <= set(OPERATIONS),
            f"a tuple of {known}",
        )
        others = self.operations or (() if self.adversarial else tuple(OPERATIONS))
        self.names = ("identity", *others, *(("attack",) if self.adversarial else ()))
        vars(self).update(
            extra_outputs=len(self.names), selects_on="robust" if self.adversarial else "clean"
        )

    def prepare(self, task: Task) -> None:
        """Sets K.

        Raises ConfigError where a setting is out of range.
        """
        super().prepare(task)
        checked("attacked", self.attacked, lambda v: v in ("classes", "all"), "'classes' or 'all'")
        self.n_classes = task.n_classes

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """Each image under its operation; the attack ascends the cross-entropy of y."""
        draws = drawing(generator, x)
        moved, operation = x, self.operation(y)
        for j, name in enumerate(self.names[1:], 1):
            if name == "attack":
                image = self.search(model, x, y, scale, draws)
            else:
                image = OPERATIONS[name](x, draws)
            moved = torch.where(over_images(operation == j, x), image, moved)
        return moved

    def ascended(self) -> Objective:
        """The cross-entropy of the class outputs, or of all outputs."""
        objective = super().ascended()
        return OfClasses(self.n_classes, objective) if self.attacked == "classes" else objective

    def operation(self, y: Tensor) -> Tensor:
        """The operations 1 to M - 1 in turn, by the image's place in the batch, (B,)."""
        return 1 + places(y) % (len(self.names) - 1)

    def cost(self, logits: Tensor, y: Tensor, operation: Tensor) -> Tensor:
        """Cross-entropy with the label of class and operation, (B,)."""
        log_p = logits.log_softmax(1)
        of_class = -(1 - self.delta) * true_logit(log_p, y)
        return of_class - self.delta * true_logit(log_p, self.n_classes + operation)

    def answers(self, logits: Tensor) -> Tensor:
        """The class outputs.

        Raises ConfigError where the head has not K + M outputs.
        """
        expected = self.n_classes + len(self.names)
        if logits.shape[1] != expected:
            raise ConfigError(
                f"label_augmentation needs {expected} outputs, {self.n_classes} classes and "
                f"{len(self.names)} operations; the head has {logits.shape[1]}"
            )
        return logits[:, : self.n_classes]


@dataclass(frozen=True)
class OfClasses:
    """An objective of the first K logits of a network that has more."""

    n_classes: int
    objective: Objective

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """Logits (N, K + M), labels (N,) -> (N,)."""
        return self.objective(logits[:, : self.n_classes], y)


def _noise(x: Tensor, generator: Drawing) -> Tensor:
    return (x + 0.08 * normal(tuple(x.shape), x, generator)).clamp(0, 1)


def _blur(x: Tensor, generator: Drawing) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(padded, 3, stride=1)


def _contrast(x: Tensor, generator: Drawing) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (mean + 0.4 * (x - mean)).clamp(0, 1)


def _brightness(x: Tensor, generator: Drawing) -> Tensor:
    return (x + 0.15).clamp(0, 1)


OPERATIONS: dict[str, Callable[[Tensor, Drawing], Tensor]] = {
    "noise": _noise,  # Gaussian, sd 0.08
    "blur": _blur,  # mean of 3 x 3 pixels
    "contrast": _contrast,  # 0.4 of the distance to each channel's mean
    "brightness": _brightness,  # 0.15 added
}
