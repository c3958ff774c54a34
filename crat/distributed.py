"""Several processes, one training: `torchrun --nproc-per-node 2 -m crat train ...`. Alone, everything here is a no-op.

Every rank walks through the same global batches and takes its share of each, so that a batch is what it is alone;
weights, class statistics and files are then those of the single process, up to the rounding of the sums. A rank's own
remains what a pass gathers over its batch: BatchNorm's statistics, as in plain DDP (the running ones are averaged at
every epoch's end, so that all ranks judge one network), the class means of FAAL and CODAT, FRL's weighted means, the
universal delta's gradient and the operations of label augmentation. Gradients are averaged in one message behind the
backward pass: an update has a dozen passes, so overlapping it with one of them gains little, and the attack and
losses of several passes need no care for DistributedDataParallel's hooks.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import cast

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
            raise ConfigError(f"process {local} of this machine has no GPU, for it has {gpus}: start one process a GPU")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(leave)
    return device


def leave() -> None:
    """Ends the group once all ranks are here: one that went first would take away what the others still wait on."""
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # another rank died
            dist.barrier()
        dist.destroy_process_group()


def share(batch_size: int, device: torch.device) -> tuple[Tensor, float]:
    """Places (n,) of a global batch that are this rank's, and the weight of its mean loss in the average over ranks.

    A rank for which none is left passes the first image with weight 0: the others wait for its gradients.
    """
    own = torch.arange(batch_size, device=device)[rank() :: world()]
    if len(own) == 0:
        return torch.zeros(1, dtype=torch.long, device=device), 0.0
    return own, len(own) * world() / batch_size


def sum_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums over all ranks, one message."""
    if world() == 1:
        return list(tensors)
    flat = torch.cat([t.reshape(-1) for t in tensors])
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


@torch.no_grad()
def agree(tensors: Iterable[Tensor]) -> None:
    """Replaces floating tensors by their means over all ranks."""
    if world() > 1:
        own = [t for t in tensors if t.is_floating_point()]
        for tensor, mean in zip(own, mean_over_ranks(own), strict=True):
            tensor.copy_(mean)


def largest(value: Tensor) -> Tensor:
    """The largest of all ranks' values."""
    if world() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
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
