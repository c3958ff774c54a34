"""What distillations share: the teacher's answers, and a student's divergence from soft labels.

A teacher is a trained network that the config names (`teacher`, crat.training.teacher). It is
frozen and in eval mode, and answers clean images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crat.attacks.noise import Source
from crat.attacks.objectives import Objective, full, kl_divergence
from crat.attacks.threat import Budget
from crat.config import ConfigError
from crat.defenses.base import Defense, Task

ROOM = 1e-5  # released code: log(q + ROOM) stays finite where q is 0


@dataclass
class Distilled(Defense):
    """A method that learns from a teacher. The teacher is no part of its state."""

    taught = True

    def prepare(self, task: Task) -> None:
        """Takes the teacher over."""
        self.teacher: nn.Module | None = task.teacher

    def taught_logits(self, x: Tensor) -> Tensor:
        """The teacher's logits (B, K) of clean images, without a gradient.

        Raises ConfigError where the method was made without a teacher.
        """
        if self.teacher is None:
            name = type(self).__name__.lower()
            raise ConfigError(f"{name} learns from a teacher, and its task has none")
        with torch.no_grad():
            return full(self.teacher(x))

    def ascend(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        objective: Objective,
        scale: Budget,
        generator: Source,
    ) -> Tensor:
        """The method's attack within its budget, on an objective that knows the labels."""
        eps, step = self.budget(y, scale)
        return self.attack.perturb(
            model, x, y, eps=eps, step_size=step, objective=objective, generator=generator
        )


def soft_divergence(taught: Tensor, logits: Tensor, released: bool = False) -> Tensor:
    """KL(softmax(taught) || softmax(logits)) per sample, (B, K), (B, K) -> (B,).

    released: as ABSLD's and Fair-RSLAD's code has it, sum_k q_k (log(q_k + 1e-5) - log p_k) over
        K, for its mean is over images and classes. The gradient is a K-th of the KL's.
    """
    if not released:
        return kl_divergence(taught, logits)
    q = taught.softmax(1)
    return (q * ((q + ROOM).log() - logits.log_softmax(1))).mean(1)


def by_class(values: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """The sums (K,) of values (B,) by their labels y (B,)."""
    return values.new_zeros(n_classes).index_add(0, y, values)
