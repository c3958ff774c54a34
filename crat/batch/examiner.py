"""The examiner: runs the cells of a notebook in a process of its own, within limits.

The process has a folder of its own, which is removed with all that it wrote, and a store of its
own. The examiner looks at the time, at the memory and number of its processes, and at its files,
and ends them all: also those that left their parent, which are known by a word in their
environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from crat.batch import children
from crat.batch.answers import Cell
from crat.batch.notebook import ROOT
from crat.data.files import data_home
from crat.store import StoreError

GLANCE = 0.1  # seconds between looks
MARKER = "CRAT_EXAMINEE"  # the variable by which the processes of a run are known
PROCESSES = 64  # of one notebook
THREADS = 4  # at most, of torch and NumPy
FILES = 2**30  # bytes that it may write
LINE = 1 << 16  # bytes of an answer


@dataclass(frozen=True)
class Limits:
    """The limits of one notebook: seconds from its start to its end, memory in GB."""

    seconds: float = 300.0
    memory: float = 4.0


@dataclass(frozen=True)
class Result:
    """The result of a check: its column, its points or 0, the fault in a line or ""."""

    what: str
    points: float
    fault: str


class _Ended(Exception):
    """The process is at its end; the text says why."""


def examine(cells: Sequence[Cell], limits: Limits, tell: Callable[[], object]) -> list[Result]:
    """The results of the checks among the cells, which are run one after the other.

    A cell that fails ends nothing; a process that ends, or is ended, fails all later checks.
    tell: called now and then. Raises StoreError where no process can be started.
    """
    results = []
    ended = answered = ""
    with tempfile.TemporaryDirectory(prefix="crat-exam-", ignore_cleanup_errors=True) as folder:
        process = _Process(Path(folder).resolve(), limits, tell)
        try:
            ended = process.begin([cell.source for cell in cells if cell.kind != "own"])
            for cell in cells:
                fault = ended
                if not ended:
                    try:
                        fault = process.run(cell)
                    except _Ended as error:
                        ended = f"{error}, in {cell.what}"
                        fault = str(error)
                if cell.kind == "own":
                    answered = answered or fault
                elif cell.kind == "check":
                    said = ended or fault
                    if answered and fault and not ended:
                        said += f"; before it: {answered}"
                    results.append(Result(cell.what, 0 if fault else cell.points, said))
                    answered = ""
        finally:
            process.end()
    return results


class _Process:
    """The process `python -m crat.batch.examinee` and its kin."""

    def __init__(self, folder: Path, limits: Limits, tell: Callable[[], object]):
        self.folder, self.limits, self.tell = folder, limits, tell
        self.until = time.monotonic() + limits.seconds
        self.marker = secrets.token_hex(8)
        self.word = ""
        self.answers: queue.Queue[bytes] = queue.Queue(maxsize=8)  # a flood waits in the pipe
        self.looked = 0.0
        places = {name: str(folder / name.lower()) for name in ("CRAT_RUNS", "CRAT_FIGURES")}
        places["CRAT_DATA"] = str(data_home().absolute())
        own = {
            MARKER: self.marker,
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")
            or str(min(THREADS, os.cpu_count() or 1)),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUTF8": "1",
        }
        try:
            self.process = subprocess.Popen(
                # -P: no file that the notebook writes is imported in place of a library
                [sys.executable, "-P", "-m", "crat.batch.examinee"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, **places, **own},
                process_group=0,  # Ctrl-C is ours
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            raise StoreError(f"cannot start a process in {folder}: {error.strerror}") from None
        self.family = {psutil.Process(self.process.pid)}
        self.hearing = threading.Thread(target=self._hear, daemon=True)
        self.hearing.start()

    def _hear(self) -> None:
        """Keeps the lines that begin with the word of now; b"" at the end."""
        stream = self.process.stdout
        assert stream is not None
        with contextlib.suppress(OSError, ValueError):
            while line := stream.readline(LINE):
                word, _, rest = line.partition(b" ")
                if word == self.word.encode():
                    self.answers.put(rest)
        self.answers.put(b"")

    def begin(self, sources: Sequence[str]) -> str:
        """Waits until it has imported what the exercise imports; the fault in a line, or ""."""
        try:
            self._ask({"sources": sources, "limits": [self.limits.seconds, self.limits.memory]})
        except _Ended as error:
            return f"{error}, before the first cell"
        return ""

    def run(self, cell: Cell) -> str:
        """Runs a cell; the error in a line, or "". Raises _Ended."""
        return self._ask({"kind": cell.kind, "source": cell.source}) or ""

    def _ask(self, job: dict) -> str | None:
        self.word = secrets.token_hex(16)
        line = json.dumps(job | {"word": self.word}).encode() + b"\n"
        # in a thread, as a process that does not read would hold us here
        threading.Thread(target=self._send, args=(line,), daemon=True).start()
        while True:
            with contextlib.suppress(queue.Empty):
                answer = self.answers.get(timeout=GLANCE)
                if not answer:
                    raise _Ended(self._why())
                with contextlib.suppress(ValueError):
                    error = json.loads(answer)
                    return error if error is None else str(error)
            self._look()

    def _send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it ended, which is seen elsewhere
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def _why(self) -> str:
        """The end of a process that ended by itself, in a line."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        code = self.process.returncode
        if code is None:
            return "it closed its way to the examiner"
        return f"the process ended (exit code {code})"

    def _look(self) -> None:
        """Raises _Ended where a limit is passed."""
        self.tell()
        if time.monotonic() > self.until:
            raise _Ended(f"no end within {self.limits.seconds:g} seconds")
        self.family |= children.descendants(self.process.pid)
        if len(self.family) > PROCESSES:
            raise _Ended(f"more than {PROCESSES} processes")
        if sum(map(_memory, self.family)) > self.limits.memory * 2**30:
            raise _Ended(f"more than {self.limits.memory:g} GB of memory")
        if time.monotonic() > self.looked + 10 * GLANCE:
            self.looked = time.monotonic()
            if _written(self.folder) > FILES:
                raise _Ended(f"more than {FILES // 2**30} GB of files")

    def end(self) -> None:
        """Ends the process and its kin, whatever they are at."""
        children.kill(self.family | children.descendants(self.process.pid))
        self.process.wait()
        for _ in range(10):  # one that forks may be faster than one look
            strays = _marked(self.marker)
            if not strays:
                break
            children.kill(strays)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.hearing.join(1)
        if not self.hearing.is_alive():  # else to close it would wait for who has its other end
            self.process.stdout.close()


def _memory(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss
    return 0


def _written(folder: Path) -> int:
    """The bytes of a folder's files."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _marked(marker: str) -> list[psutil.Process]:
    """The processes with this word in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and process.environ().get(MARKER) == marker:
                found.append(process)
    return found
