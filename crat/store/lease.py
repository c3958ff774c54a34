"""A lease: the file by which one worker holds a run's folder, so that no second one trains the same
run.

It is taken atomically and renewed by a heartbeat. A holder is gone when this machine knows that its
process has ended; of another machine's, when the file has not changed for a minute of the waiter's
own clock: clocks differ, so times of files are compared with each other and never with ours.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from crat import store

if TYPE_CHECKING:
    import torch

BEAT = 10.0  # seconds between heartbeats
STALE = 60.0  # seconds without one after which a holder that cannot be asked is taken for gone
PAUSE = 1.0  # seconds between attempts of one who waits
GONE = (errno.ENOENT, errno.ESTALE)  # what is said of a file that was removed, by a disk and by NFS


class LeaseLost(store.StoreError):
    """Another worker has taken over, as this one did not renew its lease for long: one line that
    says who.
    """


class Lease:
    """One worker's hold on a folder: `attempt` until it is True, `confirm` before writing,
    `release`.
    """

    def __init__(self, folder: Path):
        self.path = folder / ".lease"  # hidden: never published
        self.own = {
            "token": secrets.token_hex(8),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
        self.own |= {"host": socket.gethostname(), "processes": _processes()}
        self.held = False
        self._seen: tuple[bytes, int] = (b"", 0)  # the other's file as it was when it last changed
        self._since = 0.0
        self._stop = threading.Event()

    @property
    def holder(self) -> str:
        """Who has it, as of the last attempt that failed."""
        return _who(self._seen[0])

    def attempt(self) -> bool:
        """Takes it where it is free or its holder is gone; whether it is ours. Raises StoreError
        where none can be.
        """
        try:
            self.held = self._create() or (
                self._holder_is_gone() and self._remove_stale() and self._create()
            )
        except OSError as error:
            raise store.StoreError(
                f"cannot write {self.path}: {error.strerror or error}"
            ) from error
        if self.held:
            threading.Thread(target=self._beat, daemon=True).start()
        return self.held

    def confirm(self) -> None:
        """Raises LeaseLost where another has taken over; to be asked before anything is written.
        Or StoreError.
        """
        if not self.held:
            return
        try:
            while (seen := _look(self.path)) is None:
                if self._create():  # it was removed with its folder
                    return
                time.sleep(0.1)  # a waiter holds it in his hands for a moment
        except OSError as error:
            raise store.StoreError(f"cannot read {self.path}: {error.strerror or error}") from error
        if seen[0] and _read(seen[0]).get("token") != self.own["token"]:
            self.held = False
            raise LeaseLost(
                f"{self.path.parent.name}: {_who(seen[0])} has taken over; this worker stops"
            )

    def release(self) -> None:
        """Gives it back, if it is still ours; a folder in which nothing was made goes with it."""
        self._stop.set()
        if self.held:
            self.held = False
            with contextlib.suppress(OSError):
                seen = _look(self.path)
                if seen and _read(seen[0]).get("token") == self.own["token"]:
                    self.path.unlink()
                    self.path.parent.rmdir()

    def _create(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        # another has it, or just left and took the empty folder away
        except (FileExistsError, FileNotFoundError):
            return False
        try:
            os.write(handle, json.dumps(self.own).encode())
        except OSError:  # a full disk: an empty file would look like a holder
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        return True

    def _beat(self) -> None:
        """A new time on the file, which harms nobody if it is another's by now."""
        while not self._stop.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _holder_is_gone(self) -> bool:
        now = _look(self.path)
        if now is None:
            return False
        if now != self._seen:
            self._seen, self._since = now, time.monotonic()
        return _ended_here(_read(now[0])) or time.monotonic() - self._since > STALE

    def _remove_stale(self) -> bool:
        """Of several who find it stale, the one whose renaming succeeds; one who was too late
        puts it back.
        """
        aside = self.path.with_name(f"{self.path.name}-{self.own['token']}")
        try:
            self.path.rename(aside)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return False
        stale = aside.read_bytes() == self._seen[0]
        if not stale:
            with contextlib.suppress(OSError):
                os.link(aside, self.path)
        aside.unlink()
        return stale


@contextlib.contextmanager
def held(folder: Path, device: torch.device) -> Iterator[Lease]:
    """The lease of a folder, after waiting for whoever has it (one line says who); under
    torchrun rank 0 takes it.
    """
    from crat import distributed

    lease, told, first = Lease(folder), "", distributed.rank() == 0
    try:
        while not distributed.decided_by_first(first and lease.attempt(), device):
            if first and lease.holder not in ("", told):
                told = lease.holder
                print(
                    f"{folder.name}: waiting for {told}, which is training it",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(PAUSE)
        yield lease
    finally:
        lease.release()


def _processes() -> str:
    """The world in which a process number means something: one start of a machine, and in it the
    container.

    Containers of one name may have several such worlds, and the first one is called the same on all
    machines.
    """
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> float:
    """When a process began, in seconds that no setting of the clock changes. Raises
    psutil.NoSuchProcess.

    Linux counts from the machine's start, and psutil adds the time of that, which moves with the
    clock.
    """
    boot = psutil.boot_time() if psutil.LINUX else 0.0
    return psutil.Process(pid).create_time() - boot


def _look(path: Path) -> tuple[bytes, int] | None:
    """What a lease's file holds and when it was last touched; None where there is none (any
    more).
    """
    try:
        with path.open("rb") as file:  # opening it asks a network's server anew
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except OSError as error:
        if error.errno not in GONE:
            raise
        return None


def _read(content: bytes) -> dict[str, Any]:
    try:
        return json.loads(content)
    except ValueError:
        return {}  # being written


def _who(content: bytes) -> str:
    other = _read(content)
    return f"process {other['pid']} on {other['host']}" if other else ""


def _ended_here(other: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended; its number may be
    another's by now.
    """
    if (other.get("host"), other.get("processes")) != (socket.gethostname(), _processes()):
        return False
    try:
        if abs(_started(other["pid"]) - other["started"]) > 3:  # both times of a start are rounded
            return True
        return psutil.Process(other["pid"]).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
