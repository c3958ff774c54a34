"""A lease: the file by which one worker holds a folder, so that no second one trains the same run.

filelock's SoftFileLease creates it exclusively and renews it by a heartbeat. A holder is gone when
this machine knows that its process has ended; a holder of another machine, when its file has not
changed for a minute of the waiter's own clock. This module adds two things to filelock, which never
takes over where the file system cannot exchange two names (NFS), and takes a machine of the same
name for this one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import SoftFileLease, Timeout

from crat.store.files import StoreError

if TYPE_CHECKING:
    import torch

BEAT = 10.0  # seconds between heartbeats
STALE = 60.0  # seconds without one after which a holder that cannot be asked is taken for gone
PAUSE = 1.0  # seconds between attempts of a worker that waits
LOOKS = 5  # a waiter may move the file aside for a moment, so a holder looks so often, 0.1 s apart
GONE = (errno.ENOENT, errno.ESTALE)  # errors of a file that was removed, on a disk and on NFS


class LeaseLost(StoreError):
    """Another worker has taken over, as this one did not renew its lease: one line says who."""


class Lease:
    """One worker's hold on a folder: `attempt` until it is True, `confirm`, `release`."""

    def __init__(self, folder: Path):
        self.path = folder / ".lease"  # hidden: never published
        self._file = SoftFileLease(
            self.path, lease_duration=STALE, heartbeat_interval=BEAT, thread_local=False
        )
        self._seen = ("", 0)  # the other's file, content and time, as it was when it last changed
        self._since = 0.0

    @property
    def held(self) -> bool:
        """Whether it is ours, as far as we know."""
        return self._file.is_locked

    @property
    def holder(self) -> str:
        """Whose it is, as the file says now; "" where there is none."""
        owner = self._file.owner
        return f"process {owner.pid} on {owner.hostname.partition('?')[0]}" if owner else ""

    def attempt(self) -> bool:
        """Takes it where it is free or its holder is gone.

        Returns whether it is ours. Raises StoreError where no file can be made.
        """
        if self.held:
            return True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            still = self._standing_still()
            if still > STALE + BEAT:  # by now filelock has taken over, if it can here
                self._remove_stale()
            if still > STALE or not self._of_another_start():
                self._file.acquire(blocking=False)
        except Timeout:
            pass
        except OSError as error:
            if error.errno not in GONE:  # else the other has just left and removed the empty folder
                why = error.strerror or error
                raise StoreError(f"cannot write {self.path}: {why}") from error
        return self.held

    def confirm(self) -> None:
        """To be asked before anything is written: raises LeaseLost where another has taken over."""
        if not self.held:
            return
        token = self._file.token or ""
        for _ in range(LOOKS):
            content, _ = self._look()
            if token in content and not self._file.compromise:
                return
            if self._file.owner and token not in content:
                break
            time.sleep(0.1)
        self._file.release(force=True)
        lost = self._file.owner is not None
        if lost or not self.attempt():  # it was removed with its folder, or could not be renewed
            raise LeaseLost(
                f"{self.path.parent.name}: {self.holder} has taken over; this worker stops"
            )

    def release(self) -> None:
        """Gives it back, if it is still ours; a folder in which nothing was made goes with it."""
        if self.held:
            self._file.release(force=True)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def _look(self) -> tuple[str, int]:
        """Content and time of the file, asked anew of a network's server; ("", 0) without one."""
        for look in range(LOOKS):
            try:
                with self.path.open(encoding="utf-8", errors="replace") as file:
                    return file.read(), os.fstat(file.fileno()).st_mtime_ns
            except PermissionError as error:  # Windows': it is being removed, or written anew
                if look == LOOKS - 1:
                    raise self._unreadable(error) from error
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in GONE:
                    raise self._unreadable(error) from error
                break
        return "", 0

    def _unreadable(self, error: OSError) -> StoreError:
        return StoreError(f"cannot read {self.path}: {error.strerror or error}")

    def _standing_still(self) -> float:
        """Seconds of our own clock since the other's file was last seen to change."""
        now = self._look()
        if now != self._seen:
            self._seen = now
            self._since = time.monotonic()
        return time.monotonic() - self._since if now[0] else 0.0

    def _of_another_start(self) -> bool:
        """Whether the holder's machine only has this one's name: its start is another.

        The process that filelock would ask for then has nothing to do with the holder.
        """
        owner = self._file.owner
        start = owner.start >> 64 if owner and owner.start else 0
        return start not in (0, _start_of_machine())

    def _remove_stale(self) -> None:
        """Moves it away; of several who find it stale, one who was too late puts it back."""
        aside = self.path.with_name(f"{self.path.name}-{secrets.token_hex(8)}")
        self.path.rename(aside)
        if aside.read_text(encoding="utf-8", errors="replace") != self._seen[0]:
            with contextlib.suppress(OSError):
                self.path.hardlink_to(aside)
        aside.unlink()


def _start_of_machine() -> int:
    """The number of this machine's start, as in the upper bits of filelock's `start`; or 0."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return int(text.strip().replace("-", ""), 16)
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def held(folder: Path, device: torch.device) -> Iterator[Lease]:
    """The lease of a folder, after waiting for its holder, whom one line names.

    Under torchrun rank 0 takes it, and all wait.
    """
    from crat import distributed

    lease = Lease(folder)
    told = ""
    first = distributed.rank() == 0
    try:
        while not distributed.decided_by_first(first and lease.attempt(), device):
            if first and lease.holder not in ("", told):
                told = lease.holder
                line = f"{folder.name}: waiting for {told}, which is training it"
                print(line, file=sys.stderr, flush=True)
            time.sleep(PAUSE)
        yield lease
    finally:
        lease.release()
