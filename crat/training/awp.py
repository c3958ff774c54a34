"""Adversarial weight perturbation (Wu et al. 2020, NeurIPS): the loss is descended at weights
moved to raise it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crat.distributed import mean_over_ranks


@contextmanager
def perturbed(model: nn.Module, gamma: float, loss: Callable[[], Tensor]) -> Iterator[None]:
    """Within, each weight w of two or more dimensions is w + gamma ||w|| g / ||g||, g the gradient
    of `loss`.

    As in the authors' code (csdongxian/AWP): an ascent step of a proxy, rescaled to the length of
    the weight, so that the proxy's learning rate cancels; BatchNorm's statistics do not move for
    it; the optimizer's step is taken inside, at the perturbed weights, and the perturbation
    subtracted afterwards. Biases and BatchNorm are left alone.
    """
    named = model.named_parameters()
    weights: list[Tensor] = [
        p for name, p in named if p.ndim > 1 and "weight" in name and p.requires_grad
    ]
    with _statistics_kept(model):
        gradients = torch.autograd.grad(loss(), weights)
    with torch.no_grad():
        moves = [
            gamma * w.norm() / (g.norm() + 1e-20) * g
            for w, g in zip(weights, mean_over_ranks(gradients), strict=True)
        ]
        torch._foreach_add_(weights, moves)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_sub_(weights, moves)


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Within, BatchNorm normalises by the batch and moves no running statistics."""
    norms = [
        m
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
