"""The copy of a model that attacks search with: BatchNorm folded into convolutions, channels last, bfloat16.

Only the search runs on it. Whether an image is broken is decided by the model itself, in float32.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from crat.attacks.frozen import frozen
from crat.attacks.objectives import full
from crat.device import autocast, exact

TOLERANCE = 1e-3  # of the largest logit: what folding may change by rounding


class Searcher(nn.Module):
    """A network with its precision: images (N, C, H, W) in, float32 logits (N, K) out.

    unfolded: why BatchNorm was left as it is; "" where it is folded or there is none.
    """

    def __init__(self, net: nn.Module, dtype: str, unfolded: str) -> None:
        super().__init__()
        self.net, self.dtype, self.unfolded = net, dtype, unfolded
        if dtype == "bfloat16":
            layers = [m for m in net.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False))]
            for layer in layers[:-1]:  # autocast would cast frozen weights anew in each forward pass
                if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
                    layer.to(torch.bfloat16)
            if layers:  # a cosine head, too
                _keep_float32(layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K)."""
        with autocast(x.device, self.dtype):
            return full(self.net(x))


def _keep_float32(head: nn.Module) -> None:
    """The last layer computes in float32: in bfloat16 two logits near 8 that differ by less than 0.03 are equal."""
    plain = head.forward

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return plain(x.float())

    head.forward = forward  # type: ignore[method-assign]


def searcher(model: nn.Module, example: Tensor, dtype: str = "float32", fold: bool = True) -> Searcher:
    """A frozen copy of `model` for searching in "float32" or "bfloat16"; the model itself is left as it is.

    example: a few images, on which folding is checked against the model; where the model cannot be traced or the
    logits differ by more than rounding, BatchNorm stays, and `unfolded` says why; fold=False leaves it in any case, for
    attacks that normalise by the batch.
    """
    with frozen(model):
        net, unfolded = _folded(model, example) if fold else (None, "not asked for")
        if net is None:
            net = copy.deepcopy(model)
    net.requires_grad_(False)
    return Searcher(net.eval().to(memory_format=torch.channels_last), dtype, unfolded).eval()


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


class _Tracer(fx.Tracer):
    """Looks only into modules with BatchNorm inside: what others do with shapes is theirs."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _has_batch_norm(m) or super().is_leaf_module(m, module_qualified_name)


def _folded(model: nn.Module, example: Tensor) -> tuple[nn.Module | None, str]:
    if not _has_batch_norm(model):
        return None, ""
    try:
        net = fuse(fx.GraphModule(model, _Tracer().trace(model)), no_trace=True)
    except Exception as error:  # tracing runs the model's own code: whatever it raises, it cannot be folded
        return None, f"it cannot be traced ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    with torch.no_grad(), exact():
        plain, folded = full(model(example)), full(net(example))
    gap = ((plain - folded).abs().max() / plain.abs().max().clamp_min(1e-12)).item()
    return (net, "") if gap <= TOLERANCE else (None, f"folding changed the logits by {gap:.1%} of the largest")
