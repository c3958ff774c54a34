"""The flag --recompute: old runs go, stopped requests go on, bad requests are refused."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_reproduce import GOOD, PARAMETERS, elsewhere, start, write_notebook

from crat import store
from crat.batch import cluster, plan, reproduce
from crat.config import ConfigError, profile
from crat.store import Store
from crat.training.run import Run

__all__ = ["elsewhere"]  # used by each test


@pytest.fixture
def recompute(monkeypatch):
    """Recomputes two notebooks, or those of numbers; the second fails unless works[0]."""
    write_notebook(Path("notebooks/00_good.ipynb"), GOOD)
    write_notebook(Path("notebooks/01_other.ipynb"), GOOD)

    def recompute(*numbers, **settings):
        ran.clear()
        return start(*numbers, recompute=True, **settings)

    ran, works = [], [False]
    recompute.ran, recompute.works = ran, works

    def perform(jobs, *_):
        broken = [job.name for job in jobs if not works[0] and job.name != "00_good"]
        for job in jobs:
            ran.append(job.name)
            store.write_text(Store.recomputed().root / job.name / "card.json", "{}")
            store.write_text(job.output, "{}")
            job.began.append(time.monotonic())
            if job.name not in broken:
                job.finish(SimpleNamespace(told=str))
        return dict.fromkeys(broken, "broken")

    monkeypatch.setattr(reproduce, "perform", perform)
    return recompute


def test_a_recomputation_starts_empty_and_goes_on_where_it_was_stopped(recompute):
    ran, works = recompute.ran, recompute.works
    assert recompute() == 1
    assert ran == ["00_good", "01_other"]
    works[0] = True
    assert recompute() == 0
    assert ran == ["01_other"]
    stale = Path("runs/recomputed/00_good/card.json")
    assert stale.exists()
    assert recompute(dry_run=True) == 0
    assert ran == []
    stale.write_text("from the last time")
    assert recompute() == 0
    assert ran == ["00_good", "01_other"]
    assert stale.read_text() == "{}"


def test_a_small_recomputation_takes_nothing_from_a_stopped_one(recompute, capsys):
    """Nor does one of another profile: each request has its own end."""
    assert recompute() == 1
    kept = Path("runs/recomputed/00_good/card.json")
    for other in (dict(settings=["seed=3"]), dict(profile="laptop")):
        kept.write_text("of the stopped one")
        capsys.readouterr()
        assert recompute("01", dry_run=True) == 0
        assert (
            "another recomputation is unfinished, and what it trained is used: remove"
            in capsys.readouterr().out
        )
        assert recompute("00", **other) == 0
        kept.write_text("of the stopped one")
    recompute.works[0] = True
    assert recompute() == 0
    assert recompute.ran == ["00_good", "01_other"]  # the figures are those of another request
    kept.write_text("of the last time")
    assert recompute("01") == 0
    assert not kept.exists()  # nothing was unfinished any more


def test_a_shard_of_a_recomputation_removes_nothing(recompute):
    """The other shards use the store; the same request without a shard goes on from all of them."""
    recompute.works[0] = True
    made = Path("runs/recomputed/made-by-another-shard")
    store.write_text(made, "")
    assert recompute(shard="1/2") == recompute(shard="2/2") == 0
    assert recompute.ran == []
    assert len(list(made.parent.glob("unfinished-*"))) == 1
    assert recompute() == 0
    assert recompute.ran == ["00_good", "01_other"]
    assert [path.name for path in made.parent.glob("[mu]*")] == [made.name]


def test_a_recomputation_leaves_what_is_published_aside(monkeypatch):
    """Its runs are planned in a store of their own, and are tasks though they were published."""
    config = profile("quick").but(train_per_class=20, valid_per_class=10, epochs=2, steps=1)
    write_notebook(
        Path("notebooks/00_good.ipynb"), GOOD, parameters=PARAMETERS + "\nrecompute: bool = False"
    )
    monkeypatch.setattr(plan, "plan_of", lambda *asked: ({"a": config}, ()))
    monkeypatch.setattr("crat.store.files.published_home", lambda: Path("results").absolute())
    (Path("results") / "fashion_mnist_mini" / Run.of(config).name).mkdir(parents=True)
    handed = []
    monkeypatch.setattr(
        reproduce, "perform", lambda tasks, *_: handed.extend(tasks) or {"all": "not today"}
    )
    start()
    start(recompute=True)
    usual, run, again = handed
    assert usual.parameters == {"profile": "quick"}
    assert run.place == Store(Path("runs/recomputed").absolute())
    assert again.parameters == {"profile": "quick", "recompute": True}
    assert again.needs == {run.name}


def test_nothing_is_removed_for_a_recomputation_that_is_refused(recompute, monkeypatch, capsys):
    recompute.works[0] = True
    assert recompute() == 0
    kept = Path("runs/recomputed/00_good/card.json")
    refuse, refused = reproduce._check_reach, ConfigError("--data: not heeded")
    monkeypatch.setattr(reproduce, "_check_reach", lambda *asked: (_ for _ in ()).throw(refused))
    with pytest.raises(ConfigError, match="not heeded"):
        recompute()
    monkeypatch.setattr(reproduce, "_check_reach", refuse)
    monkeypatch.setattr(
        cluster,
        "Cluster",
        lambda where: (_ for _ in ()).throw(cluster.ClusterError("no scheduler")),
    )
    with pytest.raises(cluster.ClusterError, match="no scheduler"):
        recompute(dask="tcp://127.0.0.1:9")
    assert kept.exists()

    def fails(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(reproduce.shutil, "rmtree", fails)
    with pytest.raises(
        store.StoreError, match=r"^what was trained before cannot be removed: .*Permission denied: "
    ):
        recompute()
    assert not list(Path("runs/recomputed").glob("unfinished*"))
