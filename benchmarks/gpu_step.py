"""The step part of gpu.py: every side of the step table, timed, the most important first."""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from gpu_cells import Cell, Context, Record
from measuring import peak_memory, seconds
from training import Flops, authors_step, matrix_rate, our_step, textbook_step

METHODS = ("pgd_at", "trades", "cfa", "spat", "frl", "wat")
COLOUR, GREY = (3, 32, 32), (1, 28, 28)


@dataclass(frozen=True)
class Side:
    """A step that is timed: what it is, and how it is made."""

    side: str  # textbook, authors, crat, crat compiled
    method: str
    model: str
    batch: int
    make: Callable[[], Callable[[], object]]
    shape: tuple[int, int, int] = COLOUR

    @property
    def name(self) -> str:
        """A name that no other side has."""
        size = "x".join(map(str, self.shape))
        return f"{self.side} {self.method} {self.model} {size} batch {self.batch}"


def step_cells(here: Context) -> list[Cell]:
    """The rates, the work of an image, then the sides, the most important first."""
    patience = 20 if here.quick else 1  # a busy CPU is no fault of a piece
    cells = [Cell("matrix rate", 30 * patience, lambda: rates(here))]
    for side in sides(here):
        slow = side.side == "crat compiled"
        limit = (90 if slow else 45) * patience
        cells.append(Cell(side.name, limit, timer(side, here), 45 if slow else 4))
    # what an image costs is needed last, by the report
    return [*cells[:9], Cell("work of an image", 60 * patience, lambda: works(here)), *cells[9:]]


def rates(here: Context) -> Iterator[Record]:
    """The measured rate of a square product of random numbers."""
    for dtype in ("bfloat16", "float32"):
        yield {"dtype": dtype, "TFLOP/s": round(matrix_rate(here.device, dtype), 3)}


def architecture(here: Context) -> str:
    """The colour network: the papers' one, or a small one where next to nothing is asked for."""
    return "small_cnn" if here.quick else "preact_resnet18"


def attack_steps(here: Context) -> int:
    """Steps of PGD in a training step."""
    return 2 if here.quick else 10


def works(here: Context) -> Iterator[Record]:
    """Floating point operations of matrix products and convolutions, an image of a training step.

    Counted on the CPU, in the second of two steps of a batch of two: the first may prove itself.
    """
    cpu, n = torch.device("cpu"), 2
    cases = [(method, architecture(here), COLOUR) for method in METHODS]
    for method, model, shape in [("pgd_at", "small_cnn", GREY), *cases]:
        step = our_step(method, model, n, attack_steps(here), cpu, image_shape=shape)
        step()
        with Flops() as counter:
            step()
        work = {"method": method, "model": model, "shape": list(shape)}
        yield {**work, "GFLOP an image": round(counter.total / n / 1e9, 4)}


def sides(here: Context) -> list[Side]:
    """AT at every batch size, then the small network, the other methods, and what is compiled."""
    steps, device, model = attack_steps(here), here.device, architecture(here)
    batches = (4, 8) if here.quick else (128, 512, 64, 1024)

    def ours(method: str, batch: int, compile: bool = False) -> Side:
        def make() -> Callable[[], object]:
            return our_step(method, model, batch, steps, device, compile=compile)

        return Side("crat compiled" if compile else "crat", method, model, batch, make)

    def base(batch: int) -> list[Side]:
        found = [
            Side(
                "textbook",
                "pgd_at",
                model,
                batch,
                lambda: textbook_step(model, batch, steps, device),
            )
        ]
        if here.asked.cfa and model == "preact_resnet18":
            clone = here.asked.cfa
            found.append(
                Side(
                    "authors",
                    "pgd_at",
                    model,
                    batch,
                    lambda: authors_step(clone, batch, steps, device),
                )
            )
        return [*found, ours("pgd_at", batch)]

    def grey(side: str, batch: int, compile: bool = False) -> Side:
        def make() -> Callable[[], object]:
            if side == "textbook":
                return textbook_step("small_cnn", batch, steps, device, image_shape=GREY)
            return our_step("pgd_at", "small_cnn", batch, steps, device, compile, image_shape=GREY)

        return Side(side, "pgd_at", "small_cnn", batch, make, GREY)

    chosen = [side for batch in batches for side in base(batch)]
    chosen += [grey("textbook", batches[0]), grey("crat", batches[0]), grey("crat", batches[1])]
    for batch in batches:
        chosen += [ours(method, batch) for method in METHODS if method != "pgd_at"]
    if not here.quick:  # a compilation takes longer than all that is quick
        chosen += [
            ours("pgd_at", 512, True),
            grey("crat compiled", 128, True),
            ours("pgd_at", 128, True),
        ]
        chosen += [ours("trades", 512, True), ours("pgd_at", 1024, True), ours("pgd_at", 64, True)]
    return chosen


def timer(side: Side, here: Context) -> Callable[[], Iterator[Record]]:
    """The work of a cell: one row of the step table."""

    def work() -> Iterator[Record]:
        device = here.device
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        began = time.perf_counter()
        with told() as lines:
            step = side.make()
            seconds(step, device)
            first = time.perf_counter() - began
            for _ in range(2):  # what is recorded or tuned in the second call is warm-up, too
                seconds(step, device)
        times = call_seconds(step, device, 0.05 if here.quick else 1.0)
        if device.type == "cuda":
            peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        else:
            peak = peak_memory(step, device)
        yield {
            "side": side.side,
            "method": side.method,
            "model": side.model,
            "shape": list(side.shape),
            "batch": side.batch,
            "images/s": round(side.batch / median(times), 1),
            "best": round(side.batch / min(times), 1),
            "ms": round(1000 * median(times), 2),
            "first s": round(first, 1),
            "peak MiB": round(peak, 0) if peak == peak else None,
            "way": getattr(step, "way", ""),
            "told": lines[0] if lines else "",
        }

    return work


def call_seconds(
    step: Callable[[], object], device: torch.device, least: float, rounds: int = 5
) -> list[float]:
    """Seconds of a call in several rounds, as a training has them: it does not wait in between."""
    one = seconds(step, device)
    calls = max(1, int(least / rounds / max(one, 1e-6)))

    def several() -> None:
        for _ in range(calls):
            step()

    return [seconds(several, device) / calls for _ in range(rounds)]


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """Yields a list that has, at the end, the lines that were printed or warned of inside."""
    lines: list[str] = []
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        try:
            yield lines
        finally:
            lines += [line for line in printed.getvalue().splitlines() if line.strip()]
            lines += [str(w.message).splitlines()[0] for w in caught if is_ours(w)]
    for line in lines:
        print(line, flush=True)


def is_ours(warning: Any) -> bool:
    """Whether a warning is of a kind that crat defines."""
    return warning.category.__module__.split(".")[0] == "crat"
