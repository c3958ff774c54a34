"""Adversarial training with one step: FGSM, FGSM-RS, N-FGSM, GradAlign and FGSM-PGI.

They differ in where the one step starts, in whether it is clipped, and in a term of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat import distributed
from crat.attacks.frozen import frozen
from crat.attacks.logits import forward_backward
from crat.attacks.noise import Source, drawing, uniform
from crat.attacks.objectives import full
from crat.attacks.threat import Budget, length, per_sample, project, uniform_start
from crat.config import ConfigError
from crat.defenses.base import Defense, Row, Task, checked
from crat.defenses.carried import carried, carry, nothing_carried
from crat.defenses.stats import ClassStats

ONE_STEP = Row("steps", 1, 1, 1, "the method's own: the steps of the run are not read")
LIKE_PGD_AT = (
    Row(
        "BatchNorm while crafting",
        None,
        "train, and the step's pass moves the running statistics",
        "train, the running statistics left alone",
        "as in pgd_at",
    ),
    Row(
        "cross-entropy that is ascended",
        None,
        "as it is",
        'its log-odds (as it is under "moving")',
        "as in pgd_at",
    ),
)


@dataclass
class FGSM(Defense):
    """min E[CE(f(x'), y)] with x' one signed step from x: what falls to catastrophic overfitting.

    The start is x + U(-noise eps, noise eps), cut to [0, 1], and the step has the length `step`
    eps, whatever the run's step_size and steps say. Without noise it is the adversarial training of
    Goodfellow et al. 2015, but for their clean half of the loss.
    """

    noise: float = 0.0  # half the width of the start's noise, in units of eps
    step: float = 1.0  # the length of the step, in units of eps
    clipped: bool = True  # whether the perturbation is cut to eps; the box [0, 1] always holds

    paper = "Goodfellow et al. 2015 (ICLR), section 6, without their clean half of the loss"
    code = (
        "tml-epfl/understanding-fast-adv-training@ceed49440bfc35a676375b783eaba5940e583bcc "
        "(train.py, --attack=fgsm --attack_init=zero)"
    )
    start = "none"
    rows: ClassVar[tuple[Row, ...]] = (
        Row("noise", 0.0, 0.0),
        Row("step", 1.0, 1.25, 1.0, "without a start the clipping makes the two the same"),
        ONE_STEP,
        Row("epochs", None, 30),
        Row("lr", None, 0.2, why="highest rate of the cycle"),
        *LIKE_PGD_AT,
    )

    def prepare(self, task: Task) -> None:
        """Raises ConfigError where noise, step or the weight of a term is below 0."""
        for name in ("noise", "step", "weight"):
            value = getattr(self, name, 0.0)
            checked(name, value, lambda v: 0 <= v < inf, "at least 0 and finite")

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """One step along the sign of the gradient, from the noisy start."""
        radius = per_sample(self.budget(y, scale)[0], x)
        x_start = x
        if self.noise:
            x_start = uniform_start(x, self.noise * radius, "Linf", drawing(generator, x))
        return self._stepped(x_start, x, self._slope(model, x_start, y), radius)

    def _slope(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of each image's loss at x, shaped like x."""
        with frozen(model, self.attack.batch_norm):
            return forward_backward(model, x, y, self.ascended())[0]

    def _stepped(self, x_start: Tensor, x: Tensor, slope: Tensor, radius: Tensor | float) -> Tensor:
        x_adv = x_start + self.step * radius * slope.sign()
        return project(x_adv, x, radius, "Linf") if self.clipped else x_adv.clamp(0, 1)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean cross-entropy of the adversarial images; no clean pass, so no clean count."""
        logits = full(model(x_adv))
        losses = F.cross_entropy(logits, y, reduction="none")
        return losses.mean(), ClassStats.of(y, losses, logits)


@dataclass
class FGSMRS(FGSM):
    """FGSM from a random start: a uniform point of the ball, then one step of 1.25 eps, clipped."""

    noise: float = 1.0
    step: float = 1.25

    paper = "Wong et al. 2020 (ICLR); the paper itself was not read, its code was"
    code = (
        "locuslab/fast_adversarial@54f728755e71857b632882ba6d6cef22f56e2172 (CIFAR10/train_fgsm.py)"
    )
    start = "uniform"
    rows = (
        Row("noise", None, 1.0),
        Row("step", None, 1.25),
        Row("clipped", None, True),
        ONE_STEP,
        Row("epochs", None, 15),
        Row("lr", None, 0.2, why="highest rate of the cycle"),
        Row("weight_decay", None, 5e-4),
        Row("batch_size", None, 128),
        Row(
            "the end of a training",
            None,
            "with --early-stop as soon as one batch loses 20 points under PGD-5",
            "never: the best epoch is kept beside the last",
        ),
        *LIKE_PGD_AT,
    )


@dataclass
class NFGSM(FGSM):
    """FGSM from a start with twice the noise and no clipping: x' leaves the ball, by up to 2 eps.

    The images of the training lie up to noise + step = 3 eps from x. The threat stays eps.
    """

    noise: float = 2.0
    clipped: bool = False

    paper = "de Jorge et al. 2022 (NeurIPS); the paper itself was not read, its code was"
    code = "pdejorge/N-FGSM@0a9e4f040b89a4bcd85763a34dea7866416927a2 (train.py)"
    start = "uniform"
    rows = (
        Row("noise", None, 2.0),
        Row("step", None, 1.0),
        Row("clipped", None, False),
        ONE_STEP,
        Row("epochs", None, 30),
        Row("lr", None, 0.2, why="highest rate of the cycle"),
        Row("weight_decay", None, 5e-4),
        Row("batch_size", None, 128),
        *LIKE_PGD_AT,
    )


@dataclass
class GradAlign(FGSM):
    """FGSM whose loss asks the gradients at x and at a random point of the ball to be parallel.

    loss = CE(f(x'), y) + lambda (1 - mean_i cos(g_i(x), g_i(x + eta))), eta uniform in the ball and
    not cut to [0, 1]; g(x) is the attack's own gradient and a constant, as in the code. The term
    needs the gradient of a gradient: the dearest step of the family.
    """

    weight: float = 0.2  # lambda, of the code for eps 8/255 on CIFAR-10

    paper = "Andriushchenko and Flammarion 2020 (NeurIPS); the code was read, the paper was not"
    code = (
        "tml-epfl/understanding-fast-adv-training@ceed49440bfc35a676375b783eaba5940e583bcc "
        "(train.py, sh/exps_diff_eps_cifar10.sh)"
    )
    rows = (
        Row("weight", None, 0.2, why="the code's scripts grow it with eps, from 0.027 to 2.0"),
        Row("noise", None, 0.0),
        Row("step", None, 1.25, 1.0, "without a start the clipping makes the two the same"),
        ONE_STEP,
        Row("epochs", None, 30),
        Row("lr", None, 0.3, why="highest rate of the cycle"),
        Row("weight_decay", None, 5e-4),
        Row("batch_size", None, 128),
        Row(
            "images without a gradient",
            None,
            "left out of the mean",
            "enter it with a cosine of 0",
            "their number would have to be read from the device; the log-odds leave none",
        ),
        *LIKE_PGD_AT,
    )

    def prepare(self, task: Task) -> None:
        """Raises ConfigError where a setting is below 0, and in several processes."""
        super().prepare(task)
        if distributed.world() > 1:
            raise ConfigError(
                "grad_align trains in one process: the statistics that several share have no "
                "gradient of a gradient"
            )

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """FGSM; keeps its gradient and the random point, which `loss` takes."""
        radius = per_sample(self.budget(y, scale)[0], x)
        draws = drawing(generator, x)
        self.beside = x + radius * (2 * uniform(tuple(x.shape), x, draws) - 1)
        self.slope = self._slope(model, x, y)
        return self._stepped(x, x, self.slope, radius)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean cross-entropy of the adversarial images, and the misalignment of the gradients.

        The order of the passes is the code's: x', then the random point.
        """
        loss, stats = super().loss(model, x, x_adv, y)
        beside = self.beside.detach().requires_grad_()
        total = self.ascended()(full(model(beside)), y).sum()
        (other,) = torch.autograd.grad(total, beside, create_graph=True)
        return loss + self.weight * (1 - cosines(self.slope, other).mean()), stats


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each image's two gradients (B, C, H, W), (B,); 0 where one of them is zero."""
    unit_a = a / length(a).clamp_min(1e-12)
    unit_b = b / length(b).clamp_min(1e-12)
    return (unit_a * unit_b).flatten(1).sum(1)


@dataclass
class FGSMPGI(FGSM):
    """FGSM that starts where the last batch's perturbations ended, and stays close to that start.

    loss = CE(f(x'), y) + weight mean |f(x') - f(x + prior)|^2, both with their gradient. The prior
    of the image at place i of a batch is the perturbation of the image at place i of the batch
    before: the paper's FGSM-BP, for which no index of an image is needed. Its variants with a store
    of a perturbation for each training image (EP, and MEP with a momentum, which is the released
    one) are left out: the store has the size of the training set.
    """

    weight: float = 10.0  # of the squared distance, a mean over images and classes

    paper = "Jia et al. 2022 (ECCV), the prior of the last batch; the code was read, of its MEP"
    code = "jiaxiaojunQAQ/FGSM-PGI@fc15cfeffd48f8ebebaea7c7b46b72b1c99bd7d3 (FGSM_MEP.py)"
    rows = (
        Row("weight", None, 10.0),
        Row("step", None, 1.0),
        ONE_STEP,
        Row(
            "prior",
            None,
            "of the same image, with a momentum over epochs, begun anew every 40",
            "of the same place in the last batch, begun at 0",
            "the released code does not move the prior with the image's crop and flip",
        ),
        Row("label smoothing", None, "0.6 for the true class", "none", "as in all methods here"),
        Row("epochs", None, 110),
        Row("lr", None, 0.1),
        Row("weight_decay", None, 5e-4),
        Row("batch_size", None, 128),
        *LIKE_PGD_AT,
    )

    def prepare(self, task: Task) -> None:
        """Begins state["prior"] with zeros. Raises ConfigError where a setting is below 0."""
        super().prepare(task)
        self.state["prior"] = nothing_carried(task.batch_size, task.image_shape)

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """One step from the prior, whose place the new perturbation takes."""
        radius = per_sample(self.budget(y, scale)[0], x)
        self.begun = project(x + carried(self.state["prior"], y), x, radius, "Linf")
        x_adv = self._stepped(self.begun, x, self._slope(model, self.begun, y), radius)
        self.state["prior"] = carry(self.state["prior"], x_adv - x)
        return x_adv

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean cross-entropy of the adversarial images, and the distance of the two answers."""
        begun = full(model(self.begun))
        logits = full(model(x_adv))
        losses = F.cross_entropy(logits, y, reduction="none")
        moved = F.mse_loss(logits, begun)
        return losses.mean() + self.weight * moved, ClassStats.of(y, losses, logits)
