"""The loop over tasks: order, faults, a second try after a kill, no process left over."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from ast import literal_eval
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from gates import PATIENCE, wait_until

from crat import store
from crat.batch import executors
from crat.batch.children import Child
from crat.batch.executors import Local, perform
from crat.batch.tasks import Job, RunTask
from crat.device import pick_device
from crat.store import Store, StoreError
from crat.store.lease import Lease

SCRIPT = """
import os, sys, time
from pathlib import Path
from crat.batch import children
children.end_with_starter()
exec(sys.argv[1])
"""


class Script(RunTask):
    """A task whose config is a few words of Python."""

    @property
    def steps(self):
        return 1

    def begin(self, env):
        return Child(
            "script", self.config, self.place.root / f"{self.name}.log", {"PYTHONPATH": PATH, **env}
        )


PATH = ""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Makes tasks that note their name in the folder's file when they begin and end."""
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setitem(
        globals(), "PATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    monkeypatch.setattr(executors, "GLANCE", 0.05)

    def make(name, words="", needs=(), after=()):
        note = f"Path({str(tmp_path / 'notes')!r}).open('a').write"
        text = f"{note}({name!r} + ' '); {words or 'pass'}; {note}({name.upper()!r} + ' ')"
        return Script(name, text, Store(tmp_path), frozenset(needs), frozenset(after))

    return make


def notes(tmp_path):
    return (tmp_path / "notes").read_text().split()


def do(tasks, workers=2):
    local = Local(workers)
    errors = perform(tasks, local, local)
    assert len(local.slots) == workers
    return errors


def test_a_task_waits_for_what_it_needs_and_a_failure_stops_only_that(script, tmp_path, capsys):
    tasks = [
        script("d", needs=["b"]),
        script("e", needs=["c"]),
        script("f", after=["c"]),
        script("b"),
        script("c", "sys.exit('no such thing')"),
    ]
    errors = do(tasks)
    assert errors["c"].startswith("no such thing (log: ")
    assert errors["e"] == "it needs c, which failed"
    assert set(errors) == {"c", "e"}
    seen = notes(tmp_path)
    assert seen.index("B") < seen.index("d")
    assert seen.index("c") < seen.index("f")
    assert "e" not in seen
    told = capsys.readouterr().out
    assert re.search(r"^b: done in \d\d:\d\d$", told, re.MULTILINE)
    assert re.search(r"^c: failed after \d\d:\d\d: no such thing", told, re.MULTILINE)


def test_no_more_at_a_time_than_there_are_workers(script, tmp_path):
    assert do([script(name, "time.sleep(0.3)") for name in "abcd"], workers=2) == {}
    running = 0
    for note in notes(tmp_path):
        running += 1 if note.islower() else -1
        assert running <= 2
    (tmp_path / "notes").unlink()
    assert do([script(name, "time.sleep(0.1)") for name in "ab"], workers=1) == {}
    assert notes(tmp_path) == ["a", "A", "b", "B"]


def test_what_was_killed_is_begun_once_more(script, tmp_path, capsys):
    once = (
        f"mark = Path('{tmp_path}/mark'); there = mark.exists(); mark.touch(); "
        "there or os.kill(os.getpid(), 9)"
    )
    assert do([script("a", once), script("b", needs=["a"])]) == {}
    assert (
        "a: its worker was killed by SIGKILL (out of memory?); another goes on after epoch 0"
        in capsys.readouterr().out
    )
    assert notes(tmp_path).count("a") == 2
    errors = do([script("c", "os.kill(os.getpid(), 9)")])
    assert errors["c"].startswith("killed by SIGKILL")
    assert notes(tmp_path).count("c") == 2


@pytest.fixture
def heeded_ctrl_c():
    """Ctrl-C raises in this process, though a shell's background job begins with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_leaves_nothing_running(script, heeded_ctrl_c, tmp_path):
    sleeping = [tmp_path / "a.sleeps", tmp_path / "b.sleeps"]
    sleeps = (
        "import subprocess; subprocess.Popen(['sleep', '6000']); "
        "Path({!r}).touch(); time.sleep(6000)"
    )

    def interrupt():
        try:
            wait_until(lambda: all(path.exists() for path in sleeping), "the tasks do not begin")
            family.extend(set(psutil.Process().children(recursive=True)) - others)
        finally:  # else the test would never end
            os.kill(os.getpid(), signal.SIGINT)

    family = []
    others = set(psutil.Process().children(recursive=True))  # of tests before this one
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        do([script(path.stem, sleeps.format(str(path))) for path in sleeping] + [script("c")])
    thread.join()
    assert len(family) >= 4
    assert psutil.wait_procs(family, PATIENCE)[1] == []
    assert "c" not in notes(tmp_path)
    assert not list(tmp_path.glob("*.log"))  # they tell of no fault


class Terminal(io.StringIO):
    """Makes a file when a text has been drawn."""

    def __init__(self, awaited, file):
        super().__init__()
        self.awaited, self.file = awaited, file

    def isatty(self):
        return True

    def write(self, text):
        if re.search(self.awaited, text):
            self.file.touch()
        return super().write(text)


def test_a_terminal_gets_one_bar_over_all_runs(script, monkeypatch, tmp_path):
    """The second run ends when the bar has shown it."""
    half_done = r"1/2: +50%.+ 1/2 \[[\d:]+<[\d:]+, .+, b epoch 1/1\]"  # with the time left
    monkeypatch.setattr(sys, "stderr", Terminal(half_done, tmp_path / "drawn"))
    monkeypatch.setattr(Script, "shown", lambda task: f"{task.name} epoch 1/1")
    waits = f"while not Path({str(tmp_path / 'drawn')!r}).exists(): time.sleep(0.01)"
    assert do([script("a"), script("b", f"exec({waits!r})", after=["a"])]) == {}
    drawn = sys.stderr.getvalue()
    assert re.search(r"0/2: +0%.+ 0/2 \[.+epoch/s, a epoch 1/1\]", drawn)
    assert re.search(half_done, drawn)


def test_a_log_that_cannot_be_written_fails_the_task(script, tmp_path):
    task = script("a")
    (tmp_path / "a.log").mkdir()
    assert "a.log: Is a directory" in do([task])["a"]


def test_a_log_has_a_name_only_where_it_tells_of_a_fault(script, tmp_path):
    """A killed driver leaves no log behind, as the output has no name until a fault."""
    listed = f"print('a word', flush=True); assert not list(Path({str(tmp_path)!r}).glob('*.log'))"
    assert do([script("a", listed)]) == {}
    assert not list(tmp_path.glob("*.log"))
    aborts = "print('so far', flush=True); os.abort()"
    errors = do([script("b", "print('first'); sys.exit('last')"), script("c", aborts)])
    assert errors["b"].startswith("last (log: ")
    assert errors["c"].startswith("killed by SIGABRT (log: ")
    kept = {path.name: path.read_text() for path in tmp_path.glob("*.log")}
    assert kept == {"b.log": "first\nlast\n", "c.log": "so far\n"}
    assert do([script("b")]) == {}
    assert not (tmp_path / "b.log").exists()


@pytest.mark.parametrize("when", ["begin", "finish"])
def test_an_error_of_the_disk_is_that_task_s_alone(script, monkeypatch, tmp_path, when):
    right = getattr(Script, when)

    def fails(self, given):
        if self.name == "a":
            raise PermissionError(13, "Permission denied", "bars.png")
        return right(self, given)

    monkeypatch.setattr(Script, when, fails)
    assert do([script("a"), script("b")]) == {"a": "[Errno 13] Permission denied: 'bars.png'"}
    assert "B" in notes(tmp_path)


SPEAKS = """
import os, sys, tempfile
from pathlib import Path
from crat.batch.children import Child
child = Child("script", "sys.exit('the last word')", Path("disk/a.log"), {})
child.process.wait()
print(child.fault())
with open("disk/filled", "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
child = Child("script", "sys.exit('the last word')", Path("disk/b.log"), {})
child.process.wait()
print(child.fault())
"""


def test_a_full_disk_under_the_log_is_told(script, tmp_path, monkeypatch):
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*alone, "true"], capture_output=True).returncode
    ):
        pytest.skip(
            "a disk for this test needs user name spaces (unshare), which are forbidden here"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PATH)
    Path("disk").mkdir()
    python = [
        "sh",
        "-c",
        'mount -t tmpfs -o size=128k none disk && exec "$@"',
        "sh",
        sys.executable,
        "-c",
        SPEAKS,
    ]
    done = subprocess.run([*alone, *python], capture_output=True, text=True, check=True)
    whole, full = done.stdout.splitlines()
    assert whole == "the last word"
    assert full == "it ended without a word (cannot write to disk: No space left on device)"


class Page(Job):
    """A notebook that only notes that it was run."""

    steps = 1

    def begin(self, env):
        self.began.append(time.monotonic())
        (self.folder / "drawn").touch()
        return Child("script", "pass", self.folder / "page.log", {"PYTHONPATH": PATH, **env})


@pytest.mark.parametrize("did_it", [True, False])
def test_a_notebook_that_another_driver_runs_is_waited_for(script, tmp_path, monkeypatch, did_it):
    """And begun only if it is not done then."""
    page = Page(tmp_path / "00_page.ipynb", tmp_path / "00_page", {}, {}, {"from": "this"})
    other = Lease(page.folder)
    assert other.attempt()

    def end():
        if did_it:
            store.write_json(page.folder / "success.json", dict(made_from=page.made_from, files=[]))
        other.release()

    def told(line):  # the other ends when it is waited for
        lines.append(line)
        if "waiting for" in line:
            end()

    lines = []
    monkeypatch.setattr(executors.tqdm, "write", told)
    assert do([page]) == {}
    told = "\n".join(lines)
    assert told.count(f"00_page: waiting for process {os.getpid()} on ") == 1
    assert "00_page: done in" in told
    files = {True: {"success.json"}, False: {"success.json", "drawn"}}[did_it]
    assert {path.name for path in page.folder.iterdir()} == files  # the lease is given back
    assert page.is_done


def test_what_cannot_be_kept_is_a_failure(script, monkeypatch):
    def finish(self, child):
        raise StoreError("cannot write success.json: No space left on device")

    monkeypatch.setattr(Script, "finish", finish)
    assert do([script("a")]) == {"a": "cannot write success.json: No space left on device"}


def test_each_worker_gets_its_share_of_the_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert executors.slots(2) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert len(executors.slots(None)) == executors.AT_MOST
    assert executors.gpu_line(executors.slots(None)) == ""


@pytest.fixture
def gpus(monkeypatch):
    """Pretends a machine: `gpus([80, 80], cores=16)`, with GPUs of so many GiB."""

    def machine(memory, cores):
        sizes = [SimpleNamespace(total_memory=size * 2**30) for size in memory]
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.device_count", lambda: len(sizes))
        monkeypatch.setattr("torch.cuda.get_device_properties", sizes.__getitem__)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return machine


def test_a_large_run_has_a_gpu_to_itself(gpus, monkeypatch):
    gpus([80, 80], cores=16)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    alone = executors.slots(None)
    assert alone == [{"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "8"} for gpu in "25"]
    assert executors.gpu_line(alone) == "1 process on each of 2 GPUs"
    asked = executors.slots(3)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in asked] == ["2", "5", "2"]
    line = "1 to 2 processes on each of 2 GPUs, each with 45 % of its memory"
    assert executors.gpu_line(asked) == line


@pytest.mark.parametrize(
    ("memory", "cores", "together"),
    [
        ([80], 16, 4),
        ([80, 80], 16, 4),
        ([80, 80], 6, 3),  # a core each
        ([80], 1, 1),
        ([8], 16, 2),  # 3 GiB each
        ([80, 8], 16, 2),  # of the smallest
        ([2], 16, 1),
    ],
)
def test_small_runs_share_a_gpu(gpus, memory, cores, together):
    gpus(memory, cores)
    own = executors.slots(None, small=True)
    each = Counter(slot["CUDA_VISIBLE_DEVICES"] for slot in own)
    assert each == {str(i): together for i in range(len(memory))}
    assert {slot["OMP_NUM_THREADS"] for slot in own} == {str(max(1, cores // len(own)))}
    shares = [float(slot.get("CRAT_GPU_SHARE", 1)) for slot in own]
    assert together * max(shares) <= 1
    if together > 1:
        assert together * min(shares) > 0.85


def test_four_small_runs_on_one_gpu_are_said_in_a_line(gpus):
    gpus([80], cores=16)
    line = "4 processes on each of 1 GPU, each with 22 % of its memory"
    assert executors.gpu_line(executors.slots(None, small=True)) == line
    assert len(executors.slots(2, small=True)) == 2  # as many as were asked for


def test_a_process_keeps_to_its_share_of_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda *a: asked.append(a))
    monkeypatch.delenv("CRAT_GPU_SHARE", raising=False)
    assert str(pick_device()) == "cuda"
    assert asked == []
    monkeypatch.setenv("CRAT_GPU_SHARE", "0.225")
    assert str(pick_device("cpu")) == "cpu"
    assert asked == []
    assert str(pick_device()) == "cuda"
    assert asked == [(0.225, None)]


def test_a_task_finds_its_gpu_and_its_share(script, gpus, tmp_path):
    gpus([80], cores=16)
    writes = f"Path('{tmp_path}', f'{{os.getpid()}}.env').write_text(repr(dict(os.environ)))"
    local = Local(small=True)
    tasks = [script(name, writes) for name in "abcd"]
    assert perform(tasks, local, local) == {}
    found = [literal_eval(path.read_text()) for path in tmp_path.glob("*.env")]
    assert len(found) == 4
    for env in found:
        assert (env["CUDA_VISIBLE_DEVICES"], env["CRAT_GPU_SHARE"]) == ("0", "0.225")
        assert env["OMP_NUM_THREADS"] == "4"
