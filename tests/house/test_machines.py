"""The suite on another machine: what the emulated old CPU runs, and that no test asks how fast a
machine is.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(ROOT.glob("tests/**/test_*.py"))


def test_what_the_old_cpu_does_not_run_is_there_and_said_why():
    listed = [name for names in conftest.NOT_NUMERIC.values() for name in names.split()]
    assert sorted(listed) == sorted(set(listed))
    tests = ROOT / "tests"
    for name in listed:
        room, _, file = name.partition("/")
        assert (tests / room / f"test_{file}.py").is_file() if file else (tests / room).is_dir()
    assert all(conftest.NOT_NUMERIC)


def test_numbers_without_torch_are_left_out():
    (rooms,) = (names for why, names in conftest.NOT_NUMERIC.items() if "NumPy alone" in why)
    for path in (path for room in rooms.split() for path in (ROOT / "tests" / room).glob("*.py")):
        assert not re.search(r"^\s*(import|from) torch", path.read_text(), re.MULTILINE), path


def test_what_is_begun_first_is_there():
    """Notebooks, then the longest files; within each, and among the others, in their order."""
    longest = [f"test_{name}.py" for name in conftest.LONGEST.split()]
    assert len(set(longest)) == len(longest)
    assert set(longest) <= {path.name for path in FILES}
    names = [
        "test_apgd.py",
        "test_train.py",
        "test_zoo.py",
        "01.ipynb",
        "test_attack_strength.py",
        "00.ipynb",
    ]
    items = [SimpleNamespace(path=Path(name)) for name in names]
    conftest.pytest_collection_modifyitems(items)
    order = [
        "01.ipynb",
        "00.ipynb",
        "test_attack_strength.py",
        "test_train.py",
        "test_apgd.py",
        "test_zoo.py",
    ]
    assert [item.path.name for item in items] == order


def test_every_other_file_runs_there():
    def left_out(name, numeric):
        return conftest.pytest_ignore_collect(
            ROOT / "tests" / name, SimpleNamespace(getoption=lambda option: numeric)
        )

    assert left_out("batch", True)
    assert left_out("training/test_resume.py", True)
    for name in ("defenses/test_parity.py", "training", "attacks/test_of_tomorrow.py"):
        assert left_out(name, True) is None
    assert left_out("batch", False) is None


def test_the_old_cpu_is_one():
    """What make test-old-cpu sets reaches torch."""
    recipe = re.search(
        r"^test-old-cpu:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE
    )[1]
    assert "--numeric" in recipe
    settings = dict(re.findall(r"\b([A-Z_]+)=(\S+)", recipe.partition("pytest")[0]))
    code = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True
    )
    assert told.stdout.split()[-2:] == ["DEFAULT", "1"], told.stderr


@pytest.mark.skipif("ATEN_CPU_CAPABILITY" not in os.environ, reason="on the emulated old CPU only")
def test_this_is_one():
    torch = pytest.importorskip("torch")
    assert torch.backends.cpu.get_cpu_capability() == os.environ["ATEN_CPU_CAPABILITY"].upper()


def test_a_cell_of_a_notebook_may_take_its_time():
    assert (
        int(re.search(r"--nbval-cell-timeout=(\d+)", (ROOT / "pyproject.toml").read_text())[1])
        >= 1200
    )


def clocks(text):
    """The calls of a file that read a clock to judge by it, or wait for less than a minute and a
    half.
    """
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func).rpartition(".")[2]
        if name in {"perf_counter", "process_time", "thread_time", "getrusage"}:
            yield f"line {call.lineno}: {name}"
        limits = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
        limits += call.args[:1] if name in {"wait", "join", "set_script_timeout"} else []
        limits += call.args[1:2] if name == "wait_procs" else []
        for limit in limits:
            if (
                isinstance(limit, ast.Constant)
                and isinstance(limit.value, (int, float))
                and 1 <= limit.value < 90
            ):
                yield f"line {call.lineno}: {name} waits {limit.value} s"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_test_asks_how_fast_the_machine_is(path):
    """A busy machine is slower, not wrong: tests wait for what happens (gates.py), and count
    instead of timing.
    """
    assert list(clocks(path.read_text(encoding="utf-8"))) == []


def test_a_clock_is_seen():
    assert (
        len(
            list(
                clocks(
                    "a = time.perf_counter()\nchild.wait(20)\npsutil.wait_procs(x, "
                    "60)\nrun(timeout=20)"
                )
            )
        )
        == 4
    )
    assert (
        list(clocks("child.wait()\nchild.wait(PATIENCE)\n','.join(names)\nrun(timeout=240)")) == []
    )
