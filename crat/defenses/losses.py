"""Losses that several methods share."""

import torch.nn.functional as F
from torch import Tensor

from crat.attacks.objectives import kl_divergence, other_logits

ROOM = 1e-4  # MART's code: log(1 - p_k + ROOM) stays finite where p_k is 1
SOFT_ROOM = 1e-5  # of distillations' released code: log(q + SOFT_ROOM) stays finite where q is 0
FLOOR = 1e-7  # MART's code: least weight of a sample


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y - log(1 + ROOM - max_{k != y} p_k) per sample, (N, K), (N,) -> (N,)."""
    strongest = other_logits(logits.softmax(1), y).amax(1)
    return F.cross_entropy(logits, y, reduction="none") - (1 + ROOM - strongest).log()


def log_counts(class_counts: Tensor) -> Tensor:
    """log n (K,) in float64 of training counts (K,); a class without images counts as one."""
    return class_counts.double().clamp_min(1).log()


def balanced_softmax_loss(logits: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """Balanced softmax (Ren et al. 2020): CE(z + bias, y) per sample (N,).

    bias: (K,), log n up to a constant.
    """
    return F.cross_entropy(logits + bias.to(logits.dtype), y, reduction="none")


def soft_divergence(taught: Tensor, logits: Tensor, released: bool = False) -> Tensor:
    """KL(softmax(taught) || softmax(logits)) per sample, (B, K), (B, K) -> (B,).

    released: as ABSLD's and Fair-RSLAD's code has it, sum_k q_k (log(q_k + 1e-5) - log p_k) over
        K, for its mean is over images and classes. The gradient is a K-th of the KL's.
    """
    if not released:
        return kl_divergence(taught, logits)
    q = taught.softmax(1)
    return (q * ((q + SOFT_ROOM).log() - logits.log_softmax(1))).mean(1)


def by_class(values: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """The sums (K,) of values (B,) by their labels y (B,)."""
    return values.new_zeros(n_classes).index_add(0, y, values)
