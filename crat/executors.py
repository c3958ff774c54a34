"""Who does the tasks of a batch: processes on this machine, with a share of its threads or a GPU
each; and the loop that hands tasks out, shows how far they are, and tells what became of each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tqdm import tqdm

from crat import children
from crat.batch import Job, RunTask, Task
from crat.store import StoreError
from crat.text import shown

GLANCE = 0.5  # seconds between looks at what is going on
AT_MOST = 4  # processes on a CPU, unless asked for otherwise: each holds about a gigabyte


class Working(Protocol):
    """A task that is being done."""

    task: Task
    died: bool  # it was killed, which says nothing against the task

    def ended(self) -> str | None:
        """None while it works, then "" or what went wrong."""


class Place(Protocol):
    """Where tasks are done."""

    @property
    def free(self) -> bool:
        """Whether it takes another."""

    def begin(self, task: Task) -> Working:
        """Starts it; raises StoreError."""

    def end(self, working: Iterable[Working]) -> None:
        """Stops what is going on."""


@dataclass
class Process:
    """A task in a process of this machine."""

    task: Task
    child: children.Child
    slot: dict[str, str]
    died: bool = False

    def ended(self) -> str | None:
        """As `Working` has it."""
        if self.child.running:
            return None
        children.end([self.child])
        self.died = self.child.died
        return self.task.finish(self.child)


class Local:
    """Processes on this machine; each gets a GPU, or an equal share of the cores as threads."""

    def __init__(self, workers: int | None = None):
        self.slots = slots(workers)
        self.workers = len(self.slots)

    @property
    def free(self) -> bool:
        """As `Place` has it."""
        return bool(self.slots)

    def begin(self, task: Task) -> Working:
        """As `Place` has it."""
        slot = self.slots.pop(0)
        try:
            return Process(task, task.begin(slot), slot)
        except (StoreError, OSError):
            self.slots.append(slot)
            raise

    def end(self, working: Iterable[Working]) -> None:
        """As `Place` has it."""
        children.end([w.child for w in working if isinstance(w, Process)])

    def give_back(self, working: Working) -> None:
        """Its place is free again."""
        if isinstance(working, Process):
            self.slots.append(working.slot)


def slots(workers: int | None) -> list[dict[str, str]]:
    """What each worker's environment says: its GPU, else how many threads it may use."""
    import torch

    gpus = (
        os.environ.get("CUDA_VISIBLE_DEVICES")
        or ",".join(map(str, range(torch.cuda.device_count())))
    ).split(",")
    if torch.cuda.is_available():
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(workers or len(gpus))]
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    workers = workers or min(cores, AT_MOST)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // workers))
    return [{"OMP_NUM_THREADS": threads} for _ in range(workers)]


def perform(tasks: Sequence[Task], runs_on: Place, notebooks_on: Local) -> dict[str, str]:
    """Does all tasks, each after what it needs; returns what failed: name -> why.

    However this ends, nothing is left running on this machine.
    """
    loop = _Loop(tasks, runs_on, notebooks_on)
    try:
        while loop.left or loop.working:
            loop.turn()
            time.sleep(GLANCE if loop.working or loop.waiting else 0)
    finally:
        loop.close()
    return loop.errors


class _Loop:
    """What is left, what is being done, what is finished."""

    def __init__(self, tasks: Sequence[Task], runs_on: Place, notebooks_on: Local):
        self.left, self.names, self.bars = list(tasks), {task.name for task in tasks}, Bars(tasks)
        self.jobs = [task for task in tasks if isinstance(task, Job)]
        self.runs_on, self.notebooks_on = runs_on, notebooks_on
        self.working: dict[str, tuple[Working, float]] = {}
        self.finished: set[str] = set()
        self.errors: dict[str, str] = {}
        self.again: set[str] = set()  # runs that were begun once more
        self.waiting: dict[str, str] = {}  # notebooks that another driver has: for whom

    def turn(self) -> None:
        """Begins what can be, looks at what goes on."""
        for task in list(self.left):
            if (task.needs | task.after) & self.names <= self.finished:
                self._begin(task)
        for work, began in list(self.working.values()):
            self._look_at(work, time.monotonic() - began)
        self.bars.show([work.task for work, _ in self.working.values()], self.finished)

    def _begin(self, task: Task) -> None:
        lacking = sorted(task.needs & self.errors.keys())
        place = self.runs_on if isinstance(task, RunTask) else self.notebooks_on
        if lacking:
            self.left.remove(task)
            self._conclude(task, f"it needs {lacking[0]}, which failed", 0)
        elif place.free:
            try:
                if isinstance(task, Job) and self._waits(task):
                    return
                if isinstance(task, Job) and task.is_done:  # by the other driver
                    self._conclude(task, "", 0)
                else:
                    self.working[task.name] = place.begin(task), time.monotonic()
            except (StoreError, OSError) as error:
                self._conclude(task, str(error), 0)
            self.left.remove(task)

    def _waits(self, job: Job) -> bool:
        """Whether another driver is running this notebook; says once who."""
        if job.lease.attempt():
            self.waiting.pop(job.name, None)
            return False
        holder = job.lease.holder
        if holder not in ("", self.waiting.get(job.name)):
            tqdm.write(f"{job.name}: waiting for {holder}, which is running it")
        self.waiting[job.name] = holder
        return True

    def _look_at(self, work: Working, seconds: float) -> None:
        try:
            error = work.ended()
        except (StoreError, OSError) as failed:  # what it made cannot be kept
            error = str(failed)
        if error is None:
            return
        task = work.task
        del self.working[task.name]
        self.notebooks_on.give_back(work)
        if work.died and isinstance(task, RunTask) and task.name not in self.again:
            self.again.add(task.name)
            tqdm.write(
                f"{task.name}: its worker was {error}; another goes on after epoch {task.done()}"
            )
            self.left.insert(0, task)
        else:
            self._conclude(task, error, seconds)

    def _conclude(self, task: Task, error: str, seconds: float) -> None:
        self.finished.add(task.name)
        if isinstance(task, Job):
            task.lease.release()
        took = tqdm.format_interval(round(seconds))
        tqdm.write(
            f"{task.name}: " + (f"failed after {took}: {error}" if error else f"done in {took}")
        )
        if error:
            self.errors[task.name] = error
            if isinstance(task, Job) and task.output.exists():
                tqdm.write(f"  what it did until then: {shown(task.output)}")

    def close(self) -> None:
        """Ends what is still going on."""
        self.bars.close()
        for place in {id(p): p for p in (self.runs_on, self.notebooks_on)}.values():
            place.end([work for work, _ in self.working.values()])
        for job in self.jobs:
            job.lease.release()


class Bars:
    """In a terminal: a bar over the epochs of all runs, and one over the cells of all notebooks."""

    def __init__(self, tasks: Sequence[Task]):
        self.bars: list[tuple[tqdm, list[Task], dict[str, int]]] = []
        for kind, unit in ((RunTask, "epoch"), (Job, "cell")):
            own = [task for task in tasks if isinstance(task, kind)]
            done = {task.name: task.done() if isinstance(task, RunTask) else 0 for task in own}
            if own:
                bar = tqdm(
                    total=sum(task.steps for task in own),
                    initial=sum(done.values()),
                    unit=unit,
                    dynamic_ncols=True,
                    disable=None,
                    leave=False,
                    position=len(self.bars),
                )
                self.bars.append((bar, own, done))

    def show(self, working: Sequence[Task], finished: set[str]) -> None:
        """How far all of them are; a finished one counts in full, however it ended."""
        for bar, own, done in self.bars:
            if not bar.disable:
                done |= {task.name: task.done() for task in own if task in working}
                done |= {task.name: task.steps for task in own if task.name in finished}
                bar.n = sum(done.values())
                bar.set_description_str(
                    f"{sum(t.name in finished for t in own)}/{len(own)}", refresh=False
                )
                bar.set_postfix_str(", ".join(task.shown() for task in own if task in working))

    def close(self) -> None:
        """Takes them away."""
        for bar, _, _ in self.bars:
            bar.close()
