"""Perturbations that a method carries from batch to batch, one for each place in a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from crat import distributed


def nothing_carried(batch_size: int, image_shape: tuple[int, ...]) -> Tensor:
    """Zeros for each place in a batch, (B, C, H, W)."""
    return torch.zeros(batch_size, *image_shape)


def carried(perturbations: Tensor, y: Tensor) -> Tensor:
    """The perturbations of this process's images, whose labels are y: (n,) -> (n, C, H, W)."""
    return perturbations[distributed.places(y)]


def carry(perturbations: Tensor, new: Tensor) -> Tensor:
    """The perturbations after a batch, which may be smaller: new ones (n, C, H, W), then the old.

    new: of this process's images; the answer is that of the whole batch, in every process.
    """
    every = distributed.whole(new.detach()).to(perturbations)
    return torch.cat([every, perturbations[len(every) :]])
