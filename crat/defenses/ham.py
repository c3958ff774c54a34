"""HAM, hard adversarial example mining (Lin et al. 2025, TIFS): the loss is that of hard images.

Easy images leave the attack after three steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat import distributed
from crat.attacks.frozen import frozen
from crat.attacks.gradient import ascend
from crat.attacks.noise import Source, drawing
from crat.attacks.objectives import full
from crat.attacks.threat import Budget, over_images, per_sample, uniform_start
from crat.config import ConfigError
from crat.defenses.base import Defense, Row, Task, Words, checked
from crat.defenses.stats import ClassStats
from crat.distributed import whole

BEGIN, EPOCHS = 49, 120  # the released script: mining from the 50th of 120 epochs on


@dataclass
class HAM(Defense):
    """mean of CE(f(x'), y) over the hard images: those that `classify_step` steps of PGD turn.

    The others are easy: they are left where they are, and the loss is not theirs. For `begin`
    epochs all images count as hard, which is AT, crafted in eval mode. Without a hard image the
    loss is 0. An attack of fewer steps judges by its last iterate.

    What it costs: the step has the batch's full shape, so that it needs no wait for the device.
    Easy images weigh nothing, but go through all steps of the attack and the training pass: a step
    costs what one of AT costs, and a forward pass more. compacts=True takes them out of the batch,
    as the released code does, which is the method's gain in time. Then BatchNorm sees hard images
    only, the step waits for the device, no GPU records it, and one process trains alone.
    """

    classify_step: int = 3
    begin: int | None = None  # epochs of AT before; None: the code's 49 of 120, in proportion
    compacts: bool = False

    paper = "Lin et al. 2025 (IEEE TIFS 20, arXiv 2308.01823): both abstracts"
    code = (
        "yyl-github-1896/HAM@e3ee5ffe52e88d5f392cfeed1ceea512bb8258c4 (GAIRAT_wrong_early_time.py, "
        "GA_PGD_early2 of attack_generator.py)"
    )
    batch_norm = "eval"
    variants = ({"compacts": False}, {"compacts": True})

    @property
    def waits(self) -> str:
        """With compacts=True the number of images that go on is a tensor's value."""
        return "the easy images are taken out of the batch" if self.compacts else ""

    def prepare(self, task: Task) -> None:
        """Raises ConfigError on a setting out of range, or with compacts in several processes."""
        checked(
            "classify_step of ham",
            self.classify_step,
            lambda s: s >= 1,
            "at least 1, for images are judged under attack",
        )
        checked("begin of ham", self.begin, lambda b: b is None or b >= 0, "at least 0")
        if self.compacts and distributed.world() > 1:
            raise ConfigError("compacts of ham needs one process: the parts differ in length")
        self.judged_at = min(self.classify_step, self.attack.steps)
        self.first = round(BEGIN * task.epochs / EPOCHS) if self.begin is None else self.begin
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
        """PGD on the cross-entropy; the easy images stay at the iterate by which they were judged.

        Keeps the logits of that iterate for `loss`.
        """
        a = self.attack
        radius, step = (per_sample(value, x) for value in self.budget(y, scale))
        further = (radius, step, a.steps - self.judged_at, a.norm, self.ascended())
        with frozen(model, a.batch_norm):
            start = uniform_start(x, radius, a.norm, drawing(generator, x))
            first = (radius, step, self.judged_at, a.norm, self.ascended())
            x_adv = ascend(model, x, start, y, *first)
            with torch.no_grad():
                self.early = full(model(x_adv))
            hard = self.hard(y)
            if not self.compacts:
                far = ascend(model, x, x_adv, y, *further)
                return torch.where(over_images(hard, x), far, x_adv)
            left = hard.nonzero()[:, 0]
            if len(left) == 0:
                return x_adv
            far = ascend(model, x[left], x_adv[left], y[left], *further)
        return x_adv.index_copy(0, left, far)

    def hard(self, y: Tensor) -> Tensor:
        """(B,) bool: the images that were wrong at `classify_step`, and all before `begin`."""
        return (self.early.argmax(1) != y) | (self.state["epoch"] < self.first)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The mean over the hard images of the batch that was crafted last.

        The statistics count an easy image as right under attack, with a loss of 0.
        Raises ValueError where another number of images was crafted last.
        """
        if len(getattr(self, "early", ())) != len(y):
            raise ValueError("the loss of ham is of the images that it crafted last")
        hard = self.hard(y)
        weight = hard.to(self.early)
        taken = torch.arange(len(y), device=y.device)
        if self.compacts and hard.any():
            taken = hard.nonzero()[:, 0]
        logits = full(model(x_adv[taken] if len(taken) < len(y) else x_adv))
        losses = F.cross_entropy(logits, y[taken], reduction="none") * weight[taken]
        losses = torch.zeros_like(weight).to(losses).index_copy(0, taken, losses)
        outputs = self.early.to(logits).index_copy(0, taken, logits.detach())
        outputs = torch.where(hard[:, None], outputs, self.early.to(logits))
        every = whole(weight)
        loss = len(every) / len(weight) * losses.sum() / every.sum().clamp_min(1)
        return loss, ClassStats.of(y, losses, outputs)

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """Counts the epochs, behind which mining begins."""
        self.state["epoch"] += 1

    @classmethod
    def table(cls, **chosen: Any) -> tuple[Row, ...]:
        """What BatchNorm sees depends on compacts."""
        compacts = bool(chosen.get("compacts", cls.compacts))
        return (
            Row(
                "compacts",
                None,
                True,
                why="False keeps the step's shape. Behind `begin`, a quarter of the images hard, "
                "small_cnn, 10 steps, one core of a CPU: a step takes 0.93 of pgd_at's time, which "
                "crafts in train mode, with True 0.52",
            ),
            Row(
                "BatchNorm's batch in training",
                None,
                "the hard images",
                "the hard images" if compacts else "all images, the easy ones without weight",
            ),
            Row("classify_step", None, 3, why="5 on SVHN"),
            Row(
                "begin",
                None,
                BEGIN,
                Words("49 of 120, in proportion"),
                "the script resumes a run of AT at its 48th epoch, and mines from the 50th on",
            ),
            Row(
                "weights of hard images",
                "by the steps that they need to cross the boundary (arXiv), reweighted (TIFS)",
                "1",
                "1",
                "the formula was not seen; in the code the weights are computed in lines that are "
                "commented out. No step grows for hard images, in the code or in the abstracts",
            ),
            Row(
                "easy images that stay",
                None,
                "0.3 of them on CIFAR-100 (keep_bili_high_conf)",
                "none",
                "the file that reads the setting, attack_generator_cifar100.py, is not in the "
                "repository; nor are those of SVHN and Imagenette",
            ),
            Row(
                "no hard image in a batch",
                None,
                "an error",
                "loss 0",
                "labels and logits differ in number; the script of CIFAR-100 has loss 0",
            ),
            Row(
                "network that is attacked",
                None,
                "normalised by CIFAR-100's mean and deviation",
                "the one that is trained",
                "the training pass has CIFAR-10's: the examples are another network's there",
            ),
            Row(
                "passes of an attack",
                None,
                "two a step, and two before",
                "one a step, and one to judge",
                "most of the code's outputs are not read",
            ),
            Row("eps", None, "0.031"),
            Row("step_size", None, "0.007"),
            Row("steps", None, 10),
            Row("model", None, "preact_resnet18"),
            Row("epochs", None, EPOCHS),
            Row("lr", None, 0.1),
            Row(
                "schedule",
                None,
                Words("0.1, 0.01, 0.005 of it from epochs 60, 90, 110 of 120"),
                why="one for all",
            ),
            Row("weight_decay", None, 2e-4),
            Row("batch_size", None, 128),
            Row("best epoch chosen on", None, "test", "validation", "one rule for all"),
        )
