"""Runs on several machines, by dask.distributed: a worker of its own there starts the same process
as here.

What goes over the network is a config and a line of text; what is made goes to the store, a folder
that all see.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crat import children, store
from crat.batch import RunTask, Task
from crat.executors import GLANCE

if TYPE_CHECKING:
    from distributed import Client, Future

PATIENCE = 30.0  # seconds for the scheduler to answer, and for a first worker to join
AGAIN = 5.0  # seconds after which the workers are counted again


class ClusterError(RuntimeError):
    """A dask cluster that cannot be used: one line with what to do."""


@dataclass
class Remote:
    """A run that a dask worker has, or will get."""

    task: Task
    future: Future
    died: bool = False

    def ended(self) -> str | None:
        """As executors.Working has it."""
        if self.future.status == "pending":
            return None
        if self.future.status == "finished":
            error, self.died = self.future.result()
            return error
        from distributed import KilledWorker

        error = self.future.exception(timeout=PATIENCE) if self.future.status == "error" else None
        if error and not isinstance(error, KilledWorker):
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        self.died = True  # it lost its worker, more than once, or the scheduler
        return f"lost by the cluster ({self.future.status})"


class Cluster:
    """The workers of a dask scheduler: its address, or the scheduler file that it wrote.

    Raises ClusterError where there is none, or where a worker has no crat or does not see our
    store.
    """

    def __init__(self, where: str):
        try:
            from distributed import Client
        except ImportError:
            raise ClusterError("--dask needs dask.distributed: pip install 'crat[dask]'") from None
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what is lost is told by us
        address: dict[str, Any] = (
            {"scheduler_file": where} if Path(where).is_file() else {"address": where}
        )
        try:
            self.client: Client = Client(**address, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"no dask scheduler at {where}: {str(error).splitlines()[0]}"
            ) from None
        self.futures: list[Future] = []
        self.threads, self.counted = 0, -AGAIN
        self.proof = (
            store.home().absolute() / f".seen-by-all-{secrets.token_hex(4)}",
            secrets.token_hex(8),
        )
        try:
            store.write_text(*self.proof)
            self._check(where)
        except BaseException:
            self.close()
            raise

    def _check(self, where: str) -> None:
        try:
            self.client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise ClusterError(f"no worker has joined {where}: start `dask worker`") from None
        answers = self.client.run(sees, *self.proof, on_error="return")
        for worker, answer in answers.items():
            if answer is not True:
                raise ClusterError(
                    _unfit(worker, self.proof[0].parent)
                    if answer is False
                    else f"{worker}: {answer!r}"
                )

    @property
    def free(self) -> bool:
        """As executors.Place has it: a run for each thread and one that waits for it; what is
        queued looks begun.
        """
        if time.monotonic() - self.counted >= AGAIN:
            self.counted = time.monotonic()
            with contextlib.suppress(OSError):  # of a scheduler that is gone the futures tell
                self.threads = sum(self.client.nthreads().values())
        self.futures = [future for future in self.futures if future.status == "pending"]
        return len(self.futures) < 2 * max(1, self.threads)

    def begin(self, task: Task) -> Remote:
        """As executors.Place has it."""
        assert isinstance(task, RunTask)
        env = {name: os.environ[name] for name in ("CRAT_RECOMPUTE",) if name in os.environ}
        future = self.client.submit(
            make, task, env, self.proof, key=f"{task.name}-{secrets.token_hex(4)}"
        )
        self.futures.append(future)
        return Remote(task, future)

    def end(self, working: Iterable[Any]) -> None:
        """As executors.Place has it; a worker that is at it sees that nobody wants it any more."""
        remote = [work.future for work in working if isinstance(work, Remote)]
        if remote:
            self.client.cancel(remote, force=True)
        self.close()

    def close(self) -> None:
        """Leaves the cluster as it was."""
        with contextlib.suppress(OSError):
            self.proof[0].unlink(missing_ok=True)
        self.client.close()


def sees(path: Path, text: str) -> bool:
    """Whether this machine reads what the driver wrote."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8") == text
    return False


def _unfit(worker: str, folder: Path) -> str:
    return (
        f"worker {worker} does not see {folder}: set CRAT_RUNS to a folder that all machines share"
    )


def make(task: RunTask, env: dict[str, str], proof: tuple[Path, str]) -> tuple[str, bool]:
    """Within a dask worker: does a run in a process; returns "" or what went wrong, and whether
    it was killed.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    if not sees(*proof):  # one that joined late
        return _unfit(worker.address, proof[0].parent), False
    child = task.begin(env)
    try:
        while child.running:
            state = worker.state.tasks.get(key)
            # the driver is gone, or wants it no more
            if state is None or state.state != "executing":
                return "stopped", False
            time.sleep(GLANCE)
    finally:
        children.end([child])
    return task.finish(child), child.died
