import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from gates import PATIENCE, wait_until
from nbformat.v4 import new_code_cell, new_notebook

from crat import store
from crat.batch import estimates, notebook, plan, reproduce
from crat.batch.notebook import NotebookError, Progress, by_papermill
from crat.batch.parameters import choose_parameters
from crat.config import ConfigError, profile
from crat.training.run import Run
from crat.training.trainer import train

PARAMETERS = (
    'profile: str = "laptop"  # quick | laptop | gpu | paper\n'
    "seed: int = 0\neps: float = 0.1\nlive: bool = True"
)
TINY = profile("quick").but(train_per_class=20, valid_per_class=10, epochs=2, steps=1)
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}

GOOD = """
import json, os
from pathlib import Path
from crat.analysis.claims import Claim, Estimate, decide, write
folder = Path(os.environ["CRAT_FIGURES"]) / "00_good"
for suffix in (".png", ".pdf", ".csv"):
    (folder / f"bars{suffix}").write_text(f"{profile} {seed} {os.getcwd()}")
statement = "Classes differ in robust | clean accuracy"
says = Claim("Tian 2021", "Fig. 1", statement, "worst", number="12.3")
write([decide(says, Estimate(0.123, 0.1, 0.2, 0.001)), decide(says, None)], folder / "claims.json")
print("epoch 1/2")
"""


def write_notebook(path, *sources, parameters=PARAMETERS):
    cells = [
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *map(new_code_cell, sources),
    ]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), str(path))
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAT_RUNS", "runs")  # a relative one must mean the same in a notebook
    monkeypatch.setattr(plan, "plan_of", lambda *asked: ({}, ()))
    Path("notebooks").mkdir()
    return tmp_path


def start(*numbers, **settings):
    return reproduce.run(numbers, notebooks=Path("notebooks"), figures=Path("figures"), **settings)


def test_a_good_and_a_failed_notebook(capsys, monkeypatch, elsewhere):
    good = write_notebook(Path("notebooks/00_good.ipynb"), GOOD)
    write_notebook(Path("notebooks/01_fails.ipynb"), "print('before')", "1 / 0", "print('after')")
    assert start("01", "00_good", settings=["seed=7"]) == 1
    told = capsys.readouterr()
    assert "TCP" not in told.out + told.err
    assert "papermill" not in told.out + told.err

    out = Path("figures/quick/00_good")
    assert (out / "bars.png").read_text() == f"quick 7 {elsewhere / 'notebooks'}"
    assert set(store.read_json(out / "success.json")["files"]) == {
        *("00_good.ipynb", "bars.csv", "bars.pdf", "bars.png", "claims.json")
    }
    assert "figures/quick/00_good: figures as 1 PNG, 1 PDF, 1 CSV" in told.out
    assert re.search(r"12\.3 +\+12\.3 \[10\.0, 20\.0\] points +supported *\n", told.out)
    assert "Classes differ in robust | clean" in told.out
    assert max(map(len, told.out.splitlines())) <= 120
    csv = Path("figures/quick/claims.csv").read_text().splitlines()
    assert csv[0].startswith(
        "notebook,paper,where,claim,the paper's number,ours,low,high,functional,role,verdict,"
    )
    assert csv[1].startswith(
        "00_good,Tian 2021,Fig. 1,Classes differ in robust | clean accuracy,12.3,0.123,0.1,0.2"
    )
    assert Path("figures/quick/claims.md").read_text().count("\n") == 4

    assert re.search(
        r"01_fails: failed after \d\d:\d\d: In \[4\]: ZeroDivisionError: division by zero\n",
        told.out,
    )
    assert "what it did until then: figures/quick/01_fails/01_fails.ipynb" in told.out
    assert Progress.read(Path("figures/quick/01_fails/01_fails.ipynb")).last_line == "before"
    assert "failed: 01_fails\n" in told.out
    assert not Path("figures/quick/01_fails/success.json").exists()

    def never(*_):
        raise AssertionError("a notebook that is done was run")

    monkeypatch.setattr(notebook, "start", never)
    assert start("00", settings=["seed=7"]) == 0
    assert re.search(r"00_good +done: figures/quick/00_good", capsys.readouterr().out)
    assert state("00", capsys, settings=["seed=8"]) == "to be run"
    (out / "bars.pdf").rename(out / "kept")
    assert state("00", capsys, settings=["seed=7"]) == "to be run"
    (out / "kept").rename(out / "bars.pdf")
    assert state("00", capsys, settings=["seed=7"]).startswith("done")
    good.write_text(good.read_text().replace("epoch 1/2", "epoch 2/2"))
    assert state("00", capsys, settings=["seed=7"]) == "to be run"


def state(number, capsys, **settings):
    """What the plan says of a notebook; beside it, the time that it took last."""
    assert start(number, dry_run=True, **settings) == 0
    return re.search(rf"^{number}_\w+ +(.*?) +\d\d:\d\d$", capsys.readouterr().out, re.MULTILINE)[1]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import os\nos._exit(3)", "In [2]: the kernel died (out of memory?)"),
        ("import sys\nsys.exit(0)", "it ended early: 2 of its cells were not run"),
    ],
)
def test_what_papermill_takes_for_done(source, told):
    """After a dead kernel all cells are stamped "completed"; after an exit it returns cleanly."""
    notebook = write_notebook(Path("notebooks/00_ends.ipynb"), source, "print('after')", "2")
    assert by_papermill(str(notebook), "out.ipynb", {}) == told


@pytest.mark.parametrize(
    ("numbers", "settings", "line"),
    [
        (["03"], [], "no notebook '03'; known: 00_good, 01_other"),
        ([], ["sed=1"], "no chosen notebook has a parameter 'sed'; known: depth, eps, live, seed"),
        (["00"], ["depth=1"], "no chosen notebook has a parameter 'depth'; known: eps, live, seed"),
        ([], ["seed"], "--set seed: write it as name=value"),
        ([], ["seed=1.5"], "--set seed=1.5: seed is of type int, such as 0"),
        ([], ["eps=8/255"], "--set eps=8/255: eps is of type float, such as 0.1"),
        ([], ["live=perhaps"], "--set live=perhaps: live is of type bool, such as True"),
        ([], ["profile=paper"], "the profile is chosen by --profile"),
    ],
)
def test_what_is_mistyped_is_refused_before_anything_runs(numbers, settings, line):
    write_notebook(Path("notebooks/00_good.ipynb"), GOOD)
    write_notebook(Path("notebooks/01_other.ipynb"), "1", parameters="depth: int = 1")
    with pytest.raises(ConfigError, match=re.escape(line)):
        start(*numbers, settings=settings)
    assert not Path("figures").exists()


def test_a_parameter_goes_to_the_notebooks_that_know_it():
    first = write_notebook(Path("notebooks/00_good.ipynb"), GOOD)
    others = "depth: int = 1\nseed: int = 0\nx: list = []"
    second = write_notebook(Path("notebooks/01_other.ipynb"), "1", parameters=others)
    given = choose_parameters(
        [first, second], "paper", ["seed=3", "depth=2", "live=false", "eps=1", "x=[1, 'a']"]
    )
    assert given[first] == {"profile": "paper", "seed": 3, "live": False, "eps": 1.0}
    assert given[second] == {"depth": 2, "seed": 3, "x": [1, "a"]}


def test_notebooks_that_are_missing_or_damaged_are_one_line():
    with pytest.raises(NotebookError, match=r"no notebooks in notebooks: they come with a clone"):
        start()
    broken = Path("notebooks/00_broken.ipynb")
    for text in ("{", "[]", "{}"):
        broken.write_text(text)
        with pytest.raises(
            NotebookError, match=r"00_broken.ipynb: no notebook with a cell of literal parameters"
        ):
            start()
    write_notebook(broken, parameters="eps: float = 8 / 255")
    with pytest.raises(NotebookError, match=r"literal parameters"):
        start()


def test_the_plan_tells_what_is_cached_published_and_to_be_trained(capsys, monkeypatch):
    runs = {
        "cached": TINY.but(seed=1),
        "begun": TINY.but(seed=2),
        "published": TINY.but(seed=3),
        "new": TINY.but(seed=4),
        "without data": TINY.but(data="cifar10"),
    }
    names = {key: Run.of(config).name for key, config in runs.items()}
    write_notebook(Path("notebooks/00_good.ipynb"), GOOD)
    monkeypatch.setattr(plan, "plan_of", lambda *asked: (runs, ()))
    published = Path("results").absolute() / "fashion_mnist_mini" / names["published"]
    published.mkdir(parents=True)
    monkeypatch.setattr("crat.store.files.published_home", lambda: Path("results").absolute())
    # nothing lies in that folder
    monkeypatch.setattr(store, "published_file", lambda folder, name: None)
    train(runs["cached"], progress="none")
    train(runs["begun"], progress="none", max_minutes=0)
    assert start(dry_run=True) == 0
    told = capsys.readouterr().out
    takes = r"\d\d:\d\d\n"
    assert re.search(rf"{names['cached']} +00 +to be judged +{takes}", told)
    assert re.search(rf"{names['begun']} +00 +to be trained, from epoch 2 +{takes}", told)
    assert "1 runs are read from results/, 0 more are in the store" in told
    assert names["published"] not in told
    # a notebook that uses the network itself needs its weights
    monkeypatch.setattr(plan, "plan_of", lambda *asked: (runs, ("published",)))
    assert start(dry_run=True) == 0
    live = capsys.readouterr().out
    assert re.search(rf"{names['published']} +00 +to be trained in notebook 00 +{takes}", live)
    assert re.search(rf"{names['new']} +00 +to be trained +{takes}", told)
    assert re.search(rf"{names['without data']} +00 +to be trained +not known\n", told)
    assert re.search(rf"all of it +\d at a time on .+ +over {takes}", told)
    assert "times of training, by finished runs of the same kind on " in told
    assert "`crat data fetch cifar10` downloads it" in told
    assert not Path("figures").exists()


def test_a_plan_of_what_other_machines_do_tells_no_times(capsys, monkeypatch):
    write_notebook(Path("notebooks/00_good.ipynb"), GOOD)
    monkeypatch.setattr(plan, "plan_of", lambda *asked: ({"new": TINY.but(seed=4)}, ()))
    monkeypatch.setattr(reproduce, "_perform", lambda *_: {"all": "not today"})
    monkeypatch.setattr(estimates, "Rates", None)
    assert start(dask="tcp://127.0.0.1:9") == 1
    assert re.search(r"small_cnn-\S+-s4-\S+ +00 +to be trained\n", capsys.readouterr().out)


SLEEPS = """
import json, os, subprocess, time
from pathlib import Path
sleeper = subprocess.Popen(["sleep", "6000"])
Path("pids.tmp").write_text(json.dumps([os.getpid(), os.getppid(), sleeper.pid]))
Path("pids.tmp").rename("pids.json")
time.sleep(6000)
"""
DRIVER = """
import sys
from functools import partial
from pathlib import Path
from crat import cli
from crat.batch import plan, reproduce
plan.plan_of = lambda *asked: ({}, ())
reproduce.run = partial(reproduce.run, notebooks=Path("notebooks"), figures=Path("figures"))
sys.exit(cli.main(["reproduce", "--workers", "1"]))
"""


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)]
)
def test_a_stopped_driver_leaves_nothing_running(sent, code, elsewhere):
    write_notebook(Path("notebooks/00_sleeps.ipynb"), SLEEPS)
    write_notebook(Path("notebooks/01_next.ipynb"), "1")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stderr=subprocess.PIPE, text=True)
    try:
        told = Path("notebooks/pids.json")
        wait_until(
            lambda: told.exists() or driver.poll() is not None, "the notebook does not begin"
        )
        # kernel, its starter, its own process
        family = [psutil.Process(pid) for pid in json.loads(told.read_text())]
        driver.send_signal(sent)
        assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []
        assert driver.wait(PATIENCE) == code
    finally:
        driver.kill()
    error = driver.stderr.read()
    assert error == (
        "" if code < 0 else "crat: stopped; the same command resumes from what is done\n"
    )
    # left for reading
    assert Progress.read(Path("figures/quick/00_sleeps/00_sleeps.ipynb")).cells == 3
    assert not Path("figures/quick/01_next").exists()
