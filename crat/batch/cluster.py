"""Runs on several machines, by dask.distributed, whose workers start the same child processes.

A config and a line of text go over the network; weights and outcomes go to the store, a folder that
all machines see.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crat import store
from crat.batch.executors import Outcome, do
from crat.batch.tasks import Task

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = 30.0  # seconds for the scheduler to answer, and for a first worker to join


class ClusterError(RuntimeError):
    """A dask cluster that cannot be used: one line with what to do."""


class Cluster:
    """The workers of a dask scheduler: its address, or the scheduler file that it wrote.

    Raises ClusterError where there is none, or where a worker has no crat or does not see the
    store's folder (None: the usual store's).
    """

    def __init__(self, where: str, root: Path | None = None):
        try:
            from distributed import Client
        except ImportError:
            line = "--dask needs dask.distributed: pip install 'crat[dask]'"
            raise ClusterError(line) from None
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # we report losses ourselves
        at: dict[str, Any] = {"address": where}
        if Path(where).is_file():
            at = {"scheduler_file": where}
        try:
            self.client: Client = Client(**at, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise ClusterError(f"no dask scheduler at {where}: {said}") from None
        self.executor = self.client.get_executor(pure=False)
        folder = (root or store.home()).absolute()
        self.proof = folder / f".seen-by-all-{secrets.token_hex(4)}", secrets.token_hex(8)
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
            line = f"no worker has joined {where}: start `dask worker`"
            raise ClusterError(line) from None
        answers = self.client.run(sees, *self.proof, on_error="return")
        for worker, answer in answers.items():
            if answer is False:
                raise ClusterError(_unfit(worker, self.proof[0].parent))
            if answer is not True:
                raise ClusterError(f"{worker}: {answer!r}")

    def submit(self, task: Task) -> Future[Outcome]:
        """Gives the task to the first free worker."""
        return self.executor.submit(make, task, self.proof)

    def close(self) -> None:
        """Leaves the cluster; a worker that is at a task notices that nobody wants it."""
        self.executor.shutdown(wait=False)
        with contextlib.suppress(OSError):
            self.proof[0].unlink(missing_ok=True)
        self.client.close()


def sees(path: Path, text: str) -> bool:
    """Whether this machine reads the text that the driver wrote to a path."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8") == text
    return False


def _unfit(worker: str, folder: Path) -> str:
    advice = "set CRAT_RUNS to a folder that all machines share"
    return f"worker {worker} does not see {folder}: {advice}"


def make(task: Task, proof: tuple[Path, str]) -> Outcome:
    """Does a task within a dask worker, for as long as its driver lives and wants it."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    if not sees(*proof):  # a worker that joined late
        return Outcome(_unfit(worker.address, proof[0].parent))

    def wanted() -> bool:
        state = worker.state.tasks.get(key)
        return state is not None and state.state == "executing"

    return do(task, {}, wanted)
