"""A worker and then the driver are killed: no process remains, and a new start does the rest.

Here and on a dask cluster of two workers; the results are those of an undisturbed training.
"""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from gates import PATIENCE, Gates
from nbformat.v4 import new_code_cell, new_notebook
from tiny_runs import same, weights

from crat import store
from crat.batch import plan, reproduce, worker
from crat.config import RunConfig
from crat.training.run import Run

# two classes, so that there is little to judge
SETTINGS = dict(
    drop_classes=(2, 3, 4, 5, 6, 7, 8, 9),
    train_per_class=60,
    valid_per_class=5,
    epochs=4,
    steps=2,
    batch_size=32,
    dtype="float32",
    width=4,
)
RUNS = {f"AT-s{s}": RunConfig().but(**SETTINGS, seed=s) for s in range(2)}

DRIVER = """
import json, sys
from crat import cli
from crat.batch import plan, reproduce
from crat.config import RunConfig
runs = {key: RunConfig.from_dict(config) for key, config in json.loads(sys.argv[1]).items()}
plan.plan_of = lambda *asked: (runs, ())
run = reproduce.run
reproduce.run = lambda *given, **more: run(*given, **more, notebooks=reproduce.Path("notebooks"))
sys.exit(cli.main(["reproduce", "--shard", "1/1", *sys.argv[2:]]))
"""


@pytest.fixture
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:
        yield cluster


def workers_of(home):
    """The processes that work for a store."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "crat.batch.worker" in words and json.loads(words[-1])["root"] == str(home):
                found.append(process)
        except (psutil.Error, KeyError):
            pass
    return found


@pytest.mark.parametrize("on", ["here", "dask"])
def test_every_result_is_there_and_as_if_undisturbed(on, tmp_path, monkeypatch, capsys, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "runs"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(plan, "plan_of", lambda *asked: (RUNS, ()))
    Path("notebooks").mkdir()
    cell = new_code_cell('profile: str = "quick"\nseed: int = 0', metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), "notebooks/00_none.ipynb")

    first = Run.of(RUNS["AT-s0"])
    gates = Gates(tmp_path / "gates", monkeypatch)
    for done in (1, 2):  # here it is killed, there the driver is
        gates.close(first, done)
    address = request.getfixturevalue("cluster").scheduler_address if on == "dask" else None
    where = ["--dask", address] if address else ["--workers", "2"]

    driver = subprocess.Popen(
        [
            sys.executable,
            "-c",
            DRIVER,
            json.dumps({k: c.as_dict() for k, c in RUNS.items()}),
            *where,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        killed = psutil.Process(gates.waiting_at(first, 1))
        (killed if on == "here" else killed.parent()).send_signal(signal.SIGKILL)
        assert psutil.wait_procs([killed], PATIENCE)[1] == []
        gates.open(first, 1)
        another = psutil.Process(gates.waiting_at(first, 2))  # it goes on with the next epoch
        assert another != killed
        assert another in workers_of(tmp_path / "runs")
        driver.send_signal(signal.SIGKILL)
        assert psutil.wait_procs([another], PATIENCE)[1] == []
        told = driver.communicate(timeout=PATIENCE)[0]
    finally:
        driver.kill()
    if on == "here":
        assert (
            f"{first.name}: its worker was killed by SIGKILL (out of memory?); another goes on "
            f"after epoch 1" in told
        )
    assert first.card()["epochs_done"] == 2
    assert psutil.wait_procs(workers_of(tmp_path / "runs"), PATIENCE)[1] == []
    # of the killed worker and of those that lost their driver
    assert not list((tmp_path / "temporary").glob("*.log"))
    gates.open(first, 2)

    again = dict(shard="1/1", dask=address, workers=2, notebooks=Path("notebooks"))
    assert reproduce.run(**again) == 0
    told = capsys.readouterr().out
    assert f"{first.name}: done in" in told
    assert re.search(r"to be trained, from epoch 3\s", told)
    assert reproduce.run(**again) == 0
    assert capsys.readouterr().out == "0 runs are read from results/, 2 more are in the store\n\n"

    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "undisturbed"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    worker.make(RUNS["AT-s0"])
    torch.set_num_threads(before)
    expected = Run.of(RUNS["AT-s0"])
    assert same(weights(first), weights(expected))
    assert first.history().equals(expected.history())
    outcomes = sorted((expected.folder / "eval").glob("*.npz"))
    assert len(outcomes) == 3
    for outcome in outcomes:
        kept, made = (
            store.read_arrays(run.folder / "eval" / outcome.name) for run in (first, expected)
        )
        assert all((kept[name] == made[name]).all() for name in made)
    assert not list(first.folder.glob(".*"))
