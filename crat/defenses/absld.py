"""ABSLD (Zhao et al. 2024, NeurIPS): the teacher's labels are sharper for hard classes."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.noise import Source
from crat.attacks.objectives import KLFrom, full
from crat.attacks.threat import Budget
from crat.defenses.base import Distilled, Row, Task, Words, checked
from crat.defenses.losses import by_class, soft_divergence
from crat.defenses.stats import ClassStats
from crat.distributed import whole

# of the released code's 300 epochs: the rate falls tenfold behind each, as the learning rate does
DROPS = (215, 260, 285)
EPOCHS = 300


@dataclass
class ABSLD(Distilled):
    """min E[a KL(q_adv || p(x')) + (1 - a) KL(q_nat || p(x))], x' ascending KL(q_adv || p(x')).

    q_adv = softmax(z_T(x) / t_adv[y]) and q_nat likewise, z_T the teacher's logits of the clean
    image. After each epoch t_k = clamp(t_k - rate (L_k - mean L) / max |L - mean L|), L_k the mean
    cross-entropy of class k in the epoch: of its adversarial images for t_adv, of its clean ones
    for t_nat. A class that is harder than the mean gets sharper labels. The temperatures begin
    at 1; with rate 0 they stay there, which is RSLAD. A class without images keeps its own.
    The paper's abstract and the code were read; its formulas were not seen by us. In the code both
    temperatures divide one tensor in place (`detach()` gives a view of the same numbers), so that
    both labels are softmax(z_T / (t_adv t_nat)): `compounds` does the same.
    """

    rate: float = 0.1  # of the temperatures, in the first 215 of 300 epochs
    coolest: float = 0.5
    warmest: float = 5.0
    adversarial_share: float = 5 / 6  # a
    compounds: bool = False  # both labels at the temperature t_adv t_nat, as in the code
    per_output: bool = False  # the divergence over K, as in the code: a tenth of the gradient

    paper = "Zhao et al. 2024 (NeurIPS), arXiv 2312.05508; its formulas were not seen by us"
    code = (
        "zhaoshiji123/ABSLD@7407c3ad226a1373c8a2af13bf3f6946e100ff84 "
        "(absld_loss.py, resnet18_absld_cifar10.py)"
    )
    start = "gaussian"
    batch_norm = "eval"
    rows = (
        Row(
            "compounds",
            None,
            True,
            False,
            "the code computes two temperatures a class, one for each label, and means to apply "
            "one to each",
        ),
        Row(
            "per_output",
            None,
            True,
            False,
            "the code's mean is over images and classes; a KL does not depend on the number of "
            "classes, and one learning rate serves all methods",
        ),
        Row("rate", None, 0.1),
        Row("coolest", None, 0.5),
        Row("warmest", None, 5.0),
        Row("adversarial_share", None, 5 / 6),
        Row(
            "rate falls tenfold",
            None,
            "behind epochs 215, 260, 285 of 300",
            Words("the same, in proportion"),
            "with the learning rate; ours has another schedule",
        ),
        Row(
            "L_k",
            None,
            "the class's sum",
            "the class's mean",
            "the same for balanced classes; on a tail a sum would call every large class hard",
        ),
        Row(
            "teacher",
            None,
            Words("a WRN-34-10, model_cifar_wrn.pt"),
            None,
            "of the run; none is shipped",
        ),
        Row("eps", None, "8/255"),
        Row("step_size", None, "2/255"),
        Row("steps", None, 10),
        Row("model", "resnet18", "resnet18"),
        Row("epochs", None, 300),
        Row("lr", None, 0.1),
        Row("weight_decay", None, 2e-4, why="one value for all methods that are compared: CFA's"),
        Row("padding", None, "zero", why="CFA's crop, for all methods"),
        Row("best epoch chosen on", None, "test", "validation", "the test set is for reporting"),
    )

    def prepare(self, task: Task) -> None:
        """Begins with the temperatures 1. Raises ConfigError where a setting is out of range."""
        super().prepare(task)
        checked("rate of absld", self.rate, lambda r: 0 <= r < inf, "at least 0 and finite")
        checked("coolest of absld", self.coolest, lambda t: 0 < t <= 1, "in (0, 1]")
        checked("warmest of absld", self.warmest, lambda t: 1 <= t < inf, "at least 1 and finite")
        checked(
            "adversarial_share of absld", self.adversarial_share, lambda a: 0 <= a <= 1, "in [0, 1]"
        )
        self.drops = [max(1, round(task.epochs * epoch / EPOCHS)) for epoch in DROPS]
        self.state["epoch"] = torch.zeros((), dtype=torch.long)
        self.state["temperature_adv"] = torch.ones(task.n_classes)
        self.state["temperature_nat"] = torch.ones(task.n_classes)
        # sums of the epoch's adversarial cross-entropy; in a row, for it is no value of a class
        self.state["adversarial_losses"] = torch.zeros(1, task.n_classes)

    def labels(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits over the temperatures, for the adversarial and the clean image."""
        logits = self.taught_logits(x)
        adv = self.state["temperature_adv"].to(logits)[y][:, None]
        nat = self.state["temperature_nat"].to(logits)[y][:, None]
        if self.compounds:
            return logits / adv / nat, logits / adv / nat
        return logits / adv, logits / nat

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """The attack on KL(q_adv || p(x'))."""
        return self.ascend(model, x, y, KLFrom(self.labels(x, y)[0]), scale, generator)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The two divergences; the adversarial pass comes first, as in the code."""
        for_adv, for_nat = self.labels(x, y)
        adversarial = full(model(x_adv))
        clean = full(model(x))
        share = self.adversarial_share
        losses = share * soft_divergence(for_adv, adversarial, self.per_output)
        losses = losses + (1 - share) * soft_divergence(for_nat, clean, self.per_output)
        self._of_batch = F.cross_entropy(adversarial.detach(), y, reduction="none")
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)

    def after_step(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Adds the step's adversarial cross-entropies, once also where AWP takes the loss twice."""
        sums = self.state["adversarial_losses"]
        added = by_class(whole(self._of_batch), whole(y), sums.shape[1])
        self.state["adversarial_losses"] = sums + added

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """Moves the temperatures by the classes' mean losses."""
        self.state["epoch"] += 1
        done = int(self.state["epoch"])
        rate = self.rate * 0.1 ** sum(done >= drop for drop in self.drops)
        sums = self.state["adversarial_losses"]
        for name, of_class in (("adv", sums[0]), ("nat", train.clean_loss)):
            before = self.state[f"temperature_{name}"]
            self.state[f"temperature_{name}"] = self._moved(before, of_class, train.n, rate)
        self.state["adversarial_losses"] = torch.zeros_like(sums)

    def _moved(self, before: Tensor, sums: Tensor, n: Tensor, rate: float) -> Tensor:
        """The temperatures (K,) after a step; those of absent classes as before.

        sums: the classes' losses. n: their images.
        """
        present = n > 0
        means = torch.where(present, sums / n.clamp_min(1), 0.0)
        gap = torch.where(present, means - means.sum() / present.sum().clamp_min(1), 0.0)
        largest = gap.abs().max()
        step = rate * gap / torch.where(largest > 0, largest, 1.0)  # no gap moves nothing
        return (before - step).clamp(self.coolest, self.warmest)
