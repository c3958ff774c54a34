"""Friendly adversarial training (Zhang et al. 2020, ICML): the attack stops soon after success."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.frozen import frozen
from crat.attacks.logits import forward_backward
from crat.attacks.noise import Drawing, Source, drawing, normal
from crat.attacks.objectives import full
from crat.attacks.threat import Budget, over_images, per_sample, project, uniform_start
from crat.defenses.base import Defense, Row, Task, Words
from crat.defenses.stats import ClassStats
from crat.distributed import whole


@dataclass
class FAT(Defense):
    """Cross-entropy of adversarial examples whose ascent ends tau steps after the first error.

    All samples stay in the batch, and those that stopped do not move: no loop over samples, no host
    synchronisation.
    Source: Zhang et al. 2020, Algorithm 1.
    """

    # None: 0, 1 and 2 from 0, 50/120 and 90/120 of the epochs on, as in the code
    tau: int | None = None
    omega: float = 0.001  # sd of the noise that each step adds
    resumes: bool = True  # a sample that is right again goes on; CFA's own FAT stops it for good

    paper = "Zhang et al. 2020 (ICML), Algorithm 1, section 5"
    code = (
        "zjfheart/Friendly-Adversarial-Training@80a064074891775146bca8c4d8a6b99c1499285a "
        "(earlystop.py, FAT.py)"
    )
    batch_norm = "eval"
    rows = (
        Row(
            "tau",
            None,
            Words("0, 1, 2 from epochs 1, 51, 91 of 120"),
            Words("the same, in proportion"),
        ),
        Row("omega", None, 0.001),
        Row("eps", None, "0.031"),
        Row("step_size", None, "0.007"),
        Row("steps", None, 10),
        Row("model", None, "wrn_34_10", why="the code's WRN-32-10 counts its layers otherwise"),
        Row("epochs", None, 120),
        Row("lr", None, 0.1),
        Row(
            "schedule",
            None,
            Words("0.1, 0.01, 0.005 of it from epochs 60, 90, 110 of 120"),
            why="one for all",
        ),
        Row("weight_decay", None, 2e-4),
        Row(
            "order of the batch",
            None,
            "by when a sample stopped",
            "kept",
            "only the rounding of sums changes",
        ),
    )

    @property
    def waits(self) -> str:
        """Under BatchNorm "moving" an attack ends when no image goes on."""
        if self.attack.batch_norm != "moving":
            return ""
        return "its attack ends when no image goes on any more"

    def prepare(self, task: Task) -> None:
        """Begins state["epoch"], by which tau grows."""
        self.epochs = task.epochs
        self.state["epoch"] = torch.zeros((), dtype=torch.long)

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """PGD on the cross-entropy, each sample until tau steps behind its first error."""
        a = self.attack
        draws = drawing(generator, x)
        eps, step = (per_sample(value, x) for value in self.budget(y, scale))
        x_adv = uniform_start(x, eps, a.norm, draws)
        slack = torch.zeros_like(y) + self.slack()
        with frozen(model, a.batch_norm):
            for _ in range(a.steps):
                gradient, _, logits = forward_backward(model, x_adv, y, self.ascended())
                wrong = logits.argmax(1) != y
                goes = (slack > 0) | (~wrong & self.resumes)
                if (
                    a.batch_norm == "moving" and not whole(goes.long()).any()
                ):  # CFA's code: each pass counts there
                    break
                slack -= (wrong & goes).long()
                stepped = project(
                    x_adv + step * gradient.sign() + self._noise(x, draws), x, eps, a.norm
                )
                x_adv = torch.where(over_images(goes, x), stepped, x_adv)
            else:
                if a.batch_norm == "moving":
                    model(x_adv)
        return x_adv

    def _noise(self, x: Tensor, draws: Drawing) -> Tensor | float:
        return self.omega * normal(tuple(x.shape), x, draws) if self.omega else 0.0

    def slack(self) -> Tensor | int:
        """tau of this epoch; a tensor where it changes, so that nothing waits for the device."""
        if self.tau is not None:
            return self.tau
        done = 120 * self.state["epoch"]
        return (done >= 50 * self.epochs).long() + (done >= 90 * self.epochs).long()

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean cross-entropy of the friendly adversarial images."""
        logits = full(model(x_adv))
        losses = F.cross_entropy(logits, y, reduction="none")
        return losses.mean(), ClassStats.of(y, losses, logits)

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """Counts the epochs, by which tau grows."""
        self.state["epoch"] += 1
