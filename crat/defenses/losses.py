"""Losses that several methods share."""

import torch.nn.functional as F
from torch import Tensor

from crat.attacks.objectives import other_logits

ROOM = 1e-4  # MART's code: log(1 - p_k + ROOM) stays finite where p_k is 1
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
