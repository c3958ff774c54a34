"""Pieces of work that are run one after another, each noted before it begins and when it has ended.

A process that is killed, or whose GPU context is lost, is started again and goes on behind the
piece that it was in. benchmarks/gpu.py starts and watches such processes.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the process that only watches does without it
    import torch


RUNS = "recipe_runs"  # the folder of the runs that the recipe part trains, below --out
AGAIN = 75  # the exit code of a process whose GPU context is lost: what is left needs another
Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A piece of work: the rows that it measures, and the seconds after which it counts as hung."""

    name: str
    limit: float
    work: Callable[[], Iterable[Record]]
    least: float = 3.0  # seconds that must be left for it to be begun


class Notes:
    """The records of a part, a line of JSON each.

    kind: head | began | row | failed | left out | note; cell: the piece of work.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, kind: str, **values: Any) -> None:
        """Appends a record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "at": round(time.time(), 2), **values}) + "\n")

    def read(self) -> list[Record]:
        """All records; a line that was cut by a kill is left out."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def rows(self, **wanted: Any) -> list[Record]:
        """The measured rows with these values."""
        return [
            row
            for row in self.read()
            if row["kind"] == "row" and all(row.get(name) == v for name, v in wanted.items())
        ]


class Context(NamedTuple):
    """What every cell may need."""

    asked: Namespace
    notes: Notes
    device: torch.device

    @property
    def quick(self) -> bool:
        """Whether next to nothing is asked for, to see that everything runs."""
        return self.asked.quick

    @property
    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.asked.until - time.time()


def run_cells(cells: Sequence[Cell], notes: Notes, until: float, device: torch.device) -> None:
    """Runs the cells that no earlier process has begun, until the time `until` (time.time()).

    Ends the process with AGAIN where the GPU context is lost.
    """
    begun = {record["cell"] for record in notes.read() if record["kind"] == "began"}
    for cell in cells:
        if cell.name in begun:
            continue
        left = until - time.time()
        if left < cell.least:
            notes.write("left out", cell=cell.name, why=f"{max(left, 0):.0f} s were left")
            continue
        notes.write("began", cell=cell.name, limit=cell.limit)
        try:
            for row in cell.work():
                notes.write("row", cell=cell.name, **row)
        except Exception as error:  # one piece that fails must not take the others with it
            traceback.print_exc()
            notes.write("failed", cell=cell.name, error=one_line(error))
            if lost(device):
                sys.exit(AGAIN)
        else:
            notes.write("ended", cell=cell.name)
        tidy(device)


def one_line(error: BaseException) -> str:
    """The error's kind and its first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def lost(device: torch.device) -> bool:
    """Whether the GPU answers no more in this process, as after an illegal memory access."""
    if device.type != "cuda":
        return False
    import torch

    try:
        torch.cuda.synchronize(device)
        torch.ones(1, device=device).item()
    except RuntimeError:
        return True
    return False


def tidy(device: torch.device) -> None:
    """Gives back what a cell has left: memory, compiled code."""
    import torch

    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
