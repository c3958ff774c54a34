"""The network as the attack of a training step sees it: the same answers, with less work.

An attack passes the network some ten times a step, and no weight changes between the passes. So
what each pass would do to the weights is done once a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from crat.attacks.frozen import frozen
from crat.attacks.objectives import full
from crat.device import autocast
from crat.nets.folding import Folded, has_batch_norm


class Cast(NamedTuple):
    """A parameter of a layer, and its copy in bfloat16."""

    layer: nn.Module
    name: str
    parameter: nn.Parameter
    copy: nn.Parameter


class Casts:
    """The weights of convolutions and linear layers in bfloat16, which autocast then need not cast.

    The answers stay the same bit for bit: autocast makes the same casts anew in each pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.casts = [
            Cast(layer, name, parameter, _bfloat16(parameter))
            for layer in model.modules()
            if isinstance(layer, (_ConvNd, nn.Linear))
            for name, parameter in layer.named_parameters(recurse=False)
            if parameter.dtype == torch.float32
        ]

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the present weights; no host synchronisation."""
        copies: list[Tensor] = [cast.copy for cast in self.casts]
        weights: list[Tensor] = [cast.parameter for cast in self.casts]
        if copies:
            torch._foreach_copy_(copies, weights)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the layers compute with the copies."""
        for cast in self.casts:
            cast.layer._parameters[cast.name] = cast.copy
        try:
            yield
        finally:
            for cast in self.casts:
                cast.layer._parameters[cast.name] = cast.parameter


def _bfloat16(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False)


# what folding may change of a logit, as a share of the largest
FOLDED = {"float32": 1e-3, "bfloat16": 0.1}


def fault_of_fold(folded: Folded, x: Tensor, dtype: str) -> str:
    """How the fold changes the network's answer to images (N, C, H, W): "" for by rounding only."""
    network = folded.module
    with frozen(network), frozen(folded), torch.no_grad(), autocast(x.device, dtype):
        expected, found = full(network(x)), full(folded(x))
    gap = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))
    # not "gap > ...": what is not a number is no proof
    return "" if gap <= FOLDED[dtype] else f"it changes a logit by {gap:.1%} of the largest"


def foldable(model: nn.Module, dtype: str) -> Folded | None:
    """The network folded for attacks in eval mode; None where there is nothing to fold.

    Raises whatever tracing raises where the model cannot be traced.
    """
    if not has_batch_norm(model):
        return None
    copy = Folded(model, getattr(torch, dtype))
    return copy if copy.pairs else None
