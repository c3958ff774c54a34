"""A dask cluster: tasks go over it, and an unusable one is refused in a line before any begins."""

import concurrent.futures
import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from gates import PATIENCE

from crat import store
from crat.batch import cluster
from crat.batch.cluster import Cluster, ClusterError
from crat.batch.executors import _outcome
from crat.batch.tasks import RunTask
from crat.store import Store

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("own_store")


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine may take its time to answer."""
    monkeypatch.setattr(cluster, "PATIENCE", PATIENCE)


@pytest.fixture
def scheduler():
    """One in this process, without processes of its own."""
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as local:
        yield local


@pytest.mark.parametrize("where", ["tcp://127.0.0.1:9", "nothing.json"])
def test_nobody_answers(where):
    """The client runs in a child process, as without a scheduler it leaves a thread behind."""
    code = (
        "import sys\nfrom crat.batch import cluster\n"
        "cluster.PATIENCE = 1.0\ncluster.Cluster(sys.argv[1])"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code, where], capture_output=True, text=True, timeout=PATIENCE
    )
    assert asked.returncode == 1
    assert f"\ncrat.batch.cluster.ClusterError: no dask scheduler at {where}: " in asked.stderr


def test_no_worker_has_joined(scheduler, monkeypatch):
    wait = distributed.Client.wait_for_workers
    monkeypatch.setattr(
        distributed.Client,
        "wait_for_workers",
        lambda client, n, timeout: wait(client, n, timeout=0.1),
    )
    with pytest.raises(ClusterError, match=r"no worker has joined .*: start `dask worker`"):
        Cluster(scheduler.scheduler_address)
    assert not list(store.home().glob(".*"))


def test_a_worker_that_does_not_see_the_store(scheduler, monkeypatch, tmp_path):
    scheduler.scale(1)
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": scheduler.scheduler_address}))
    monkeypatch.setattr(cluster, "sees", lambda path, text: False)
    with pytest.raises(
        ClusterError, match=r"worker .+ does not see .+/runs: set CRAT_RUNS to a folder that all"
    ):
        Cluster(str(file))
    assert not list(store.home().glob(".*"))


GO = threading.Event()


def fails(task, *_):
    """Instead of cluster.make."""
    assert GO.wait(PATIENCE)
    if task.name == "a":
        raise ValueError("no such\nthing")
    raise distributed.KilledWorker(task.name, SimpleNamespace(address="there"), 3)


def test_an_error_is_told_and_a_lost_worker_says_nothing_against_the_run(
    scheduler, monkeypatch, tmp_path
):
    """And whatever is handed out is done, however few workers there are."""
    scheduler.scale(1)
    GO.clear()
    monkeypatch.setattr(cluster, "make", fails)
    place = Cluster(scheduler.scheduler_address)
    try:
        handed = [place.submit(RunTask(name, {}, Store(tmp_path))) for name in "ab" * 4]
        GO.set()
        concurrent.futures.wait(handed, PATIENCE)
        first, second, *_ = outcomes = [_outcome(work) for work in handed]
        assert (first.error, first.killed) == ("ValueError: no such thing", False)
        assert (second.error, second.killed) == ("lost by the cluster", True)
        assert outcomes == [first, second] * 4
    finally:
        GO.set()
        place.close()


def test_what_is_wanted_no_more_ends(scheduler, monkeypatch, tmp_path):
    """When the driver closes its place, the worker's thread stops its process."""
    scheduler.scale(1)
    begun, ended = threading.Event(), threading.Event()
    child = SimpleNamespace(running=True, died=False, end=ended.set)
    monkeypatch.setattr(RunTask, "begin", lambda task, env: begun.set() or child)
    place = Cluster(scheduler.scheduler_address)
    try:
        place.submit(RunTask("a", {}, Store(tmp_path)))
        assert begun.wait(PATIENCE)
        assert not ended.is_set()
    finally:
        place.close()
    assert ended.wait(PATIENCE)


def test_what_all_see_is_what_was_written(tmp_path):
    (tmp_path / "proof").write_text("this")
    assert cluster.sees(tmp_path / "proof", "this")
    assert not cluster.sees(tmp_path / "proof", "that")
    assert not cluster.sees(tmp_path / "nothing", "this")


def test_without_dask_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match="pip install 'crat\\[dask\\]'"):
        Cluster("tcp://127.0.0.1:9")
