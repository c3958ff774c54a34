"""Several processes, one training: `torchrun --nproc-per-node 2 -m crat train ...`. Alone,
everything here is a no-op.

Every rank walks through the same global batches and takes its share of each. What a pass or a loss
takes from its batch as a whole it takes from the whole batch, all ranks' shares together:
BatchNorm's mean and variance, forward and backward, in training and in attacks
(crat.training.whole_batch), and through `whole` the class means of FAAL and CODAT, FRL's weighted
means and REAT's pairs of images. Random numbers (starts, noise, dropout, label augmentation's
operations) are those of the image's place in the whole batch. Weights, BatchNorm's statistics,
class statistics and files are then those of the single process, up to the rounding of sums; so the
number of processes is no part of a run's key. What ranks decide (gates, policies, the best epoch)
they decide by rank 0's validation.

Gradients are averaged in one message behind the backward pass: an update has a dozen passes, so
overlapping it with one of them gains little, and the attack and losses of several passes need no
care for DistributedDataParallel's hooks. Nothing here waits for the device but the ends of epochs.
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
    """This process's number, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join(device: torch.device) -> torch.device:
    """Joins the group that torchrun started, if one did; the device of this rank.

    Raises ConfigError where a machine has fewer GPUs than processes.
    """
    if not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() or dist.is_initialized():
        return device
    if device.type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ConfigError(
                f"process {local} of this machine has no GPU, for it has {gpus}: start one process "
                f"a GPU"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(leave)
    return device


@contextlib.contextmanager
def failing_alone(but: type[Exception]) -> Iterator[None]:
    """Within, a rank that fails leaves the group at once, so that the others fail, too, instead of
    waiting for it.

    but: an error that all ranks raise together.
    """
    try:
        yield
    except but:
        raise
    except BaseException:
        leave(alone=True)
        raise


def leave(*, alone: bool = False) -> None:
    """Ends the group once all ranks are here: one that went first would take away what the others
    still wait on.

    alone: at once, for this rank has failed, and the others wait for messages that will not come:
    they fail by it.
    """
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # another rank died
            if not alone:
                dist.barrier()
        dist.destroy_process_group()


@dataclass(frozen=True)
class Part:
    """What a rank has of a global batch of `total` images.

    own (n,): the places of its images. weight: of its mean loss in the average over ranks, n world
    / total. A rank for which no image is left passes the first one with weight 0, for the others
    wait for its messages; it counts nowhere.
    """

    own: Tensor
    total: int
    weight: float


def share(batch_size: int, device: torch.device) -> Part:
    """This rank's part of a batch: every image is one rank's, and the parts differ by at most
    one image.
    """
    own = torch.arange(batch_size, device=device)[rank() :: world()]
    if len(own) == 0:
        return Part(torch.zeros(1, dtype=torch.long, device=device), batch_size, 0.0)
    return Part(own, batch_size, len(own) * world() / batch_size)


_in_hand: Part | None = None


def in_hand() -> Part | None:
    """This rank's part of the batch that is being trained on; None between batches, and alone."""
    return _in_hand


@contextlib.contextmanager
def sharing(part: Part) -> Iterator[None]:
    """Within, all ranks train on one batch, this one on its own share of it."""
    global _in_hand
    before, _in_hand = _in_hand, part
    try:
        yield
    finally:
        _in_hand = before


def whole(values: Tensor) -> Tensor:
    """Values (n, ...) of this rank's images -> those (N, ...) of the whole batch, in its order;
    alone, as they are.

    For losses that are no mean over images: all ranks must call it equally often. Its gradient is
    that of the sum of all ranks' losses. Floats or integers, not bool.
    """
    return values if _in_hand is None else _Whole.apply(values, _in_hand)  # type: ignore[no-untyped-call]


def places(y: Tensor) -> Tensor:
    """The place of each image of y (n,) in its whole batch, (n,)."""
    return torch.arange(len(y), device=y.device) if _in_hand is None else _in_hand.own


class _Whole(torch.autograd.Function):
    """Each rank writes its rows into zeros, and the sum over ranks has them all; its adjoint
    reads them back.
    """

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
    """The sums over all ranks, one message; without those that have no image of the batch in
    hand.
    """
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
    """Rank 0's value, for all: what is computed twice on a GPU may differ in its last digits."""
    if world() > 1:
        dist.broadcast(value, 0)
    return value


def decided_by_first(choice: bool, device: torch.device) -> bool:
    """Rank 0's choice, for all."""
    if world() == 1:
        return choice
    said = torch.tensor(float(choice and rank() == 0), device=device)
    dist.all_reduce(said)
    return bool(said)


def wait() -> None:
    """Until all ranks are here."""
    if world() > 1:
        dist.barrier()
