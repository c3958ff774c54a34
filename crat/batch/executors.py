"""The executors: tasks in their order, each in a child process, here or on a cluster.

ready tasks (graphlib) -> concurrent.futures -> Outcome -> the tasks that waited for them
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from math import ceil
from threading import Event
from typing import Protocol

from tqdm import tqdm

from crat.batch.tasks import Job, RunTask, Task
from crat.store import StoreError
from crat.text import shown

GLANCE = 0.5  # seconds between looks at the tasks
# processes on a CPU, and on each GPU where the networks are small, unless asked for otherwise: each
# holds about a gigabyte of the machine's memory
AT_MOST = 4
# bytes of a GPU for a training of a small network (an estimate: none was measured), and the part of
# a GPU that its processes share; the rest holds their contexts, which no process's share counts
GPU_EACH = 3 * 2**30
SHARED = 0.9


@dataclass(frozen=True)
class Outcome:
    """The outcome of a task.

    error: "" or the fault in a line. killed: something outside ended it, which says nothing against
    the task. waits_for: another driver that does the task, which was not begun here.
    """

    error: str = ""
    killed: bool = False
    seconds: float = 0.0
    waits_for: str | None = None


class Place(Protocol):
    """A place that does tasks, with the face of a concurrent.futures.Executor."""

    def submit(self, task: Task) -> Future[Outcome]:
        """Begins the task as soon as there is room for it."""

    def close(self) -> None:
        """Ends all tasks that still run."""


def do(task: Task, env: Mapping[str, str], wanted: Callable[[], bool]) -> Outcome:
    """Does a task in a child process, for as long as it is wanted; called in a thread.

    Raises StoreError or OSError where something cannot be written.
    """
    if task.lease and not task.lease.attempt():
        time.sleep(GLANCE)
        return Outcome(waits_for=task.lease.holder)
    began = time.monotonic()
    try:
        if isinstance(task, Job) and task.is_done:  # by the other driver
            return Outcome()
        child = task.begin(env)
        try:
            while child.running:
                if not wanted():
                    return Outcome("stopped")
                time.sleep(GLANCE)
        finally:
            child.end()
        return Outcome(task.finish(child), child.died, time.monotonic() - began)
    finally:
        if task.lease:
            task.lease.release()


class Local:
    """Processes on this machine; each gets a GPU, or an equal share of the cores as threads.

    small: whether several of them may share a GPU (`slots`).
    """

    def __init__(self, workers: int | None = None, small: bool = False):
        self.slots = slots(workers, small)
        self.executor = ThreadPoolExecutor(len(self.slots))
        self.ended = Event()

    def submit(self, task: Task) -> Future[Outcome]:
        """Begins the task in a free thread."""
        return self.executor.submit(self._do, task)

    def _do(self, task: Task) -> Outcome:
        slot = self.slots.pop(0)  # there are as many as threads
        try:
            return do(task, slot, lambda: not self.ended.is_set())
        finally:
            self.slots.append(slot)

    def close(self) -> None:
        """Ends the processes and their descendants."""
        self.ended.set()
        self.executor.shutdown(cancel_futures=True)


def slots(workers: int | None, small: bool = False) -> list[dict[str, str]]:
    """The environment variables of each worker: its GPU and its share of it, its threads.

    workers: their number (None: one on each GPU; without a GPU one for each core up to AT_MOST).
    small: networks so small that one process leaves a GPU idle; then None means up to AT_MOST on
    each GPU, as many as its memory and the machine's cores allow.
    """
    import torch

    from crat.device import GPU_SHARE, usable_cores

    cores = usable_cores()
    gpus: list[str] = []
    if torch.cuda.is_available():
        n = torch.cuda.device_count()
        every = ",".join(map(str, range(n)))
        gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or every).split(",")[:n]
        together = _together(n, cores) if small else 1
        workers = workers or together * n
    else:
        workers = workers or min(cores, AT_MOST)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // workers))
    slot = {"OMP_NUM_THREADS": threads}
    if gpus and workers > len(gpus):
        slot[GPU_SHARE] = f"{SHARED / ceil(workers / len(gpus)):.3f}"
    own = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(workers)]
    return [slot | gpu for gpu in own]


def _together(gpus: int, cores: int) -> int:
    """The number of processes on each GPU: a core for each, and GPU_EACH of the smallest GPU."""
    import torch

    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(gpus))
    return max(1, min(AT_MOST, cores // gpus, int(SHARED * memory / GPU_EACH)))


def gpu_line(slots: Sequence[Mapping[str, str]]) -> str:
    """The processes on each GPU in words; "" without a GPU."""
    from crat.device import GPU_SHARE

    counts = Counter(slot.get("CUDA_VISIBLE_DEVICES", "") for slot in slots)
    if "" in counts:
        return ""
    least, most = min(counts.values()), max(counts.values())
    n = f"{most} process{'es' * (most > 1)}" if least == most else f"{least} to {most} processes"
    share = slots[0].get(GPU_SHARE)
    memory = f", each with {100 * float(share):.0f} % of its memory" if share else ""
    return f"{n} on each of {len(counts)} GPU{'s' * (len(counts) > 1)}{memory}"


def perform(tasks: Sequence[Task], runs_on: Place, notebooks_on: Place) -> dict[str, str]:
    """Does all tasks, each after its needs; returns the faults by name of task.

    However this ends, nothing is left running on this machine.
    """
    loop = _Loop(tasks, runs_on, notebooks_on)
    try:
        loop.run()
    finally:
        loop.bars.close()
        runs_on.close()
        notebooks_on.close()
    return loop.errors


class _Loop:
    """The state of a batch: the tasks at work, and the outcomes of the finished ones."""

    def __init__(self, tasks: Sequence[Task], runs_on: Place, notebooks_on: Place):
        self.tasks = {task.name: task for task in tasks}
        earlier = {t.name: (t.needs | t.after) & self.tasks.keys() for t in tasks}
        self.order = TopologicalSorter(earlier)
        self.order.prepare()
        self.runs_on = runs_on
        self.notebooks_on = notebooks_on
        self.bars = Bars(tasks)
        self.working: dict[Future[Outcome], Task] = {}
        self.finished: set[str] = set()
        self.errors: dict[str, str] = {}
        self.again: set[str] = set()  # runs that were begun once more
        self.waits_for: dict[str, str] = {}  # the other driver, by the notebook that it has

    def run(self) -> None:
        """Does all tasks."""
        while self.order.is_active():
            for name in self.order.get_ready():
                self._begin(self.tasks[name])
            done, _ = wait(self.working, GLANCE, FIRST_COMPLETED)
            for future in done:
                self._look_at(self.working.pop(future), _outcome(future))
            running = [task for future, task in self.working.items() if not future.done()]
            self.bars.show(running, self.finished)

    def _begin(self, task: Task) -> None:
        lacking = sorted(task.needs & self.errors.keys())
        if lacking:
            self._conclude(task, Outcome(f"it needs {lacking[0]}, which failed"))
            return
        place = self.runs_on if isinstance(task, RunTask) else self.notebooks_on
        self.working[place.submit(task)] = task

    def _look_at(self, task: Task, outcome: Outcome) -> None:
        if outcome.waits_for is not None:
            if outcome.waits_for not in ("", self.waits_for.get(task.name)):
                self.waits_for[task.name] = outcome.waits_for
                tqdm.write(f"{task.name}: waiting for {outcome.waits_for}, which is running it")
            self._begin(task)
        elif outcome.killed and isinstance(task, RunTask) and task.name not in self.again:
            self.again.add(task.name)
            went_on = f"another goes on after epoch {task.done()}"
            tqdm.write(f"{task.name}: its worker was {outcome.error}; {went_on}")
            self._begin(task)
        else:
            self._conclude(task, outcome)

    def _conclude(self, task: Task, outcome: Outcome) -> None:
        self.finished.add(task.name)
        self.order.done(task.name)
        took = tqdm.format_interval(round(outcome.seconds))
        if not outcome.error:
            tqdm.write(f"{task.name}: done in {took}")
            return
        self.errors[task.name] = outcome.error
        tqdm.write(f"{task.name}: failed after {took}: {outcome.error}")
        if isinstance(task, Job) and task.output.exists():
            tqdm.write(f"  what it did until then: {shown(task.output)}")


def _outcome(future: Future[Outcome]) -> Outcome:
    """The outcome of a future; an error is that task's alone."""
    if future.cancelled():
        return Outcome("lost by the cluster", killed=True)
    error = future.exception()
    if error is None:
        return future.result()
    if type(error).__name__ == "KilledWorker":  # dask lost its worker, more than once
        return Outcome("lost by the cluster", killed=True)
    if isinstance(error, StoreError | OSError):
        return Outcome(str(error))
    return Outcome(f"{type(error).__name__}: {' '.join(str(error).split())}")


class Bars:
    """The bars in a terminal: one over epochs of all runs, one over cells of all notebooks."""

    def __init__(self, tasks: Sequence[Task]):
        self.bars: list[tuple[tqdm, list[Task], dict[str, int]]] = []
        for kind, unit in ((RunTask, "epoch"), (Job, "cell")):
            own = [task for task in tasks if isinstance(task, kind)]
            done = {task.name: task.done() if kind is RunTask else 0 for task in own}
            if own:
                looks = {"unit": unit, "dynamic_ncols": True, "disable": None, "leave": False}
                total = sum(task.steps for task in own)
                before = sum(done.values())
                bar = tqdm(total=total, initial=before, position=len(self.bars), **looks)
                self.bars.append((bar, own, done))

    def show(self, working: Iterable[Task], finished: set[str]) -> None:
        """Draws the progress of all tasks; a finished task counts in full, however it ended."""
        names = {task.name for task in working}
        for bar, own, done in self.bars:
            if bar.disable:
                continue
            at_work = [task for task in own if task.name in names]
            done |= {task.name: task.done() for task in at_work}
            done |= {task.name: task.steps for task in own if task.name in finished}
            bar.n = sum(done.values())
            n = sum(task.name in finished for task in own)
            bar.set_description_str(f"{n}/{len(own)}", refresh=False)
            bar.set_postfix_str(", ".join(task.shown() for task in at_work[:AT_MOST]))

    def close(self) -> None:
        """Removes the bars."""
        for bar, _, _ in self.bars:
            bar.close()
