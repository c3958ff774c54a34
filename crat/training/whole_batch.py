"""BatchNorm and dropout over the whole batch that several processes share, as in one process.

The arithmetic is that of torch.nn.SyncBatchNorm: one message of each rank's count, mean and squares
forward, two sums backward. SyncBatchNorm itself refuses CPU tensors and counts every image that it
is given; here a rank without images counts none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from crat import distributed


def see_the_whole_batch(model: nn.Module) -> None:
    """Makes BatchNorm and dropout of a network use the whole batch, in place.

    Names and tensors of the layers stay, and so does their behaviour between batches. Under
    torch.compile a graph breaks at these layers: their messages are not compiled.
    """
    for module in model.modules():
        for kind, shared in ((_BatchNorm, SharedBatchNorm), (nn.Dropout, SharedDropout)):
            if not isinstance(module, kind) or isinstance(module, shared):
                continue
            plain = type(module)
            module.__class__ = type(f"Shared{plain.__name__}", (shared, plain), {})


class SharedBatchNorm(_BatchNorm):
    """BatchNorm by the statistics of all ranks' shares of a batch (crat.distributed.sharing).

    As in one process: sums are float32 under bfloat16 and float64 for float64 images; running_var
    takes squares / (n - 1), n over all ranks.
    Raises ValueError where the whole batch is one value per channel.
    """

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, (N, C, ...) -> (N, C, ...)."""
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
        """Updates the running statistics by momentum (None: the plain mean of all batches)."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(new.to(running), step)


class SharedDropout(nn.Dropout):
    """Dropout whose mask every rank draws for the whole batch and cuts to its share of images."""

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Images after dropout, (N, ...) -> (N, ...).

        N may be a multiple of the rank's share: clean and attacked images in one pass.
        """
        part = distributed.in_hand()
        if part is None or not self.training:
            return super().forward(x)
        passes = len(x) // len(part.own)
        mask = super().forward(x.new_ones(passes * part.total, *x.shape[1:]))
        return x * torch.cat([own[part.own] for own in mask.chunk(passes)])


class _Normalised(torch.autograd.Function):
    """BatchNorm's (x - mean) / sqrt(squares / n + eps) * weight + bias, in x's dtype.

    Further outputs, without gradient: mean (C,), squares (C,) and n (1,).
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
        g = _wide(gradient)
        unit = (_wide(x) - _per_channel(mean, x)) * _per_channel(inverse, x)
        # the gradients of bias and weight
        own = torch.stack([g.sum(_places(x)), (g * unit).sum(_places(x))])
        every = own.clone() if ctx.counts else torch.zeros_like(own)
        dist.all_reduce(every)
        of_mean, of_scale = every / n
        scale = inverse if weight is None else inverse * weight
        centred = g - _per_channel(of_mean, x) - unit * _per_channel(of_scale, x)
        to_x = _per_channel(scale, x) * centred
        if not ctx.counts:
            to_x = torch.zeros_like(to_x)
        if weight is None:
            return to_x.to(x.dtype), None, None, None, None
        to_bias, to_weight = own.to(weight.dtype)
        return to_x.to(x.dtype), to_weight, to_bias, None, None


def _statistics(x: Tensor, counts: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), summed squares about it (C,) and values per channel (1,), over all ranks.

    counts: whether this rank has images of the batch; a rank without images adds nothing.
    """
    variance, own_mean = torch.var_mean(x, _places(x), correction=0)
    own = torch.cat([own_mean, variance, torch.ones_like(own_mean[:1])])
    own = own * (x.numel() // x.shape[1])
    if not counts:
        own = torch.zeros_like(own)
    every = own.new_empty(distributed.world(), len(own))
    dist.all_gather_into_tensor(every, own[None])
    n_channels = len(own_mean)
    sums, squares_in_ranks, n = every.split([n_channels, n_channels, 1], 1)
    means = sums / n.clamp_min(1)
    mean = sums.sum(0) / n.sum()
    squares = squares_in_ranks.sum(0) + (n * (means - mean).square()).sum(0)
    return mean, squares, n.sum(0)


def _wide(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _places(x: Tensor) -> list[int]:
    """The dimensions of x (N, C, ...) except the channels."""
    return [dim for dim in range(x.ndim) if dim != 1]


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Values (C,) as (1, C, 1, ...), to broadcast over x."""
    return values.view(1, -1, *[1] * (x.ndim - 2))
