"""Adversarial weight perturbation (Wu et al. 2020): descends the loss at weights that raise it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crat.distributed import mean_over_ranks


@contextmanager
def perturbed(model: nn.Module, gamma: float, loss: Callable[[], Tensor]) -> Iterator[None]:
    """Moves each weight w to w + gamma ||w|| g / ||g|| for the duration of the context.

    g: the gradient of `loss` with respect to w. Weights of fewer than two dimensions do not move,
    so biases and BatchNorm stay as they are.
    The ascent step of the authors' proxy is rescaled to the length of the weight, so the proxy's
    learning rate cancels. BatchNorm's statistics do not move for it. The optimizer steps inside the
    context, at the perturbed weights; the perturbation is subtracted afterwards.
    Source: Wu et al. 2020 (NeurIPS) and its code (csdongxian/AWP).
    """
    weights: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "weight" in name and parameter.requires_grad:
            weights.append(parameter)
    with _statistics_frozen(model):
        gradients = torch.autograd.grad(loss(), weights)
    with torch.no_grad():
        moves = []
        for w, g in zip(weights, mean_over_ranks(gradients), strict=True):
            moves.append(gamma * w.norm() / (g.norm() + 1e-20) * g)
        torch._foreach_add_(weights, moves)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_sub_(weights, moves)


@contextmanager
def _statistics_frozen(model: nn.Module) -> Iterator[None]:
    """Lets BatchNorm normalise by the batch without moving its running statistics."""
    norms: list[_BatchNorm] = []
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats:
            norms.append(module)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
