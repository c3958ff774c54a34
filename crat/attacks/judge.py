"""The outcome of an attack on a set of images, batch by batch: searched in any precision, judged in float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from crat.attacks.frozen import frozen
from crat.attacks.gradient import Attack
from crat.attacks.objectives import full
from crat.device import autocast, exact
from crat.store import seed_for

REVISION = 1  # of the attacks and of judging: raised when outcomes may change, so that kept ones are made anew


def as_images(x: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1], channels last in memory; floats pass through."""
    if x.dtype == torch.uint8:
        x = x.float().div_(255)
    return x.contiguous(memory_format=torch.channels_last)


def attacked_batches(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack | None,
    *,
    batch_size: int = 500,
    seed: int = 0,
    dtype: str = "float32",
    crafted_on: nn.Module | None = None,
    begin: int = 0,
) -> Iterator[Tensor]:
    """Yields the model's float32 logits (B, K) under `attack` (None: on the clean images), one batch at a time.

    x: (N, C, H, W) uint8 or [0, 1] float; `crafted_on`: another model to craft on (a transfer attack). Random starts
    depend on seed and place in the set only, so two models meet the same starts; `begin` (a multiple of batch_size)
    resumes.
    """
    device = x.device
    for at in range(begin, len(x), batch_size):
        images, labels = as_images(x[at : at + batch_size]), y[at : at + batch_size]
        if attack is not None:
            generator = torch.Generator(device).manual_seed(seed_for(seed, at))
            with autocast(device, dtype):
                images = attack(crafted_on or model, images, labels, generator=generator)
        with frozen(model), torch.no_grad(), exact():
            logits = full(model(images))
        yield logits  # outside: a caller who stops here keeps its gradients


def attacked_logits(model: nn.Module, x: Tensor, y: Tensor, attack: Attack | None, **settings) -> Tensor:
    """All batches of `attacked_batches` in one tensor (N, K)."""
    return torch.cat(list(attacked_batches(model, x, y, attack, **settings)))
