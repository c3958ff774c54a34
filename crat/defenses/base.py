"""What a training method is: it crafts, then returns a loss and class-wise statistics. It never steps the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class ClassStats:
    """Class-wise sums of one epoch, on the device; read once an epoch.

    n, clean, robust, loss: (K,) sums of samples, of clean-correct, of adversarially correct and of the loss;
    clean is NaN where the method never sees clean logits. confusion (K, K): true class x prediction under attack;
    soft_confusion: the same summed in probabilities. `robust` counts the training adversarial examples themselves
    (CFA's t_k), whether or not the clean image was right.
    """

    n: Tensor
    clean: Tensor
    robust: Tensor
    loss: Tensor
    confusion: Tensor
    soft_confusion: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, y: Tensor, losses: Tensor, adv_logits: Tensor, clean_logits: Tensor | None = None) -> ClassStats:
        """Statistics of one batch: y (B,), losses (B,), logits (B, K). Small matrix products, no host sync."""
        with torch.autocast(y.device.type, enabled=False):  # bfloat16 does not count beyond 256
            return cls._of(y, losses, adv_logits.detach().float(), clean_logits)

    @classmethod
    def _of(cls, y: Tensor, losses: Tensor, adv_logits: Tensor, clean_logits: Tensor | None) -> ClassStats:
        n_classes = adv_logits.shape[1]
        member = _one_hot(y, n_classes)
        predicted = adv_logits.argmax(1)
        clean = torch.full_like(y, float("nan"), dtype=torch.float32)
        if clean_logits is not None:
            clean = (clean_logits.argmax(1) == y).float()
        columns = torch.stack([torch.ones_like(clean), clean, (predicted == y).float(), losses.detach().float()], 1)
        n, clean, robust, loss = _by_class(member, columns).unbind(1)
        confusion = member.T @ _one_hot(predicted, n_classes)
        return cls(n, clean, robust, loss, confusion, member.T @ adv_logits.softmax(1))

    def __add__(self, other: ClassStats) -> ClassStats:
        return ClassStats(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def judged_stats(y: Tensor, clean: Tensor, robust: Tensor) -> ClassStats:
    """Sums of judged images, logits (N, K); `robust` is R_k's count: clean-correct and correct under attack."""
    stats = ClassStats.of(y, F.cross_entropy(robust, y, reduction="none"), robust, clean)
    both = (clean.argmax(1) == y) & (robust.argmax(1) == y)
    stats.robust = y[both].bincount(minlength=clean.shape[1]).float()
    return stats


def _one_hot(y: Tensor, n_classes: int) -> Tensor:
    return (y[:, None] == torch.arange(n_classes, device=y.device)).float()


def _by_class(member: Tensor, columns: Tensor) -> Tensor:
    """Sums of columns (B, M) by class, (K, M); a NaN column stays NaN in the classes that are present."""
    sums = member.T @ columns.nan_to_num()
    missing = columns.isnan().any(0)
    return sums.masked_fill(missing[None, :], float("nan"))


class Defense(Protocol):
    """A training method. `revision` is raised whenever its numbers may change: stored runs are then trained anew."""

    revision: int
    head: str
    selects_on: str  # "robust" or "clean": what the best epoch is chosen by, on validation

    def craft(
        self, model: nn.Module, x: Tensor, y: Tensor, *, scale: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """The inner maximisation, BatchNorm as the paper has it; `scale` shrinks eps and step during a warm-up."""
        ...

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, ClassStats]:
        """The scalar to descend and the batch's statistics; the model is in train mode."""
        ...

    def class_probs(self) -> Tensor | None:
        """Probabilities (K,) with which classes are drawn, or None for plain epochs."""
        ...

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """The place where a class-wise policy moves."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that epoch_end changes."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what state_dict gave."""
        ...


class Stateless:
    """The part of a Defense that methods without a class-wise policy share."""

    head = "linear"
    selects_on = "robust"

    def class_probs(self) -> Tensor | None:
        """Plain epochs."""
        return None

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """Nothing moves."""

    def state_dict(self) -> dict[str, Tensor]:
        """No state."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to take back."""
