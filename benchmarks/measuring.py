"""Seconds, memory and tables: what all benchmarks of this folder share."""

from __future__ import annotations

import argparse
import ctypes
import re
import time
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

from crat.config import ConfigError, number

if TYPE_CHECKING:  # gpu.py, which watches others at work, needs neither
    import pandas as pd
    import torch

EPS = number("8/255")
STEP_SIZE = number("2/255")


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device has finished it."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def peak_memory(work: Callable[[], object], device: torch.device) -> float:
    """MiB that a call adds at its peak.

    On a GPU: of tensors. On Linux: of the process, by the kernel's high-water mark, which is right
    to some 10 %. Elsewhere: nan.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the mark
        # without the trim, a call seems to cost nothing where it reuses what an earlier one freed
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        work()
        return nan
    before = _resident("VmRSS")
    work()
    return (_resident("VmHWM") - before) / 1024


def _resident(field: str) -> int:
    line = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line[1]) if line else 0


def markdown(table: pd.DataFrame) -> str:
    """The table in markdown; nan becomes an empty cell."""
    cells = table.astype(object).where(table.notna(), "").to_numpy().tolist()
    rows = [list(table.columns), ["---"] * table.shape[1], *cells]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line whose help is the benchmark's docstring, with the default of every option."""
    return argparse.ArgumentParser(
        description=description, formatter_class=_Help, allow_abbrev=False
    )


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The docstring as it is written; behind an option its default, where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False):
            return action.help
        return super()._get_help_string(action)


def measured(parser: argparse.ArgumentParser, work: Callable[[], object]) -> None:
    """Runs a benchmark; a setting that cannot be used is argparse's error, with exit code 2."""
    try:
        work()
    except ConfigError as error:
        parser.error(str(error))


def at_least_one(**numbers: int) -> None:
    """Raises ConfigError on a number below 1, with its name."""
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
