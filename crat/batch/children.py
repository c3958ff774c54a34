"""Processes that end with the one that started them, however it ended, and end their own, too."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from crat.store import StoreError

GRACE = 5.0  # seconds for a child to end by itself when it is told to
TOLD = 3  # the exit code of a child whose log ends in one line that needs no traceback


class Child:
    """`python -m module argument`. Its standard input is held open: the end of its life.

    Its output goes to a file without a name in the log's folder, which is gone with us, however we
    end; where it tells of a fault, it becomes the log. env is added to the environment. Raises
    StoreError where nothing can be written.
    """

    def __init__(
        self, module: str, argument: str, log: Path, env: Mapping[str, str], cwd: Path | None = None
    ):
        self.log = log
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)  # of an earlier try
            self.noise = tempfile.TemporaryFile(dir=log.parent)  # noqa: SIM115
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, argument], stdin=subprocess.PIPE, stdout=self.noise,
                stderr=subprocess.STDOUT, cwd=cwd, env={**os.environ, **env},
                process_group=0,  # Ctrl-C is ours to pass on
            )  # fmt: skip
        except OSError as error:
            raise StoreError(f"cannot write {log}: {error.strerror or error}") from error
        self.family = {psutil.Process(self.process.pid)}

    @property
    def running(self) -> bool:
        """Whether it is; its descendants are noted meanwhile, for its end."""
        self.family |= descendants(self.process.pid)
        return self.process.poll() is None

    @property
    def died(self) -> bool:
        """Whether something outside ended it: a signal, the lack of memory."""
        return (self.process.returncode or 0) < 0

    def told(self) -> str:
        """ "" after a clean end, else what went wrong, in a line; with a log, if that is little."""
        code = self.process.returncode
        with self.noise:
            self.noise.seek(0)
            said = self.noise.read()
        if code == 0:
            return ""
        if code == -signal.SIGKILL:
            return "killed by SIGKILL (out of memory?)"
        line = last_line(said.decode(errors="replace"))
        if code == TOLD and line:
            return line
        with contextlib.suppress(OSError):  # the line below says why
            self.log.write_bytes(said)
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        line = (line or "it ended without a word") + _disk_error(
            self.log.parent
        )  # why the log may say little
        return line if code in (1, TOLD) else f"{line} (exit code {code})"


def _disk_error(folder: Path) -> str:
    """What keeps a file from being written in a folder, in brackets; "" where nothing does."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f" (cannot write to {folder}: {error.strerror or error})"
    return ""


def end(children: Iterable[Child]) -> None:
    """Tells all of them to end, waits a while, and kills what is left of them and of theirs."""
    children = list(children)
    for child in children:
        assert child.process.stdin is not None
        with contextlib.suppress(OSError):
            child.process.stdin.close()
    deadline = time.monotonic() + GRACE
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0, deadline - time.monotonic()))
        kill(child.family)
        child.process.wait()


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kills them; psutil knows a number that was given to another process since."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def descendants(pid: int) -> set[psutil.Process]:
    """The processes that a process started, and those that they did."""
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def end_with_starter(grace: float = 0.0) -> None:
    """To be called first in a child. grace: seconds for it to end by KeyboardInterrupt."""
    threading.Thread(target=_wait_for_end, args=(grace,), daemon=True).start()


def _wait_for_end(grace: float) -> None:
    """Until the starter closes our standard input, which its death does too.

    A raw read, as a thread that waits in sys.stdin would block the interpreter's end.
    """
    os.read(0, 1)
    if grace:
        _thread.interrupt_main()
        time.sleep(grace)
    kill(descendants(os.getpid()))  # a killed kernel would leave its own processes behind
    os._exit(1)


def last_line(text: str) -> str:
    """Of a log or a cell's output."""
    return text.rstrip().rpartition("\n")[2].strip()
