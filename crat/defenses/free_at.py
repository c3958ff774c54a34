"""Free adversarial training (Shafahi et al. 2019): one gradient for the weights and the images."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.noise import Source
from crat.attacks.objectives import full
from crat.attacks.threat import Budget, budget
from crat.defenses.base import Defense, Row, Task, checked
from crat.defenses.carried import carried, carry, nothing_carried
from crat.defenses.stats import ClassStats


@dataclass
class FreeAT(Defense):
    """Each batch is trained on m times; each pass back moves the weights and the perturbation.

    The perturbation of a place in the batch climbs by one step of eps after each update, is cut to
    [-eps, eps] and lasts over the whole training: the next batch begins with it. An epoch makes m
    times the updates of another method's, so equal time is epochs / m.
    """

    replays: int = 8  # m

    paper = "Shafahi et al. 2019 (NeurIPS); the paper itself was not read, its code was"
    code = "ashafahi/free_adv_train@c42cac2c4711bc65363f836a42e883b6a65a4c40 (free_train.py)"
    start = "none"
    rows = (
        Row("replays", None, 8),
        Row("eps", None, "8/255"),
        Row("step of the perturbation", None, "eps", why="the steps of the run are not read"),
        Row("steps", 1, 1, 1, "a step an update"),
        Row("batch_size", None, 128),
        Row("lr", None, 0.1),
        Row("weight_decay", None, 2e-4),
        Row("updates", None, 80000, why="8 epochs of 128 images are 3,125 batches, 25,000 updates"),
        Row("model", None, "wrn_34_10", why="the code's WRN-32-10 counts its layers otherwise"),
        Row(
            "rate",
            None,
            "by the update",
            "by the batch",
            "the m updates of a batch have one rate; m is small beside the number of updates",
        ),
    )

    @property
    def updates_a_batch(self) -> int:
        """m."""
        return self.replays

    def prepare(self, task: Task) -> None:
        """Begins state["delta"] with zeros. Raises ConfigError where m is below 1."""
        checked("replays", self.replays, lambda m: m >= 1, "at least 1")
        self.state["delta"] = nothing_carried(task.batch_size, task.image_shape)

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """The images with the carried perturbations, cut to [0, 1]; nothing is computed."""
        self.radius = budget(self.budget(y, scale)[0], x)
        self.delta = self._cut(carried(self.state["delta"], y).to(x))
        return (x + self.delta).clamp(0, 1)

    def _cut(self, delta: Tensor) -> Tensor:
        return delta.maximum(-self.radius).minimum(self.radius)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean cross-entropy; its pass back leaves the images' gradient for `after_step`."""
        self.climbed = x_adv.detach().requires_grad_()
        logits = full(model(self.climbed))
        losses = F.cross_entropy(logits, y, reduction="none")
        return losses.mean(), ClassStats.of(y, losses, logits)

    def after_step(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """The perturbations climb by the gradient of the update that was just made.

        A pixel that left [0, 1] stays, as the code's clipping gives it no gradient. Without a pass
        back nothing moves.
        """
        gradient = self.climbed.grad
        if gradient is None:
            return
        moved = x + self.delta
        inside = (moved >= 0) & (moved <= 1)
        climbed = self.delta + self.radius * gradient.sign() * inside
        self.state["delta"] = carry(self.state["delta"], self._cut(climbed))
