"""Device and precision: the default of each, and a device's description for cards."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import torch
from torch import nn

from crat.names import ConfigError

# Environment variable: the share of a GPU's memory that this process may take, such as 0.225.
# `crat reproduce` sets it for the processes that it runs side by side on one GPU.
GPU_SHARE = "CRAT_GPU_SHARE"


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for; None: the first GPU, or the CPU where there is no GPU.

    On a GPU this process keeps to its share of the memory (GPU_SHARE).
    Raises ConfigError where the device cannot be used.
    """
    if device is None:
        chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        chosen = _usable(device)
    if chosen.type == "cuda" and GPU_SHARE in os.environ:
        share = float(os.environ[GPU_SHARE])
        torch.cuda.set_per_process_memory_fraction(share, chosen.index)  # index None: the current
    return chosen


def _usable(device: str | torch.device) -> torch.device:
    """The device of this name; raises ConfigError where it cannot be used."""
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError):  # torch's own words are a page for some devices
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            here.append("mps")
        raise ConfigError(
            f"device {str(device)!r} cannot be used here; this machine has {', '.join(here)}"
        ) from None
    return chosen


def usable_cores() -> int:
    """The number of cores that this process may use; all of them where the system does not say."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def pick_dtype(dtype: str, device: torch.device) -> str:
    """The dtype of "auto": bfloat16 where the device multiplies it in hardware, else float32."""
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    # torch was told to leave out the instructions, as a test of old CPUs does
    limited = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2")
    return "bfloat16" if device.type == "cpu" and supported and not limited else "float32"


def finest(device: torch.device) -> torch.dtype:
    """The dtype of sums and shares that need their digits: float64, where a device has it.

    CPUs and CUDA GPUs have it. Apple's GPU refuses it, and then it is float32.
    """
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def precise(values: torch.Tensor) -> torch.Tensor:
    """Values in the finest dtype of their device."""
    return values.to(finest(values.device))


def moved(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values on a device; float64 is what is finest there."""
    return values.to(device, finest(device) if values.dtype == torch.float64 else values.dtype)


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values of the CPU on a device, on CUDA without a wait for it.

    CUDA takes a copy of what it was given first; another device may read the place later.
    """
    return values.to(device, non_blocking=device.type == "cuda")


def autocast(device: torch.device, dtype: str) -> AbstractContextManager:
    """The autocast context of a resolved dtype, for training and for the search of examples.

    Predictions that count are made outside it, in float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def compiled(model: nn.Module) -> nn.Module:
    """The network under torch.compile, for training.

    Train and eval mode, with and without parameter gradients, a full and a short batch make more
    variants than torch's default limit, which is raised here.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(model)  # type: ignore[return-value]


def describe(device: torch.device) -> str:
    """The name of a device for cards, such as "AMD EPYC, 2 threads", or a GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = _name_of_cpu()
    if device.type == "cpu":
        return f"{name}, {torch.get_num_threads()} threads"
    return f"{name}, its GPU ({device.type})"


def _name_of_cpu() -> str:
    """The processor's name; on a Mac this is Apple's chip, its GPU included."""
    if sys.platform == "darwin":  # platform says "arm" there
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        with suppress(OSError, subprocess.SubprocessError):
            told = subprocess.run(asked, capture_output=True, encoding="utf-8", check=True)
            return told.stdout.strip()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # Windows, or an ARM CPU, whose file names none
        return platform.processor() or platform.machine()
