"""One worker a run: who holds the lease, who waits, and what becomes of one that lost it."""

import errno
import io
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from gates import PATIENCE, wait_until
from tiny_runs import TINY, same, weights

from crat import store
from crat.store import lease
from crat.store.lease import Lease, LeaseLost, held
from crat.training.run import Run
from crat.training.trainer import train

CPU = torch.device("cpu")
HOLDS = """
import sys, time
from pathlib import Path
from crat.store.lease import Lease
own = Lease(Path(sys.argv[1]))
print(own.attempt(), flush=True)
time.sleep(6000)
"""


@pytest.fixture
def hasty(monkeypatch):
    """Seconds become fractions of one."""
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "PAUSE", 0.02)


@pytest.fixture
def another(tmp_path):
    """Another process that has taken the lease of the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()


def from_elsewhere(path, **changes):
    """As if a worker of another machine, or start, or another process had written it."""
    text = path.read_text()
    for name, value in changes.items():
        text = re.sub(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
    path.unlink()  # another file, as a worker that takes over makes one
    path.write_text(text)


def start_in(path):
    """Of its holder: filelock's number, the machine's start in its upper bits."""
    return int(re.search(r"^start=(\d+)$", path.read_text(), re.MULTILINE)[1])


def test_only_one_of_many_gets_it(tmp_path):
    leases = [Lease(tmp_path) for _ in range(8)]
    got = []
    threads = [
        threading.Thread(target=lambda each=each: got.append(each.attempt())) for each in leases
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]
    next(each for each in leases if each.held).release()
    assert not tmp_path.exists()  # nothing was made in it
    assert leases[0].attempt()


def test_a_process_that_ended_is_known_at_once_and_one_that_lives_is_waited_for(tmp_path, another):
    mine = Lease(tmp_path)
    assert not mine.attempt()
    assert mine.holder.startswith(f"process {another.pid} on ")
    another.kill()
    another.wait()
    assert mine.attempt()


@pytest.mark.skipif(not psutil.LINUX, reason="what is asked of /proc")
def test_a_number_that_another_process_has_now_is_no_holder(tmp_path):
    other = Lease(tmp_path)
    assert other.attempt()
    from_elsewhere(other.path, start=start_in(other.path) - 100)
    assert Lease(tmp_path).attempt()


def test_a_clock_that_is_set_ends_no_holder(tmp_path, another, monkeypatch):
    """Neither its process nor its heartbeat is told by the clock of the day."""
    mine, now = Lease(tmp_path), time.time
    for step in (1e6, -1e6):
        monkeypatch.setattr(time, "time", lambda step=step: now() + step)
        monkeypatch.setattr(psutil, "boot_time", lambda step=step: step)
        assert not mine.attempt()
        assert mine.holder.startswith(f"process {another.pid} on ")


@pytest.mark.skipif(not psutil.LINUX, reason="what is asked of /proc")
def test_another_machine_of_the_same_name_is_not_this_one(tmp_path):
    """Its holder is not asked for here, where the number may be that of nobody."""
    other = Lease(tmp_path)
    assert other.attempt()
    own, gone = start_in(other.path), 2**22 - 1
    from_elsewhere(other.path, pid=gone, start=own + (1 << 64))
    assert not Lease(tmp_path).attempt()
    from_elsewhere(other.path, pid=gone, start=own)
    assert Lease(tmp_path).attempt()


def test_a_file_that_the_server_has_removed_is_a_missing_one(tmp_path, monkeypatch):
    """NFS says ESTALE where a disk says that there is none; the holder asks once more."""
    own, opened, asked = Lease(tmp_path), Path.open, []

    def stale_once(path, *mode, **more):
        asked.append(path.name)
        if asked == [".lease"]:
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(path, *mode, **more)

    assert own.attempt()
    monkeypatch.setattr(Path, "open", stale_once)
    own.confirm()
    assert own.held
    assert asked.count(".lease") == 2
    asked.clear()
    assert not Lease(tmp_path).attempt()
    own.confirm()
    monkeypatch.setattr(
        Path,
        "open",
        lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")),
    )
    with pytest.raises(store.StoreError, match=r"cannot read .*\.lease: Input/output error"):
        own.confirm()


@pytest.mark.parametrize("exchanges", [True, False])
def test_another_machines_holder_is_gone_when_its_file_stands_still(
    tmp_path, monkeypatch, exchanges
):
    """For a minute of our clock; the time of its file does not matter. NFS exchanges no names."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    if not exchanges:
        monkeypatch.setattr("filelock._soft.exchange_names", lambda *_: False)
    other, mine = Lease(tmp_path), Lease(tmp_path)
    assert other.attempt()
    from_elsewhere(other.path, pid=1, host="elsewhere", token="other")
    for clock.now in range(0, 300, 50):
        os.utime(other.path, (clock.now - 1e6, clock.now - 1e6))  # a clock that is days behind
        assert not mine.attempt()
    for clock.now in (260, 299, 309):
        assert not mine.attempt()
    clock.now = 311 if exchanges else 321
    assert mine.attempt()
    other.release()  # gives back nothing of ours
    mine.confirm()
    assert [path.name for path in tmp_path.iterdir()] == [".lease"]


@pytest.mark.usefixtures("hasty")
def test_a_holder_renews_it(tmp_path):
    own = Lease(tmp_path)
    assert own.attempt()
    written = own.path.stat().st_mtime_ns
    wait_until(lambda: own.path.stat().st_mtime_ns > written, "no heart beats")
    own.release()


@pytest.mark.parametrize("exchanges", [True, False])
def test_of_two_who_find_it_stale_the_later_takes_nothing_away(tmp_path, monkeypatch, exchanges):
    monkeypatch.setattr(lease, "BEAT", 1.0)
    monkeypatch.setattr(lease, "STALE", 2.0)
    if not exchanges:
        monkeypatch.setattr("filelock._soft.exchange_names", lambda *_: False)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    first = Lease(tmp_path)
    assert first.attempt()
    from_elsewhere(first.path, host="elsewhere", token="other")
    late, early = Lease(tmp_path), Lease(tmp_path)
    assert not late.attempt()
    assert not early.attempt()
    clock.now = 4.0
    assert early.attempt()
    late._remove_stale()  # as if it had looked before; what it had seen is gone
    assert not late.attempt()
    early.confirm()
    assert [path.name for path in tmp_path.iterdir()] == [".lease"]


def test_one_that_lost_it_stops_before_it_writes(own_store):
    half = train(TINY, progress="none", max_minutes=0)
    before = {path.name: path.read_bytes() for path in half.folder.iterdir()}
    with held(half.folder, CPU) as own:
        from_elsewhere(own.path, host="elsewhere", token="other")
        from crat.training.progress import Progress
        from crat.training.trainer import Trainer

        with pytest.raises(
            LeaseLost, match=r"process \d+ on elsewhere has taken over; this worker stops"
        ):
            Trainer(half, CPU, lease=own).fit(Progress("none"), None)
    (half.folder / ".lease").unlink()
    assert {path.name: path.read_bytes() for path in half.folder.iterdir()} == before


def test_a_lease_that_was_removed_with_its_folder_is_taken_again(tmp_path):
    own = Lease(tmp_path / "run")
    assert own.attempt()
    own.path.unlink()
    own.path.parent.rmdir()
    own.confirm()
    assert own.path.exists()
    own.release()


def test_train_waits_for_another_and_says_for_whom(own_store, hasty, monkeypatch):
    """It trains when the first has let go, and says once for whom it waits."""
    run, done, told = Run.of(TINY), [], io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    own = Lease(run.folder)
    assert own.attempt()
    waiting = threading.Thread(target=lambda: done.append(train(TINY, progress="none")))
    waiting.start()
    wait_until(lambda: told.getvalue().endswith("\n"), "nobody waits")
    assert not done
    own.release()
    waiting.join(PATIENCE)
    assert done[0].finished
    assert told.getvalue().count("\n") == 1
    assert told.getvalue().startswith(f"{run.name}: waiting for process {os.getpid()} on ")
    alone = weights(train(TINY, progress="none"))
    assert same(alone, weights(run))


def test_where_nothing_can_be_written_it_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(store.StoreError, match=r"cannot write .*file/run/\.lease: Not a directory"):
        Lease(tmp_path / "file" / "run").attempt()
