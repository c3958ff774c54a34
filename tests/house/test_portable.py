"""What a student's Windows or Mac does not have, taken away: the rest works.

Nothing here ran on Windows or macOS. The tests take names, modules and files away on Linux, and
read the source and the file names for what those systems refuse.
"""

import ast
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import other_system
import pandas as pd
import pytest
import torch

from crat import distributed, store
from crat.batch import children, executors
from crat.cli import reproduce
from crat.config import ConfigError, RunConfig
from crat.device import describe
from crat.store import lease

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(ROOT.glob("crat/**/*.py"))
FORBIDDEN = re.compile(r'[<>:"\\|?*\x00-\x1f]')
DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(10))}
LONGEST = 160  # characters: Windows takes 260 of a whole path, the student's folder included

# on POSIX systems only, or not on all of them, as the manual of Python's library has it
POSIX = {
    "os": (
        "chown chroot fchdir fchmod fchown fdatasync fork forkpty getgid getgroups getloadavg "
        "getpgid getpgrp getpriority getuid geteuid getegid initgroups killpg lchown mkfifo mknod "
        "nice openpty posix_spawn pread pwrite readv writev sched_getaffinity sched_setaffinity "
        "sendfile setgid setpgid setsid setuid statvfs sync sysconf uname wait wait3 wait4 WNOHANG"
    ),
    "signal": (
        "SIGKILL SIGHUP SIGALRM SIGUSR1 SIGUSR2 SIGCHLD SIGSTOP SIGCONT SIGQUIT SIGPIPE alarm "
        "setitimer pthread_kill pthread_sigmask sigwait"
    ),
    "time": "tzset clock_gettime",
}
ONLY = {f"{module}.{name}" for module, names in POSIX.items() for name in names.split()}


def illegal(path):
    """Why Windows does not take a relative path; "" where it does."""
    for part in path.split("/"):
        if FORBIDDEN.search(part):
            return f"{path} has a forbidden sign"
        if part.rstrip(". ") != part:
            return f"{path} ends in a dot or a space"
        if part.split(".")[0].lower() in DEVICES:
            return f"{path} is the name of a device"
    return f"{path} has {len(path)} characters" if len(path) > LONGEST else ""


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    return [name for name in listed.stdout.decode().split("\0") if name]


def test_windows_takes_every_tracked_name():
    names = tracked()
    assert [why for name in names if (why := illegal(name))] == []
    folders = {parent.as_posix() for name in names for parent in Path(name).parents}
    once = {name.lower() for name in (*names, *folders)}
    assert len(once) == len(set(names) | folders)


def test_an_illegal_name_is_seen():
    for name in ("a:b", "a/con", "a/AUX.txt", "a./b", "b ", "x*", "a" * 161, "a\\b", "q?"):
        assert illegal(name), name
    assert not illegal("results/fashion_mnist-s0-1a2b/eval/test-3c.npz")


def test_windows_takes_the_names_that_crat_writes(tmp_path, monkeypatch):
    """Runs of every method and network, images and models of one's own with odd names."""
    from crat.audit import model
    from crat.data import own
    from crat.defenses import DEFENSES
    from crat.training.run import Run

    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "runs"))
    for method in DEFENSES:
        assert illegal(Run.of(RunConfig().but(defense=method), "cpu").name) == ""
    assert illegal(model._label("C:\\nets\\my net.py:Net")) == ""
    assert illegal(model._label("module.part:make(32)*")) == ""
    arrays = {
        f"x_{s}": torch.zeros(2, 8, 8, 1, dtype=torch.uint8).numpy() for s in ("train", "test")
    }
    arrays |= {f"y_{s}": torch.arange(2).numpy() for s in ("train", "test")}
    arrays["classes"] = torch.arange(2).numpy()
    for name in ("my: photos?.npz", "con.npz", "what...npz"):
        assert illegal(own._row(tmp_path / name, arrays, None, None).name) == ""


def test_git_changes_no_line_end_of_a_file_whose_hash_is_kept():
    lines = (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["* -text"]
    assert all(
        b"\r" not in (ROOT / name).read_bytes() for name in tracked() if name.endswith("SUMS")
    )


OTHER_OPENS = {"os.open", "gzip.open", "tarfile.open", "Image.open", "images.open"}  # no text
OUR_WRITES = {"store.write_text", "write_text"}


def faults(call):
    """What a call leaves to the system: the encoding of a text, the end of its lines, a shell."""
    function = ast.unparse(call.func)
    name = function.rpartition(".")[2]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    modes = [ast.literal_eval(a) for a in call.args if isinstance(a, ast.Constant)]
    wanted = set()
    if (
        name == "open" and function not in OTHER_OPENS and not any("b" in str(m) for m in modes)
    ) or name == "read_text":
        wanted.add("encoding")
    elif name == "write_text" and function not in OUR_WRITES:
        wanted |= {"encoding", "newline"}
    elif name == "to_csv":
        wanted.add("lineterminator")
    elif "text" in given and name in ("run", "Popen"):
        wanted.add("encoding")
    lacking = [f"{function} without {setting}" for setting in sorted(wanted - given.keys())]
    return lacking + ["a shell"] * (given.get("shell") == "True")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_text_and_no_command_is_left_to_the_system(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [f"line {call.lineno}: {why}" for call in called for why in faults(call)] == []


def test_a_text_that_is_left_to_the_system_is_seen():
    for source in ("p.read_text()", "open(p)", "p.open('w')", "run(c, text=True)", "t.to_csv(p)"):
        assert len(faults(ast.parse(source).body[0].value)) == 1, source
    assert len(faults(ast.parse("p.write_text(t)").body[0].value)) == 2
    assert len(faults(ast.parse("run(c, shell=True)").body[0].value)) == 1
    assert faults(ast.parse("p.open('rb')").body[0].value) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_name_of_one_system_is_used_unasked(path):
    """os.sched_getaffinity stands only where hasattr(os, "sched_getaffinity") was asked."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    words = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.expr)}
    for name in words & ONLY:
        module, _, attribute = name.partition(".")
        assert f"hasattr({module}, {attribute!r})" in words, name
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    modules = {alias.name for node in imports for alias in node.names}
    assert not modules & set(other_system.MODULES)


def run_elsewhere(code, tmp_path, **env):
    """Runs code in a process from which other_system has taken everything."""
    code = f"import other_system; other_system.begin()\n{code}"
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "CRAT_RUNS": str(tmp_path / "runs")} | env,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_module_is_imported_there(tmp_path):
    code = """
import importlib, os, pkgutil, signal, crat
assert not hasattr(signal, "SIGKILL") and not hasattr(os, "fork")
names = [m.name for m in pkgutil.walk_packages(crat.__path__, "crat.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""
    assert int(run_elsewhere(code, tmp_path).split()[-1]) == len(
        [path for path in SOURCES if path.parent != ROOT / "crat" or path.name != "__init__.py"]
    )


TINY = (
    "--data fashion_mnist_mini --epochs 1 --train-per-class 8 --valid-per-class 2 --steps 1 "
    "--width 4 --device cpu --progress none --dtype float32"
)


def test_a_training_and_an_audit_run_there(tmp_path):
    code = f"""
from crat.cli import main
from crat.store import home
assert main("train {TINY}".split()) == 0
(name,) = [path.name for path in home().glob("fashion*")]
asked = f"audit {{name}} --data fashion_mnist_mini --images 20 --attacks FGSM PGD --device cpu"
assert main(asked.split()) == 0
"""
    told = run_elsewhere(code, tmp_path)
    assert "epoch 1 of 1" in told
    cards = [path for path in (tmp_path / "runs").glob("**/card.json")]
    assert len(cards) == 2
    for path in (tmp_path / "runs").rglob("*"):
        assert illegal(path.relative_to(tmp_path / "runs").as_posix()) == ""


def test_a_notebook_that_fails_there_says_why_and_leaves_no_process(tmp_path):
    """The starter and the child that executes the notebook; only the kernel is as on Linux."""
    cells = ["1 + 1", "raise ValueError('the third')"]
    notebook = {
        "cells": [
            {
                "cell_type": "code",
                "execution_count": None,
                "id": f"c{i}",
                "metadata": {},
                "outputs": [],
                "source": source,
            }
            for i, source in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "in.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if '-m' in sys.orig_argv and 'crat.batch.notebook' in sys.orig_argv:\n"
        "    import papermill\n"  # Jupyter's libraries are this system's own
        "    import other_system\n    other_system.begin()\n",
        encoding="utf-8",
    )
    code = f"""
import os, time
from pathlib import Path
import psutil
from crat.batch import notebook
os.environ["PYTHONPATH"] = {str(tmp_path)!r} + os.pathsep + os.environ["PYTHONPATH"]
child = notebook.start(Path("in.ipynb").absolute(), Path("out.ipynb").absolute(), {{}}, {{}})
while child.running:
    time.sleep(0.1)
family = set(child.family)
child.end()
print(child.died, child.fault())
psutil.wait_procs(family)
print(len(family) > 1, any(process.is_running() for process in family))
"""
    told = run_elsewhere(code, tmp_path).splitlines()
    assert told[-2:] == ["False In [2]: ValueError: the third", "True False"]


def test_exit_codes_have_words_without_the_names_of_signals(monkeypatch):
    monkeypatch.delattr(signal, "SIGKILL")
    assert children.KILLED == -9
    assert children._signal_name(-signal.SIGTERM) == "SIGTERM"
    assert children._signal_name(-99) == "signal 99"
    assert children._signal_name(0xC0000005) == "Windows, error 0xc0000005"
    assert [children._by_system(code) for code in (0, 1, 3, -9, 0xC0000005)] == [0, 0, 0, 1, 1]


def test_sigterm_and_the_closed_window_stop_a_batch(monkeypatch):
    """SIGBREAK is what Windows sends when its window is closed."""
    handled = []
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)
    monkeypatch.setattr(signal, "signal", lambda number, _: handled.append(number))
    monkeypatch.setattr("crat.batch.reproduce.run", lambda *args, **settings: 0)
    asked = dict.fromkeys(
        ["data", "seeds", "set", "parameters", "profile", "workers", "dask", "shard", "start_from"]
    )
    flags = dict.fromkeys(["recompute", "dry_run"], False)
    given = SimpleNamespace(numbers=[], papers=[], defense=[], **asked, **flags)
    assert reproduce.run(given) == 0
    assert handled == [signal.SIGTERM, 21]
    monkeypatch.delattr(signal, "SIGBREAK")
    assert reproduce.run(given) == 0
    assert handled[2:] == [signal.SIGTERM]


def test_cores_and_the_processor_s_name_without_linux(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert len(executors.slots(None)) == 3
    monkeypatch.setattr(Path, "read_text", other_system._read_text)
    monkeypatch.setattr("platform.processor", lambda: "AMD64 Family 25, AuthenticAMD")
    assert describe(torch.device("cpu")).startswith("AMD64 Family 25, AuthenticAMD, ")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert describe(torch.device("cpu")).startswith("arm64, ")
    assert lease._start_of_machine() == 0


def test_a_lease_is_taken_and_given_back_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_text", other_system._read_text)
    one, other = lease.Lease(tmp_path / "run"), lease.Lease(tmp_path / "run")
    assert one.attempt()
    assert not other.attempt()
    one.confirm()
    one.release()
    assert other.attempt()
    other.release()


def test_a_lease_waits_while_windows_has_its_file(tmp_path, monkeypatch):
    """A file that is being removed there cannot be opened; a folder that is locked says so."""
    held = lease.Lease(tmp_path / "run")
    assert held.attempt()
    refusals = iter([True, True])
    plain = Path.open

    def refusing(self, *args, **settings):
        if self.name == ".lease" and next(refusals, False):
            raise PermissionError(13, "Permission denied", str(self))
        return plain(self, *args, **settings)

    monkeypatch.setattr(lease.time, "sleep", lambda _: None)
    monkeypatch.setattr(Path, "open", refusing)
    assert held._look()[0]
    refusals = iter([True] * 99)
    with pytest.raises(store.StoreError, match=r"cannot read .*Permission denied"):
        held._look()
    refusals = iter([])
    held.release()


def test_a_file_takes_its_place_as_soon_as_windows_lets_it(tmp_path, monkeypatch):
    path, tries, replace = tmp_path / "card.json", [], os.replace

    def refusing(source, target):
        tries.append(target)
        if len(tries) < 3:
            raise PermissionError(13, "Access is denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    monkeypatch.setattr("crat.store.files.time.sleep", lambda _: None)
    store.write_text(path, "a\nb\n")
    assert path.read_bytes() == b"a\nb\n"
    assert len(tries) == 3
    monkeypatch.setattr(os, "replace", lambda *_: refusing(tries.clear(), ""))
    with pytest.raises(store.StoreError, match=r"cannot write .*Access is denied"):
        store.write_text(path, "other")
    assert path.read_bytes() == b"a\nb\n"
    assert list(tmp_path.iterdir()) == [path]


def test_read_tensors_hold_no_file(tmp_path):
    """Windows replaces no mapped file, and a checkpoint is written over the one that was read."""
    path = tmp_path / "a.safetensors"
    store.write_tensors(path, {"w": torch.arange(4096.0)})
    tensors, _ = store.read_tensors(path)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) not in maps.read_text(encoding="utf-8")
    assert tensors["w"].sum() == 4096 * 4095 / 2


def test_tables_have_the_same_bytes_where_lines_end_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "linesep", "\r\n")
    from crat.audit.report import _write_csv

    table = pd.DataFrame({"a": [1.0], "b": ["ρ"]})
    assert b"\r" in table.to_csv().encode()  # pandas would follow the system
    _write_csv(tmp_path / "a.csv", table)
    assert (tmp_path / "a.csv").read_bytes() == "a,b\n1,ρ\n".encode()


def test_a_sign_that_a_console_lacks_is_no_error(tmp_path):
    """Windows' pipes speak cp1252, which has no bars and no rho."""
    done = subprocess.run(
        [sys.executable, "-c", "from crat.cli import main; main(['--version']); print('▁ρ±')"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split()[-1] in (b"??\xb1", b"0.1.0")
    assert b"UnicodeEncodeError" not in done.stderr


def test_without_nccl_several_gpus_are_refused_in_a_line(monkeypatch):
    """On Windows torch has none."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(distributed.dist, "is_nccl_available", lambda: False)
    with pytest.raises(ConfigError, match=r"has no NCCL.*on Windows it never has.*--device cpu"):
        distributed.join(torch.device("cuda"))


def test_without_torch_distributed_one_process_trains(monkeypatch):
    monkeypatch.setattr(distributed.dist, "is_available", lambda: False)
    monkeypatch.delattr(distributed.dist, "is_initialized")
    assert (distributed.rank(), distributed.world()) == (0, 1)
    assert distributed.join(torch.device("cpu")) == torch.device("cpu")
    distributed.leave()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigError, match=r"this torch has no GLOO.*start crat without torchrun"):
        distributed.join(torch.device("cpu"))
