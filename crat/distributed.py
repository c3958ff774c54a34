"""One training in several processes: `torchrun --nproc-per-node 2 -m crat train ...`.

In a single process nothing here has an effect. Every rank walks through the same global batches and
takes its share of each. Statistics of a batch are those of the whole batch, all ranks' shares
together: BatchNorm's mean and variance, forward and backward, in training and in attacks
(crat.training.whole_batch), and by `whole` the class means of FAAL and CODAT, FRL's weighted means
and REAT's pairs of images. Random numbers (starts, noise, dropout, label augmentation's operations)
are those of the image's place in the whole batch. Weights, BatchNorm's statistics, class statistics
and files then equal those of a single process, up to the rounding of sums; so the number of
processes is no part of a run's key. Gates, policies and the best epoch are decided by rank 0's
validation.

Gradients are averaged in one message after the backward pass. An update has a dozen passes, so
overlapping the message with one of them gains little, and attacks and losses of several passes need
no care for DistributedDataParallel's hooks. Only the ends of epochs wait for the device.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crat.config import ConfigError


def rank() -> int:
    """The number of this process; 0 in a single process."""
    return dist.get_rank() if _joined() else 0


def world() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if _joined() else 1


def _joined() -> bool:
    """Whether this process is one of a group; never where torch was built without torchrun."""
    return dist.is_available() and dist.is_initialized()


def join(device: torch.device) -> torch.device:
    """Joins the group of processes, if torchrun started one; returns the device of this rank.

    Raises ConfigError where a machine has fewer GPUs than processes, and where torch cannot join
    processes on this kind of device, such as CUDA GPUs on Windows.
    """
    if not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() or _joined():
        return device
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        gpus = torch.cuda.device_count()
        if local >= gpus:
            raise ConfigError(
                f"process {local} of this machine has no GPU, for it has {gpus}: start one process "
                f"a GPU"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group(_backend(device))
    atexit.register(leave)
    return device


def _backend(device: torch.device) -> str:
    """The library that carries messages between processes on a kind of device."""
    alone = "start crat without torchrun"
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"processes train together on CPUs or CUDA GPUs, not {device}: {alone}")
    name = "nccl" if device.type == "cuda" else "gloo"
    if dist.is_available() and getattr(dist, f"is_{name}_available")():
        return name
    other = " or take --device cpu" if name == "nccl" else ""
    raise ConfigError(
        f"this torch has no {name.upper()}, by which processes on {device.type} train together "
        f"(on Windows it never has NCCL): {alone}{other}"
    )


@contextlib.contextmanager
def failing_alone(but: type[Exception]) -> Iterator[None]:
    """Lets a rank that fails leave the group at once, so that the others fail instead of waiting.

    but: an error that all ranks raise together, after which none leaves early.
    """
    try:
        yield
    except but:
        raise
    except BaseException:
        leave(alone=True)
        raise


def leave(*, alone: bool = False) -> None:
    """Ends the group once all ranks have come here, for an earlier end would fail the others.

    alone: end it at once, because this rank has failed; the others, which wait for its messages,
    then fail, too.
    """
    if _joined():
        with contextlib.suppress(RuntimeError):  # another rank died
            if not alone:
                dist.barrier()
        dist.destroy_process_group()


@dataclass(frozen=True)
class Part:
    """The share of a rank in a global batch of `total` images.

    own: the places of its images in the batch, (n,).
    weight: of its mean loss in the average over ranks, n world / total.
    A rank without images processes the first image with weight 0, because the others wait for its
    messages; it enters no sum.
    """

    own: Tensor
    total: int
    weight: float


def share(batch_size: int, device: torch.device) -> Part:
    """The part of this rank in a batch; parts are disjoint and differ by at most one image."""
    own = torch.arange(batch_size, device=device)[rank() :: world()]
    if len(own) == 0:
        return Part(torch.zeros(1, dtype=torch.long, device=device), batch_size, 0.0)
    return Part(own, batch_size, len(own) * world() / batch_size)


_in_hand: Part | None = None


def in_hand() -> Part | None:
    """The part of this rank in the present batch; None between batches and in a single process."""
    return _in_hand


@contextlib.contextmanager
def sharing(part: Part) -> Iterator[None]:
    """Makes `part` this rank's share of the present batch, in the context."""
    global _in_hand
    before = _in_hand
    _in_hand = part
    try:
        yield
    finally:
        _in_hand = before


def whole(values: Tensor) -> Tensor:
    """The values (N, ...) of the whole batch, in its order, from those (n, ...) of this rank.

    In a single process, the values as they are. For losses that are no mean over images; all ranks
    must call it equally often. Its gradient is that of the sum of all ranks' losses.
    values: floats or integers, not bool.
    """
    return values if _in_hand is None else _Whole.apply(values, _in_hand)  # type: ignore[no-untyped-call]


def places(y: Tensor) -> Tensor:
    """The place in the whole batch of each image of this rank, whose labels are y: (n,) -> (n,)."""
    return torch.arange(len(y), device=y.device) if _in_hand is None else _in_hand.own


class _Whole(torch.autograd.Function):
    """The rows of all ranks, as the sum of zeros with each rank's rows; backward selects them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, part: Part) -> Tensor:
        ctx.part = part
        every = values.new_zeros(part.total, *values.shape[1:])
        if part.weight:
            every[part.own] = values
        dist.all_reduce(every)
        return every

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        every = gradient.contiguous().clone()
        dist.all_reduce(every)
        own = every[ctx.part.own]
        return own if ctx.part.weight else torch.zeros_like(own), None


def sum_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums over all ranks, in one message; a rank without images in the batch adds zeros."""
    if world() == 1:
        return list(tensors)
    flat = torch.cat([t.reshape(-1) for t in tensors])
    if _in_hand is not None and not _in_hand.weight:
        flat = torch.zeros_like(flat)
    dist.all_reduce(flat)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


def mean_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The means over all ranks."""
    return [t / world() for t in sum_over_ranks(tensors)] if world() > 1 else list(tensors)


def average_gradients(model: nn.Module) -> None:
    """Replaces each parameter's gradient by its mean over all ranks."""
    if world() > 1:
        parameters = [p for p in model.parameters() if p.grad is not None]
        own = [cast(Tensor, p.grad) for p in parameters]
        for gradient, mean in zip(own, mean_over_ranks(own), strict=True):
            gradient.copy_(mean)  # it keeps its memory format


def smallest(value: Tensor) -> Tensor:
    """The smallest of all ranks' values."""
    if world() > 1:
        dist.all_reduce(value, dist.ReduceOp.MIN)
    return value


def of_first(value: Tensor) -> Tensor:
    """The value of rank 0, for all: two computations on a GPU may differ in the last digits."""
    if world() > 1:
        dist.broadcast(value, 0)
    return value


def decided_by_first(choice: bool, device: torch.device) -> bool:
    """The choice of rank 0, for all."""
    if world() == 1:
        return choice
    decision = torch.tensor(float(choice and rank() == 0), device=device)
    dist.all_reduce(decision)
    return bool(decision)


def agreed(choice: bool, device: torch.device) -> bool:
    """Whether all ranks chose so."""
    if world() == 1:
        return choice
    return bool(smallest(torch.tensor(float(choice), device=device)))


def wait() -> None:
    """Waits until all ranks have come here."""
    if world() > 1:
        dist.barrier()
