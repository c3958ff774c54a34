"""BatchNorm and dropout where several processes share a batch: by all its images, as a single
process does it.

The arithmetic is torch.nn.SyncBatchNorm's (each rank's count, mean and squares in one message
forward, two sums backward), which refuses CPU tensors and counts every image that it is given; here
a rank without images counts none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from crat import distributed


def see_the_whole_batch(model: nn.Module, *, compiled: bool = False) -> None:
    """Changes BatchNorm and dropout of a network in place; names and tensors stay, and so do both
    between batches.

    compiled: the network will be; its graphs then break at these layers, whose messages are not
    compiled.
    """
    for module in model.modules():
        for kind, shared in ((_BatchNorm, SharedBatchNorm), (nn.Dropout, SharedDropout)):
            if isinstance(module, kind) and not isinstance(module, shared):
                apart = {"forward": torch.compiler.disable(shared.forward)} if compiled else {}
                module.__class__ = type(
                    f"Shared{type(module).__name__}", (shared, type(module)), apart
                )


class SharedBatchNorm(_BatchNorm):
    """Where BatchNorm normalises by the batch in hand (crat.distributed.sharing), by all ranks'
    shares of it.

    As alone: float32 sums under bfloat16, float64 ones for float64; running_var takes squares / (n
    - 1), n of all. Raises ValueError where the whole batch is one value per channel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C, ...)."""
        part = distributed.in_hand()
        if part is None or not (self.training or self.running_mean is None):
            return super().forward(x)
        self._check_input_dim(x)
        if part.total * (x.numel() // x.shape[1]) == len(part.own):
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size "
                f"{list(x.shape)}"
            )
        y, mean, squares, n = _Normalised.apply(x, self.weight, self.bias, self.eps, part)  # type: ignore[no-untyped-call]
        if self.training and self.track_running_stats:
            self._move(mean, squares / (n - 1))
        return y

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics, by momentum; None: to the plain mean over all batches so far."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(new.to(running), step)


class SharedDropout(nn.Dropout):
    """Dropout whose mask is drawn for the whole batch, by every rank alike, and cut to the
    rank's own images.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, ...); N may be several times the share: clean and attacked images in
        one pass.
        """
        part = distributed.in_hand()
        if part is None or not self.training:
            return super().forward(x)
        passes = len(x) // len(part.own)
        mask = super().forward(x.new_ones(passes * part.total, *x.shape[1:]))
        return x * torch.cat([own[part.own] for own in mask.chunk(passes)])


class _Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(squares / n + eps) * weight + bias, in x's dtype; then mean and squares
    (C,) and n (1,).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        part: distributed.Part,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = _wide(x)
        mean, squares, n = _statistics(wide, bool(part.weight))
        inverse = (squares / n + eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        y = (wide - _per_channel(mean, x)) * _per_channel(scale, x)
        if bias is not None:
            y = y + _per_channel(bias, x)
        ctx.save_for_backward(x, weight, mean, inverse, n)
        ctx.counts = bool(part.weight)
        ctx.mark_non_differentiable(mean, squares, n)
        return y.to(x.dtype), mean, squares, n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, n = ctx.saved_tensors
        g, unit = _wide(gradient), (_wide(x) - _per_channel(mean, x)) * _per_channel(inverse, x)
        # the gradients of bias and weight
        own = torch.stack([g.sum(_places(x)), (g * unit).sum(_places(x))])
        every = own.clone() if ctx.counts else torch.zeros_like(own)
        dist.all_reduce(every)
        of_mean, of_scale = every / n
        scale = inverse if weight is None else inverse * weight
        to_x = _per_channel(scale, x) * (
            g - _per_channel(of_mean, x) - unit * _per_channel(of_scale, x)
        )
        to_x = to_x if ctx.counts else torch.zeros_like(to_x)
        to_bias, to_weight = (None, None) if weight is None else own.to(weight.dtype)
        return to_x.to(x.dtype), to_weight, to_bias, None, None


def _statistics(x: Tensor, counts: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), summed squares about it (C,) and number of values per channel (1,), over all
    ranks that count.
    """
    variance, mean = torch.var_mean(x, _places(x), correction=0)
    own = torch.cat([mean, variance, torch.ones_like(mean[:1])]) * (x.numel() // x.shape[1])
    own = own if counts else torch.zeros_like(own)
    every = own.new_empty(distributed.world(), len(own))
    dist.all_gather_into_tensor(every, own[None])
    sums, squares, n = every.split([len(mean), len(mean), 1], 1)
    means, mean = sums / n.clamp_min(1), sums.sum(0) / n.sum()
    return mean, squares.sum(0) + (n * (means - mean).square()).sum(0), n.sum(0)


def _wide(x: Tensor) -> Tensor:
    """bfloat16 as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _places(x: Tensor) -> list[int]:
    """All dimensions of (N, C, ...) but the channels."""
    return [dim for dim in range(x.ndim) if dim != 1]


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...)."""
    return values.view(1, -1, *[1] * (x.ndim - 2))
