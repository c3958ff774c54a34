"""CUDA graphs: the kernels of a piece of work are recorded once and replayed without Python.

A network of 18 layers launches some 190 kernels a pass, and at 128 images a GPU waits two thirds of
the time for the next launch. A graph launches them all at once. Its kernels read and write the
places in memory that they had when they were recorded, and every number that Python chose then is
part of it: what changes must be a tensor that stays in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def can_record(device: torch.device) -> bool:
    """Whether work on this device can be recorded."""
    return device.type == "cuda"


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Runs the work inside on a stream of its own, as work has to before it can be recorded.

    Autograd remembers the stream that it first met a parameter on. The default stream cannot take
    part in a recording.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def record(
    work: Callable[[], Any],
    device: torch.device,
    generators: Iterable[torch.Generator] = (),
    pool: Any = None,
) -> tuple[Callable[[], None], Any]:
    """Records the work of a function, and returns its replay and what the function returned.

    The work is not done by recording it. The function must have run once before (`aside`), so that
    libraries are loaded and kernels chosen.
    generators: those that it draws from, besides torch's own; a replay draws their next numbers.
    pool: the pool of another recording, for recordings that are never needed at the same time
    (torch.cuda.graph_pool_handle).
    Raises RuntimeError where the work waits for the device or cannot be recorded for another
    reason.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    torch.cuda.synchronize(device)
    # other threads of the process may go on with their own work
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
    ):
        result = work()
    return graph.replay, result


def shared_pool(device: torch.device) -> Any:
    """Memory for several recordings of which only one is needed at a time."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None
