"""How many images an evaluation attacks at a time: what half of a GPU's free memory holds.

The more images a batch has, the less its launches cost, and the later a battery's shrinking batches
leave a GPU idle.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crat.attacks.frozen import frozen
from crat.attacks.logits import answer_of
from crat.attacks.precision import exact

ON_CPU = 500  # more images are no faster there
SMALLEST, LARGEST = 64, 4096
STATE = 64  # copies of the images in float32 that an attack keeps or passes through, at the most


def fitting_batch(net: nn.Module, example: Tensor) -> int:
    """The number of images in a batch, a multiple of SMALLEST, for a network on a device.

    example: a few images (n, C, H, W), whose forward and backward pass is measured.
    On a GPU half of the free memory is left; elsewhere the number is ON_CPU.
    """
    if not counts_memory(example.device) or not len(example):
        return ON_CPU
    image = peak(net, example) / len(example) + STATE * 4 * example[0].numel()
    fitting = int(free_memory(example.device) / 2 / image)
    return min(max(fitting // SMALLEST * SMALLEST, SMALLEST), LARGEST)


def counts_memory(device: torch.device) -> bool:
    """Whether torch counts the memory of this device."""
    return device.type == "cuda"


def peak(net: nn.Module, images: Tensor) -> int:
    """The bytes that a forward and backward pass on the images takes at its height."""
    device = images.device
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    leaf = images.detach().clone().requires_grad_()
    with frozen(net), torch.enable_grad(), exact():
        logits = answer_of(net, leaf)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
    return torch.cuda.max_memory_allocated(device) - before


def free_memory(device: torch.device) -> int:
    """The bytes of a GPU that are free, or that torch holds for later, in this process's share."""
    reserved = torch.cuda.memory_reserved(device)
    allocated = torch.cuda.memory_allocated(device)
    free, total = torch.cuda.mem_get_info(device)
    share = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return min(free, share - reserved) + reserved - allocated
