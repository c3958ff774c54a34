"""The objectives that attacks ascend: (logits (N, K), y (N,)) -> (N,), larger is more wrong.

Each is a frozen dataclass, so that its repr names it in cards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]


def full(logits: Tensor) -> Tensor:
    """Logits for a loss: bfloat16 and float16 as float32; float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def true_logit(logits: Tensor, y: Tensor) -> Tensor:
    """z_y, shape (N,)."""
    return logits.gather(1, y[:, None]).squeeze(1)


def other_logits(logits: Tensor, y: Tensor) -> Tensor:
    """The logits with -inf in the place of the true class, shape (N, K)."""
    return logits.scatter(1, y[:, None], float("-inf"))


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of softmax(z / T), unsaturated: PGD's (T = 1), Temperature-PGD's.

    The value is m = logsumexp_{j != y}(z_j / T) - z_y / T, of which the cross-entropy is
    softplus(m): strictly increasing, so each sample's gradient has the same direction. In float32
    cross-entropy itself loses the part of its gradient that goes through z_y once p_y rounds to 1,
    from a margin z_y - z_j of 17 T on, and all of it from 104 T on, where sign(0) = 0 stops the
    attack. Where BatchNorm normalises by the batch, samples meet in each other's gradients, and the
    two forms weigh them differently (PlainCrossEntropy).
    Source: Tian et al. 2021 (temperature in the confidence distribution); the safe form is ours.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature!r}")

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """(N, K), (N,) -> (N,)."""
        z = logits / self.temperature
        return other_logits(z, y).logsumexp(1) - true_logit(z, y)


@dataclass(frozen=True)
class PlainCrossEntropy:
    """-log p_y as all released code ascends it; 0 where p_y rounds to 1.

    `CrossEntropy` says what its gradient loses there.
    """

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """(N, K), (N,) -> (N,)."""
        return F.cross_entropy(logits, y, reduction="none")


@dataclass(frozen=True)
class Margin:
    """max_{j != y} z_j - z_y, above 0 exactly where the sample is misclassified.

    The limit T -> 0 of Temperature-PGD.
    Source: Carlini and Wagner 2017, as the L-inf "CW" columns of the papers use it.
    """

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """(N, K), (N,) -> (N,)."""
        return other_logits(logits, y).amax(1) - true_logit(logits, y)


@dataclass(frozen=True)
class DLR:
    """Difference of logits ratio, -(z_y - max_{j != y} z_j) / (z_1st - z_3rd).

    Unchanged when the logits are scaled or shifted. Raises ValueError below three classes.
    Source: Croce and Hein 2020, equation 6.
    """

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """(N, K), (N,) -> (N,)."""
        top = _largest(logits, 3, "the DLR loss")
        return Margin()(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


@dataclass(frozen=True, eq=False)
class TargetedDLR:
    """Targeted DLR, -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2), of the target classes t (N,).

    Raises ValueError below four classes.
    Source: Croce and Hein 2020, equation 7.
    """

    target: Tensor

    def __repr__(self) -> str:
        return "TargetedDLR(target)"

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """(N, K), (N,) -> (N,)."""
        top = _largest(logits, 4, "the targeted DLR loss")
        gap = true_logit(logits, self.target) - true_logit(logits, y)
        return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


@dataclass(frozen=True, eq=False)
class Toward:
    """A targeted attack: the negative of an objective at the target classes (N,)."""

    target: Tensor
    objective: Objective = CrossEntropy()

    def __repr__(self) -> str:
        return f"Toward(target, {self.objective!r})"

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """(N, K), (N,) -> (N,); y is not read."""
        return -self.objective(logits, self.target)


def _largest(logits: Tensor, count: int, what: str) -> Tensor:
    if logits.shape[1] < count:
        raise ValueError(
            f"{what} needs at least {count} classes, the model gives {logits.shape[1]}"
        )
    return logits.topk(count, 1).values


@dataclass(frozen=True, eq=False)
class KLFrom:
    """KL(softmax(c) || softmax(z)) from fixed clean logits c (N, K), which TRADES ascends."""

    clean_logits: Tensor

    def __repr__(self) -> str:
        return "KLFrom(clean)"

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """(N, K), (N,) -> (N,)."""
        return kl_divergence(self.clean_logits, logits)


def kl_divergence(clean_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(clean_logits) || softmax(logits)) per sample, (N,).

    From log-probabilities, which stay finite: a probability that underflows to 0 gives 0, and no
    NaN in its gradient.
    """
    log_p = clean_logits.log_softmax(1)
    return (log_p.exp() * (log_p - logits.log_softmax(1))).sum(1)
