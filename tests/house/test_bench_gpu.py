"""benchmarks/gpu.py, cut down to a CPU: all parts run; what fails, hangs or is killed is named."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import gpu
import gpu_cells
import gpu_parts
import gpu_step
import outcome_log
import psutil
import pytest
import torch
from gpu_cells import Cell, Notes, run_cells

from crat.attacks import AutoAttack
from crat.config import ConfigError, ModelConfig
from crat.nets import models

ROOT = Path(gpu.__file__).parents[1]
CPU = torch.device("cpu")
PLENTY = [f"{name}=900" for name in gpu.LIMITS]  # a busy machine is no failure


def command(out, *words):
    """The script's command line in an own environment."""
    return [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(out), *words]


def environment():
    """One thread; the package is that of this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_all_parts_run_cut_down(tmp_path):
    done = subprocess.run(
        command(tmp_path, "--quick", "--seconds", *PLENTY),
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    whole = json.loads((tmp_path / "gpu.json").read_text())
    assert set(whole["head"]) >= {"device", "torch", "driver", "crat", "date", "command"}
    assert whole["how"] == dict.fromkeys(gpu.LIMITS, "it ended")
    records = [record for part in whole["records"].values() for record in part]
    assert not [r for r in records if r["kind"] in ("failed", "left out")]
    rows = {n: [r for r in part if r["kind"] == "row"] for n, part in whole["records"].items()}
    timed = [r for r in rows["step"] if "images/s" in r]
    assert {r["method"] for r in timed if r["side"] == "crat"} == set(gpu_step.METHODS)
    assert {tuple(r["shape"]) for r in timed} == {(3, 32, 32), (1, 28, 28)}
    assert all(r["images/s"] > 0 and r["best"] >= r["images/s"] for r in timed)
    assert [r["epochs"] for r in rows["recipe"] if "epochs" in r] == ["1 of 1"]
    assert [r["class"] for r in rows["recipe"][-2:]] == ["average", "worst class"]
    parts = [r["part"] for r in rows["autoattack"] if r.get("images") == 12]
    assert parts == [*AutoAttack(0.1).names, "set-up and the rest", "all"]
    assert whole["tests"]["passed"] > 0
    text = (tmp_path / "gpu.md").read_text()
    for title in gpu.TITLES.values():
        assert f"## {title}\n" in text
    assert "| small_cnn 3x32x32 | 8 | crat | trades |" in text
    assert "Not complete" not in text


CELLS = """
import os, sys, time, torch
from pathlib import Path
from gpu_cells import Cell, Notes, run_cells

def row(name):
    return lambda: [{"is": name}]

def raises():
    yield {"is": "half"}
    raise ValueError("this one\\nis wrong")

def hangs():
    time.sleep(600)

cells = [
    Cell("first", 600, row("first")),
    Cell("raises", 600, raises),
    Cell("hangs", 1, hangs),
    Cell("dies", 600, lambda: os._exit(3)),
    Cell("too long for what is left", 600, row("none"), least=1e9),
    Cell("last", 600, row("last")),
]
run_cells(cells, Notes(Path(sys.argv[1])), float(sys.argv[2]), torch.device("cpu"))
"""


def run_script(source, monkeypatch, out, limit):
    """gpu.run_part on a script in place of a part; how it ended, its records and gpu.md."""
    script = out / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n{source}")
    monkeypatch.setattr(
        gpu,
        "command_of",
        lambda name, until, asked: [
            sys.executable,
            str(script),
            str(asked.out / f"{name}.jsonl"),
            str(until),
        ],
    )
    report = gpu.Report(out, ["recipe"], "command")
    report.how["recipe"] = "it was running when the script ended"
    report.how["recipe"] = gpu.run_part("recipe", limit, Namespace(out=out), report)
    report.write()
    return report.how["recipe"], Notes(out / "recipe.jsonl").read(), (out / "gpu.md").read_text()


def test_what_raises_hangs_or_dies_is_named_and_the_next_goes_on(tmp_path, monkeypatch):
    how, records, text = run_script(CELLS, monkeypatch, tmp_path, 900)
    assert how == "it ended"
    assert [r["is"] for r in records if r["kind"] == "row"] == ["first", "half", "last"]
    errors = {r["cell"]: r["error"] for r in records if r["kind"] == "failed"}
    assert errors == {
        "raises": "ValueError: this one",
        "hangs": "it hung; see recipe.log",
        "dies": "its process ended (exit code 3); see recipe.log",
    }
    assert [r["cell"] for r in records if r["kind"] == "left out"] == ["too long for what is left"]
    assert "- raises: FAILED, ValueError: this one\n" in text
    begun = [r["cell"] for r in records if r["kind"] == "began"]
    assert len(begun) == len(set(begun))


def test_a_part_is_ended_at_its_limit_and_keeps_what_it_had(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.1)
    source = """
import time
from pathlib import Path
print("a word of the part", flush=True)
with Path(sys.argv[1]).open("a") as file:
    file.write('{"kind": "began", "cell": "one", "at": %f, "limit": 900}\\n' % time.time())
    file.write('{"kind": "row", "cell": "one", "value": 1}\\n')
time.sleep(600)
"""
    how, records, text = run_script(source, monkeypatch, tmp_path, 5)
    assert how == "it was ended at its limit of 5 s"
    assert "**Not complete: it was ended at its limit of 5 s.**" in text
    if records:  # a process may take longer to start on a busy machine
        assert records[-1]["error"] == "the part's limit was reached; see recipe.log"
        assert "value" in text
        assert (tmp_path / "recipe.log").read_text() == "a word of the part\n"


def test_a_part_that_cannot_start_is_not_tried_for_ever(tmp_path, monkeypatch):
    how, _, _ = run_script("sys.exit(9)", monkeypatch, tmp_path, 900)
    assert how == "its process ended (exit code 9) before it measured: see recipe.log"


def test_a_lost_gpu_ends_the_process_so_that_another_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_cells, "lost", lambda device: True)
    notes = Notes(tmp_path / "notes.jsonl")
    tried = []

    def cell(name, fails):
        def work():
            tried.append(name)
            if fails:
                raise RuntimeError("an illegal memory access was encountered")
            return [{"is": name}]

        return Cell(name, 9, work)

    cells = [cell("one", True), cell("two", False)]
    with pytest.raises(SystemExit) as ended:
        run_cells(cells, notes, time.time() + 900, CPU)
    assert ended.value.code == gpu_cells.AGAIN
    run_cells(cells, notes, time.time() + 900, CPU)
    assert tried == ["one", "two"]
    assert [r["is"] for r in notes.rows()] == ["two"]


def test_a_script_that_is_ended_leaves_its_report_and_no_process(tmp_path):
    script = subprocess.Popen(
        command(tmp_path, "--quick", "--parts", "step", "--seconds", *PLENTY),
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    notes = Notes(tmp_path / "step.jsonl")
    while not notes.rows() and script.poll() is None:
        time.sleep(0.1)
    family = psutil.Process(script.pid).children(recursive=True)
    assert family
    script.send_signal(signal.SIGTERM)
    assert script.wait() != 0
    psutil.wait_procs(family, timeout=300)
    assert not [process for process in family if process.is_running()]
    text = (tmp_path / "gpu.md").read_text()
    assert "**Not complete: it was running when the script ended.**" in text
    assert "matrix rate in bfloat16" in text


OUTCOMES = """
import os, pytest

def test_passes():
    pass

def test_fails():
    assert 1 == 2, "never"

def test_needs_the_cpu():
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == "", "a GPU"

@pytest.mark.skip(reason="no")
def test_skipped():
    pass

@pytest.fixture
def broken():
    raise OSError("no such thing")

def test_with_a_broken_fixture(broken):
    pass
"""


def test_failures_are_named_apart_where_they_fail_without_a_gpu_too(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(gpu_parts, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    path = tmp_path / "test_some.py"
    path.write_text(OUTCOMES)
    (tmp_path / "test_unreadable.py").write_text("import a_module_that_nobody_has")
    asked = Namespace(
        out=tmp_path,
        tests=[str(path), str(tmp_path / "test_unreadable.py")],
        quick=True,
        until=time.time() + 900,
    )
    here = gpu_cells.Context(asked, Notes(tmp_path / "tests.jsonl"), CPU)
    run_cells(gpu_parts.tests_cells(here), here.notes, asked.until, CPU)
    found = gpu.tests_by_name(tmp_path)
    names = {group: sorted(tests) for group, tests in found.items() if isinstance(tests, dict)}
    assert (found["passed"], found["skipped"], found["running at the end"]) == (1, 1, [])
    assert names == {
        "failed, and passed without a GPU": ["test_some.py::test_needs_the_cpu"],
        "failed without a GPU, too": [
            "test_some.py::test_fails",
            "test_some.py::test_with_a_broken_fixture",
            "test_unreadable.py",
        ],
        "failed, and were not run without a GPU": [],
    }
    text = "\n".join(gpu.tests_section(found))
    assert text.startswith("1 passed, 4 failed, 1 skipped.")
    assert "AssertionError: never" in text
    assert "OSError: no such thing" in text
    assert "No module named 'a_module_that_nobody_has'" in text


def test_a_killed_session_names_what_it_was_at(tmp_path):
    log = outcome_log.OutcomeLog(tmp_path / "tests_first.jsonl")
    log.note("a", "began")
    log.note("a", "failed", "E")
    log.note("a", "passed")  # of its teardown
    log.note("b", "began")
    with log.path.open("a") as file:
        file.write('{"test": "c", "outc')
    assert outcome_log.last_outcomes(log.path) == {"a": ("failed", "E"), "b": ("began", "")}
    found = gpu.tests_by_name(tmp_path)
    assert found["running at the end"] == ["b"]
    assert found["failed, and were not run without a GPU"] == {"a": "E"}


def test_the_chosen_tests_need_no_notebook():
    chosen = [
        Path(path).relative_to(ROOT / "tests").as_posix() for path in gpu_parts.files_of_tests()
    ]
    assert len(chosen) == len(set(chosen)) > 40
    assert {"attacks/test_autoattack.py", "training/test_resume.py"} <= set(chosen)
    assert not [path for path in chosen if path.startswith(("batch/", "cli/", "papers/"))]
    assert "house/test_bench_gpu.py" not in chosen  # it would start itself
    for path in chosen:
        source = (ROOT / "tests" / path).read_text()
        assert not re.search(r"^\s*(from|import) (papermill|nbformat|distributed)\b", source, re.M)


def step_record(**values):
    """A row of the step part."""
    common = {"model": "small_cnn", "shape": [1, 28, 28], "batch": 8, "method": "pgd_at"}
    measured = {"best": 300.0, "ms": 40.0, "first s": 0.5, "peak MiB": None}
    return common | measured | {"way": "eager", "told": ""} | values


def test_ratios_and_shares_of_a_step_by_hand():
    ours = step_record(side="crat", **{"images/s": 200.0})
    timed = [
        step_record(side="textbook", **{"images/s": 50.0}),
        step_record(side="authors", batch=16, **{"images/s": 1.0}),  # another batch
        ours,
    ]
    work = {"method": "pgd_at", "model": "small_cnn", "shape": [1, 28, 28], "GFLOP an image": 5.0}
    row = gpu.step_row(ours, timed, [work], 4.0)
    assert row["x textbook"] == "4.00"
    assert row["x authors"] == ""
    assert row["TFLOP/s"] == "1"  # 200 images of 5 GFLOP
    assert row["of matrix rate %"] == "25.0"
    assert row["12 epochs of 20,000, s"] == "1200.0"
    assert gpu.step_row(ours, timed, [], None)["of matrix rate %"] == ""


def test_the_timed_battery_breaks_what_autoattack_breaks():
    model = models.build(ModelConfig("small_cnn", width=4), 10, (1, 28, 28), seed=0).eval()
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6) % 10
    spent = {}
    timed = gpu_parts.TimedAutoAttack(0.02, spent=spent, quick=True)

    class Short(AutoAttack):
        def attacks(self, n_classes):
            parts = super().attacks(n_classes)
            return {name: gpu_parts.shortened(part) for name, part in parts.items()}

    expected = Short(0.02)(model, x, y)
    found = timed(model, x, y)
    assert torch.equal(found.broken_by, expected.broken_by)
    torch.testing.assert_close(found.x_adv, expected.x_adv, rtol=0, atol=0)
    assert set(spent) <= set(timed.names[1:])
    assert all(seconds > 0 for seconds in spent.values())


def test_a_call_is_timed_in_rounds():
    calls = []
    times = gpu_step.call_seconds(lambda: calls.append(time.sleep(0.001)), CPU, 0.05, rounds=3)
    assert len(times) == 3
    assert min(times) >= 0.001
    assert len(calls) >= 4


def test_what_a_step_says_is_kept():
    class Slow(UserWarning):
        __module__ = "crat.training"

    import warnings

    with gpu_step.told() as lines:
        print("eager: it branches on data")
        warnings.warn("not captured", Slow, stacklevel=1)
        warnings.warn("of another package", UserWarning, stacklevel=1)
    assert lines == ["eager: it branches on data", "not captured"]


@pytest.mark.parametrize("text", ["step", "step=x", "stairs=3", "step=-1"])
def test_a_limit_is_a_part_and_seconds(text):
    assert gpu.limit_of("step=300") == ("step", 300.0)
    with pytest.raises(ArgumentTypeError, match="a limit is PART=SECONDS"):
        gpu.limit_of(text)


def test_a_folder_that_is_no_clone_is_refused(tmp_path):
    asked = Namespace(out=tmp_path / "out", parts=["step"], cfa=tmp_path)
    with pytest.raises(ConfigError, match="is no clone of PKU-ML/CFA"):
        gpu.main(asked)


def test_all_parts_end_in_eight_minutes():
    ends_late = 1 + gpu.GRACE  # a poll, and the time to end by itself
    assert sum(limit + ends_late for limit in gpu.LIMITS.values()) < 8 * 60
