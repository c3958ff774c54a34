"""A network in eval mode with its BatchNorms folded into the convolutions before them.

In eval mode BatchNorm multiplies each channel by a number and adds another, as a convolution can do
itself. A fold is made once and refreshed when weights or statistics have moved.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Pair(NamedTuple):
    """A convolution, the BatchNorm behind it, and the convolution that does the work of both."""

    convolution: nn.Conv2d
    norm: _BatchNorm
    both: nn.Conv2d


class Folded(nn.Module):
    """The folded network: images (N, C, H, W) -> the answer of `model` in eval mode.

    model: it is traced; its other layers are shared, so that they need no refreshing.
    dtype: of the folded convolutions.
    Raises whatever tracing raises where the model cannot be traced.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        graph = Tracer().trace(model)
        self._model = (model,)  # in a tuple, so that it is no part of this module
        self.net = fx.GraphModule(model, graph)
        self.pairs = [
            self._merge(convolution, norm, dtype) for convolution, norm in _pairs(graph, model)
        ]
        self.net.recompile()
        self.refresh()

    @property
    def module(self) -> nn.Module:
        """The network that was folded."""
        return self._model[0]

    def _merge(self, convolution: fx.Node, norm: fx.Node, dtype: torch.dtype) -> Pair:
        """Takes a BatchNorm out of the graph; a new convolution stands for both."""
        name = str(convolution.target)
        plain = self.module.get_submodule(name)
        assert isinstance(plain, nn.Conv2d)
        normalised = self.module.get_submodule(str(norm.target))
        assert isinstance(normalised, _BatchNorm)
        both = copy.deepcopy(plain).requires_grad_(False)
        if both.bias is None:
            zeros = torch.zeros(both.out_channels, device=both.weight.device)
            both.bias = nn.Parameter(zeros, requires_grad=False)
        self.net.set_submodule(name, both.to(dtype))
        norm.replace_all_uses_with(convolution)
        norm.graph.erase_node(norm)
        return Pair(plain, normalised, both)

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the present weights and statistics; no host synchronisation."""
        for pair in self.pairs:
            weight, bias = folded(pair.convolution, pair.norm)
            pair.both.weight.copy_(weight)
            assert pair.both.bias is not None
            pair.both.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> the model's answer."""
        answer: Tensor = self.net(x)
        return answer


def folded(convolution: nn.Conv2d, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias (outputs,) of a convolution that does the work of both in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean * scale
    if convolution.bias is not None:
        bias = bias + convolution.bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    return convolution.weight * scale.view(-1, 1, 1, 1), bias


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a BatchNorm is among the module's parts."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def _pairs(graph: fx.Graph, model: nn.Module) -> list[tuple[fx.Node, fx.Node]]:
    """The convolutions whose only reader is a BatchNorm with statistics, each with it.

    A layer that is called twice stays as it is, for its two calls may have other BatchNorms.
    """
    called = [node for node in graph.nodes if node.op == "call_module"]
    layers = {node: model.get_submodule(str(node.target)) for node in called}
    times = [id(layer) for layer in layers.values()]
    found = []
    for node in called:
        norm = layers[node]
        before = node.args[0]
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or before not in layers:
            continue
        convolution = layers[before]
        alone = len(before.users) == 1 and times.count(id(convolution)) == 1
        if isinstance(convolution, nn.Conv2d) and alone and times.count(id(norm)) == 1:
            found.append((before, node))
    return found


class Tracer(fx.Tracer):
    """Looks only into modules with BatchNorm inside: what others do with shapes is theirs."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one call in the graph."""
        return isinstance(m, _BatchNorm) or not has_batch_norm(m)
