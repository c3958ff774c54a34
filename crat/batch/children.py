"""Child processes that end with their starter, however it ends, and end their own children."""

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

KILLED = -9  # the exit code after SIGKILL, a name that Windows does not have
CRASHED = 0xC0000000  # the least exit code of a process that Windows ended for an error of its own
GRACE = 5.0  # seconds for a child to end by itself after its input is closed
EXPLAINED = 3  # the exit code of a child whose last line says all, without a traceback


class Child:
    """A process `python -m module argument` that lives as long as its standard input is open.

    Its output goes to a nameless file in the log's folder, which vanishes with us, however we end;
    after a fault the output is written to the log. env is added to the environment. Raises
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
                [sys.executable, "-m", module, argument],
                stdin=subprocess.PIPE,
                stdout=self.noise,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, "PYTHONUTF8": "1", **env},  # else Windows' own encoding
                # Ctrl-C is ours to pass on; a system reads the one or the other
                process_group=0,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            raise StoreError(f"cannot write {log}: {error.strerror or error}") from error
        self.family = {psutil.Process(self.process.pid)}

    @property
    def running(self) -> bool:
        """Whether the process runs; notes its descendants, which end with it."""
        self.family |= descendants(self.process.pid)
        return self.process.poll() is None

    @property
    def died(self) -> bool:
        """Whether the system ended it, such as by a signal for lack of memory."""
        return _by_system(self.process.returncode or 0)

    def end(self) -> None:
        """Closes the input, waits GRACE seconds, and kills the rest of the process's family."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        kill(self.family)
        self.process.wait()

    def fault(self) -> str:
        """The fault in a line, "" after a clean end; writes the log where a line says little."""
        code = self.process.returncode
        with self.noise:
            self.noise.seek(0)
            said = self.noise.read()
        if code == 0:
            return ""
        if code == KILLED:
            return "killed by SIGKILL (out of memory?)"
        line = last_line(said.decode(errors="replace"))
        if code == EXPLAINED and line:
            return line
        with contextlib.suppress(OSError):  # the line below says why
            self.log.write_bytes(said)
        if _by_system(code):
            return f"killed by {_signal_name(code)}"
        line = line or "it ended without a word"
        line += _disk_error(self.log.parent)  # a full disk leaves the log short
        return line if code in (1, EXPLAINED) else f"{line} (exit code {code})"


def _by_system(code: int) -> bool:
    """Whether an exit code is a signal's, or that of an error for which Windows ends a process."""
    return code < 0 or code >= CRASHED


def _signal_name(code: int) -> str:
    """The signal of an exit code by its name here, or else by its number; Windows' error in hex."""
    if code > 0:
        return f"Windows, error {code:#x}"
    known = {member.value: member.name for member in signal.Signals}
    return known.get(-code, f"signal {-code}")


def _disk_error(folder: Path) -> str:
    """The error of writing a file into a folder, in brackets; "" where there is none."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f" (cannot write to {folder}: {error.strerror or error})"
    return ""


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kills processes; psutil spares a new process that got an old number."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def descendants(pid: int) -> set[psutil.Process]:
    """The children of a process and theirs, as far as they go."""
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def end_with_starter(grace: float = 0.0) -> None:
    """Ends this process when its starter ends; a child calls it first.

    grace: seconds for it to end by KeyboardInterrupt.
    """
    threading.Thread(target=_wait_for_end, args=(grace,), daemon=True).start()


def _wait_for_end(grace: float) -> None:
    """Waits until the starter, by its will or its death, closes our standard input; then ends us.

    The read is raw, as a thread that waits in sys.stdin would block the interpreter's end.
    """
    os.read(0, 1)
    if grace:
        _thread.interrupt_main()
        time.sleep(grace)
    kill(descendants(os.getpid()))  # a killed kernel would leave its own processes behind
    os._exit(1)


def last_line(text: str) -> str:
    """The last line of a text that is not blank at its end, without spaces around it."""
    return text.rstrip().rpartition("\n")[2].strip()
