"""Head-norm tuning: the rows of a finished network's head change their norms, and nothing else.

A submission to ICLR 2026 (openreview df4mr7eQg7, "Robust fairness", number 14772) finds that the
norms of the head's rows go with the classes' robust accuracies, and tunes the head with the
features fixed. Its abstract is all that we read, and no code was found. The form here is ours: K
numbers, one a row, as few as the K biases of `crat.defenses.tian2021.fit_bias`, which they rival.
The submission needs no validation images; this does, as the biases do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crat.defenses.tian2021 import held_out, lifted


def fit_norms(
    logits: Tensor,
    y: Tensor,
    *,
    rounds: int = 500,
    step: float = 0.03,
    max_drop: float | None = None,
) -> Tensor:
    """The temperatures T (K,), of geometric mean 1, by which `LogitBias` divides the logits.

    z_k / T_k is the logit of a head whose row k, weights and bias, is 1 / T_k as long.

    logits: (N, K), under attack, of held-out images.
    y: (N,).
    max_drop: the mean over classes may fall by at most this share (None: by any).
    Each round changes log T of the worst class by step / sqrt(round), to the side that raises its
    logit on the images that it loses. The result is the best T on the way, by the worst class, then
    by the mean over classes; it begins with T = 1. Deterministic.

    Raises ValueError where nothing can be fitted.
    """
    z = held_out(logits, y, "fit_norms")

    def moved(log_t: Tensor, worst: Tensor, i: int) -> Tensor:
        answers = (z * (-log_t).exp()).argmax(1)
        lost = (y == worst) & (answers != worst)
        upwards = (z[:, worst] * lost[:, None]).sum().sign()
        log_t = log_t.index_add(0, worst, -step / i**0.5 * upwards[None])
        return log_t - log_t.mean()

    found = lifted(y, z.new_zeros(z.shape[1]), lambda t: z * (-t).exp(), moved, rounds, max_drop)
    return torch.exp(found)
