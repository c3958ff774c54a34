"""Class-wise sums of an epoch, which move class-wise policies and fill history.csv."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crat.attacks.objectives import full, kl_divergence


@dataclass
class ClassStats:
    """Class-wise sums of one epoch, on the device; read once an epoch.

    n, clean, robust, loss: (K,), sums of samples, of clean-correct, of adversarially correct and of
        the loss; clean is NaN where the method never sees clean logits.
    clean_loss, divergence: (K,), sums of CE(f(x), y) and KL(p(x) || p(x')), NaN likewise.
    confusion: (K, K), true class x prediction under attack.
    soft_confusion: the same summed in probabilities.
    `robust` counts the training adversarial examples themselves (CFA's t_k), whether or not the
    clean image was right.
    """

    n: Tensor
    clean: Tensor
    robust: Tensor
    loss: Tensor
    clean_loss: Tensor
    divergence: Tensor
    confusion: Tensor
    soft_confusion: Tensor

    @classmethod
    def zeros(cls, n_classes: int, like: Tensor) -> ClassStats:
        """Sums of nothing, in the device and precision of a tensor."""
        of_class = [like.new_zeros(n_classes) for _ in range(6)]
        return cls(*of_class, *[like.new_zeros(n_classes, n_classes) for _ in range(2)])

    @classmethod
    @torch.no_grad()
    def of(
        cls, y: Tensor, losses: Tensor, adv_logits: Tensor, clean_logits: Tensor | None = None
    ) -> ClassStats:
        """Statistics of one batch: y (B,), losses (B,), logits (B, K).

        Small matrix products, no host sync.
        """
        with torch.autocast(y.device.type, enabled=False):  # bfloat16 does not count beyond 256
            clean = None if clean_logits is None else full(clean_logits.detach())
            return cls._of(y, losses, full(adv_logits.detach()), clean)

    @classmethod
    def _of(
        cls, y: Tensor, losses: Tensor, adv_logits: Tensor, clean_logits: Tensor | None
    ) -> ClassStats:
        n_classes = adv_logits.shape[1]
        member = _one_hot(y, n_classes).to(adv_logits)
        predicted = adv_logits.argmax(1)
        counted = [torch.ones_like(y), predicted == y, losses.detach()]
        of_clean = [torch.full_like(losses, float("nan"))] * 3
        if clean_logits is not None:
            clean_loss = F.cross_entropy(clean_logits, y, reduction="none")
            of_clean = [
                clean_logits.argmax(1) == y,
                clean_loss,
                kl_divergence(clean_logits, adv_logits),
            ]
        columns = torch.stack([column.to(adv_logits) for column in counted + of_clean], 1)
        n, robust, loss, clean, clean_loss, divergence = _by_class(member, columns).unbind(1)
        confusion = member.T @ _one_hot(predicted, n_classes).to(adv_logits)
        soft = member.T @ adv_logits.softmax(1)
        return cls(n, clean, robust, loss, clean_loss, divergence, confusion, soft)

    def __add__(self, other: ClassStats) -> ClassStats:
        return ClassStats(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def times(self, factor: float) -> ClassStats:
        """All sums times a number."""
        return ClassStats(*(factor * value for value in vars(self).values()))

    def accuracy(self, which: str = "robust", absent: float = float("nan")) -> Tensor:
        """Share (K,) of `which` ("robust" or "clean") among a class's samples.

        `absent` where there were none.
        """
        return torch.where(self.n > 0, getattr(self, which) / self.n.clamp_min(1), absent)


def judged_stats(y: Tensor, clean: Tensor, robust: Tensor) -> ClassStats:
    """Sums of judged images, logits (N, K).

    `robust` is R_k's count: clean-correct and correct under attack.
    """
    stats = ClassStats.of(y, F.cross_entropy(robust, y, reduction="none"), robust, clean)
    both = (clean.argmax(1) == y) & (robust.argmax(1) == y)
    stats.robust = y[both].bincount(minlength=clean.shape[1]).float()
    return stats


def class_means(values: Tensor, y: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """The number of samples (K,) and the mean of their values (B,), per class (K,).

    The mean is 0 where a class has none.
    """
    member = (y[:, None] == torch.arange(n_classes, device=y.device)).to(values)
    n = member.sum(0)
    return n, (member * values[:, None]).sum(0) / n.clamp_min(1)


def _one_hot(y: Tensor, n_classes: int) -> Tensor:
    return (y[:, None] == torch.arange(n_classes, device=y.device)).float()


def _by_class(member: Tensor, columns: Tensor) -> Tensor:
    """Sums of columns (B, M) by class, (K, M).

    A NaN column stays NaN in the classes that are present.
    """
    sums = member.T @ columns.nan_to_num()
    missing = columns.isnan().any(0)
    return sums.masked_fill(missing[None, :], float("nan"))
