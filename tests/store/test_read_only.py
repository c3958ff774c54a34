"""A read-only checkout and home: CRAT_RUNS, CRAT_DATA and CRAT_FIGURES take all files."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from crat import store
from crat.batch import reproduce, site

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = """
import os
from pathlib import Path
import matplotlib.pyplot as plt
import pandas as pd
from crat import plots
plots.save(plt.figure(), pd.DataFrame({"x": [1]}), "00_small", "bars")
print(profile, os.environ["CRAT_FIGURES"])
"""
STORY = """
import os, sys
from pathlib import Path
from crat import cli
from crat.batch import plan, reproduce
own = Path("mine").absolute()

def told(*words):
    print("code", cli.main(list(words)), *words, flush=True)

told("site")
told("train", "--epochs", "1")
# the notebook trains all that it needs, so there is nothing to do or to write
told("reproduce", "00", "--shard", "1/1")
for name in ("runs", "data", "figures"):
    os.environ[f"CRAT_{name.upper()}"] = str(own / name)
told("reproduce", "00", "--dry-run")
plan.plan_of = lambda *asked: ({}, ())
run = reproduce.run
reproduce.run = lambda *given, **more: run(*given, **more, notebooks=Path("notebooks"))
told("reproduce", "--profile", "laptop")
"""
INSIDE = """
for folder in "$ROOT" "$HOME" notebooks; do
    mount --bind "$folder" "$folder" && mount -o remount,bind,ro "$folder" || exit 77
done
exec "$@"
"""


def write_notebook(folder):
    folder.mkdir()
    parameters = new_code_cell('profile: str = "quick"', metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = new_notebook(cells=[parameters, new_code_cell(NOTEBOOK)], metadata=kernel)
    nbformat.write(made, str(folder / "00_small.ipynb"))


def test_everything_is_written_where_it_is_told(tmp_path, monkeypatch):
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*alone, "true"], capture_output=True).returncode
    ):
        pytest.skip(
            "this test's read-only folder needs user name spaces, which this machine does not allow"
        )
    for folder in ("home", "mine"):
        (tmp_path / folder).mkdir()
    write_notebook(tmp_path / "notebooks")
    for name in ("CRAT_RUNS", "CRAT_DATA", "CRAT_FIGURES", "IPYTHONDIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    given = {
        "ROOT": str(ROOT),
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*alone, "sh", "-c", INSIDE, "sh", sys.executable, "-c", STORY],
        cwd=tmp_path, env=os.environ | given, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(f"this machine mounts nothing anew: {done.stderr.splitlines()[0]}")
    codes = re.findall(r"^code (\d) (.*)$", done.stdout, re.MULTILINE)
    assert codes == [
        *[("1", "site"), ("1", "train --epochs 1"), ("0", "reproduce 00 --shard 1/1")],
        *[("0", "reproduce 00 --dry-run"), ("0", "reproduce --profile laptop")],
    ], done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    figures, runs = re.findall(r"^crat: .*$", done.stderr, re.MULTILINE)
    refused = "Read-only file system; set {} to a folder of yours"
    assert (
        figures == f"crat: cannot write to {ROOT}/figures/quick: {refused.format('CRAT_FIGURES')}"
    )
    assert runs == f"crat: cannot write to {ROOT}/runs: {refused.format('CRAT_RUNS')}"
    mine = tmp_path / "mine" / "figures"
    assert {path.name for path in (mine / "laptop" / "00_small").iterdir()} == {
        *("00_small.ipynb", "bars.csv", "bars.pdf", "bars.png", "success.json"),
    }
    assert (
        f"laptop {mine / 'laptop'}" in (mine / "laptop" / "00_small" / "00_small.ipynb").read_text()
    )
    assert (mine / "laptop" / "site" / "index.html").exists()
    assert not list((tmp_path / "home").iterdir())


def test_the_folder_of_figures_is_the_one_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAT_FIGURES", str(tmp_path / "own"))
    assert store.figures_home() == tmp_path / "own"
    write_notebook(tmp_path / "notebooks")
    built = []
    monkeypatch.setattr(site, "build", lambda profile, figures: built.append((profile, figures)))
    monkeypatch.setattr("crat.batch.plan.plan_of", lambda *asked: ({}, ()))
    assert reproduce.run(notebooks=tmp_path / "notebooks") == 0
    assert (tmp_path / "own" / "quick" / "00_small" / "bars.png").exists()
    assert built == [("quick", tmp_path / "own")]
    monkeypatch.delenv("CRAT_FIGURES")
    assert store.figures_home() == ROOT / "figures"


def test_a_folder_that_cannot_be_written_to_is_a_line(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            store.StoreError, match=rf"cannot write to {folder}: .*; set CRAT_RUNS to a folder"
        ):
            store.must_be_writable(folder, "CRAT_RUNS")
    store.must_be_writable(tmp_path / "new" / "one", "CRAT_RUNS")
    assert list((tmp_path / "new" / "one").iterdir()) == []
