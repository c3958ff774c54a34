"""A full disk, a read-only store, a damaged checkpoint: one line, exit code 1, nothing lost."""

import json
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from test_executors_killed import SETTINGS

# run where a tiny disk of memory lies on ./runs, mounted in a name space of its own
STORY = """
import json, subprocess, sys
from pathlib import Path
from crat import cli
from crat.batch import plan, reproduce, worker
from crat.config import RunConfig
from crat.training.run import Run
from crat.training.trainer import train

config = RunConfig().but(**json.loads(sys.argv[1]))
plan.plan_of = lambda *asked: ({"a": config}, ())
run = reproduce.run
reproduce.run = lambda *given, **more: run(*given, **more, notebooks=Path("notebooks"))

def mounted(*options):
    subprocess.run(["mount", "-o", ",".join(["remount", *options]), "runs"], check=True)

def told(what):
    print(f"<{what}>", flush=True)
    print("code", cli.main(["reproduce", "--shard", "1/1", "--workers", "1"]), flush=True)

told("full")
print(*sorted(path.name for path in Path("runs").rglob("*")))
mounted("size=50m")
train(config, progress="none", max_minutes=0)
mounted("ro")
told("read-only")
mounted("rw")
checkpoint = Run.of(config).folder / "checkpoint.safetensors"
whole = checkpoint.read_bytes()
checkpoint.write_bytes(whole[:-100])
told("damaged")
checkpoint.write_bytes(whole)
first = Run.of(config).history()
worker.make(config)  # in this process: most of what a worker of its own takes is importing torch
run = Run.of(config)
print("<whole>", run.finished, run.history()[: len(first)].equals(first), sep="\\n")
"""
INSIDE = 'mount -t tmpfs -o size=16k none runs && exec "$@"'


def test_each_ends_in_one_line_and_loses_nothing(tmp_path, monkeypatch):
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*alone, "true"], capture_output=True).returncode
    ):
        pytest.skip(
            "a disk of this test's own needs user name spaces (unshare), which this machine does "
            "not allow"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "runs"))
    for folder in ("runs", "notebooks"):
        (tmp_path / folder).mkdir()
    cell = new_code_cell('profile: str = "quick"\nseed: int = 0', metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), "notebooks/00_none.ipynb")
    python = [sys.executable, "-c", STORY, json.dumps(SETTINGS | {"epochs": 2})]
    done = subprocess.run(
        [*alone, "sh", "-c", INSIDE, "sh", *python], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"crat: cannot write to .*/runs: Read-only file system; "
        r"set CRAT_RUNS to a folder of yours\n",
        done.stderr,
    )
    parts = dict(re.findall(r"<(.+?)>\n(.*?)(?=<|\Z)", done.stdout, re.DOTALL))
    for what, line in {
        "full": r"cannot write .*(checkpoint.safetensors|history.csv): "
        r".*No space left on device.*unchanged",
        "damaged": r"checkpoint.safetensors is damaged \(.*\); remove it to make it anew",
    }.items():
        assert len(re.findall(rf": failed after \d\d:\d\d: .*{line}\n", parts[what])) == 1, parts[
            what
        ]
        assert "code 1\n" in parts[what]
        assert "Traceback" not in parts[what]
    assert ".half-" not in parts["full"]
    assert parts["read-only"].endswith("code 1\n")
    assert "failed" not in parts["read-only"]
    assert parts["whole"] == "True\nTrue\n"
