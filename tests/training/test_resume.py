"""Killed at any moment, stopped, damaged or partly removed: a run ends as if nothing had
happened, or says why not.
"""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from tiny_runs import TINY, same, weights

from crat import store
from crat.config import RunConfig
from crat.training.checkpoint import save
from crat.training.run import Run
from crat.training.trainer import Trainer, train

pytestmark = pytest.mark.usefixtures("own_store")


# in mid-epoch after the second it says so, and waits to be killed
DRIVER = """
import json, signal, sys
from crat.config import RunConfig
from crat.training.step import Step
from crat.training.trainer import train
update, steps = Step.__call__, []
def halts(step, *given):
    steps.append(step.state.epochs_done)
    if steps.count(2) == 3:
        print("halfway", flush=True)
        signal.pause()
    return update(step, *given)
Step.__call__ = halts
train(RunConfig().but(**json.loads(sys.argv[1])), progress="line")
"""


DROPOUT = {"average": "ema_update", "defense": "trades", "model": "mnist_small_cnn"}
TUNED = {"average": "ema_epoch", "start_from": Run.of(TINY).name, "width": 4}


@pytest.mark.parametrize("extra", [{}, DROPOUT, TUNED])
def test_killed_and_resumed_ends_with_the_same_weights(tmp_path, monkeypatch, extra):
    """SIGKILL in the middle of the third epoch; dropout and a moving average in the second case,
    the weights of another run as a start in the third.
    """
    settings = dict(
        train_per_class=60,
        valid_per_class=5,
        epochs=4,
        steps=2,
        batch_size=32,
        dtype="float32",
        **extra,
    )
    settings |= {} if extra else {"width": 4}
    config = RunConfig().but(**settings, trace_per_class=1)
    start = train(TINY, progress="none").folder if config.train.start_from else None
    undisturbed = train(config, progress="none")
    expected = weights(undisturbed), undisturbed.history(), undisturbed.trace()["pgd"].tobytes()

    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "killed"))
    if start:
        shutil.copytree(start, Run.of(TINY).folder)
    argument = json.dumps({**settings, "trace_per_class": 1})
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen(
        [sys.executable, "-c", DRIVER, argument], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout is not None
    said = iter(child.stdout.readline, "")
    assert "halfway\n" in said
    child.send_signal(signal.SIGKILL)
    child.communicate()
    (Run.of(config).folder / ".half-best.safetensors").write_bytes(b"as if killed while writing")
    run = Run.of(config)
    assert not run.finished
    assert run.card()["epochs_done"] == 2
    resumed = train(config, progress="none")
    assert resumed.finished
    assert same(expected[0], weights(resumed))
    assert resumed.history().equals(expected[1])
    assert resumed.trace()["pgd"].tobytes() == expected[2]
    assert not list(run.folder.glob(".*"))


def stop_after(monkeypatch, name, times):
    """As if killed right after the n-th writing of a file of that name."""
    left = {"n": times}

    class Killed(Exception):
        pass

    def wrap(function):
        def write(path, *rest):
            function(path, *rest)
            if path.name == name:
                left["n"] -= 1
                if left["n"] == 0:
                    raise Killed

        return write

    for function in ("write_text", "write_tensors", "write_json"):
        monkeypatch.setattr(store, function, wrap(getattr(store, function)))
    with pytest.raises(Killed):
        train(TINY, progress="none")
    monkeypatch.undo()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run of TINY, trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRAT_RUNS", str(tmp_path_factory.mktemp("undisturbed")))
        return train(TINY, progress="none")


# best.safetensors: how often it is written depends on the run
WRITINGS = [
    (name, n) for name in ("history.csv", "checkpoint.safetensors", "card.json") for n in (1, 2, 3)
]


@pytest.mark.parametrize(("name", "times"), [*WRITINGS, ("best.safetensors", 1)])
def test_killed_between_any_two_writings(tmp_path, monkeypatch, undisturbed, name, times):
    expected = undisturbed
    best, last, card = weights(expected, "best"), weights(expected), expected.card()
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "killed"))
    runs = store.home()
    stop_after(monkeypatch, name, times)
    monkeypatch.setenv("CRAT_RUNS", str(runs))
    resumed = train(TINY, progress="none")
    assert resumed.finished
    assert resumed.trained_here
    assert same(best, weights(resumed, "best"))
    assert same(last, weights(resumed))
    assert {k: v for k, v in card.items() if k != "train_seconds"} == {
        k: v for k, v in resumed.card().items() if k != "train_seconds"
    }
    assert resumed.history().equals(expected.history())


@pytest.mark.parametrize("lost", ["best.safetensors", "checkpoint.safetensors", "card.json"])
def test_a_file_that_was_removed_is_made_anew(lost):
    run = train(TINY, progress="none")
    best, last = weights(run, "best"), weights(run)
    (run.folder / lost).unlink()
    again = train(TINY, progress="none")
    assert same(best, weights(again, "best"))
    assert same(last, weights(again))
    assert again.finished


def test_saving_what_was_restored_changes_nothing():
    run = train(TINY, progress="none")
    best, card = weights(run, "best"), run.card()
    trainer = Trainer(run, torch.device("cpu"))
    save(trainer.run, trainer.state, trainer.judged.state_dict(), trainer.images)
    assert same(best, weights(run, "best"))
    assert run.card() == card


def test_max_minutes_stops_at_an_epochs_end_and_goes_on():
    run = train(TINY, progress="none", max_minutes=0)
    assert run.card()["epochs_done"] == 1
    assert not run.finished
    while not run.finished:
        train(TINY, progress="none", max_minutes=0)
    assert run.card()["epochs_done"] == 3


def test_damaged_checkpoint_gets_one_line():
    run = train(TINY, progress="none", max_minutes=0)
    path = run.folder / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(store.StoreError, match=r"is damaged .* remove it"):
        train(TINY, progress="none")
    altered = bytearray(whole)
    altered[-5] ^= 1
    path.write_bytes(bytes(altered))
    with pytest.raises(store.StoreError, match="was altered"):
        train(TINY, progress="none")
    path.write_bytes(whole)
    assert train(TINY, progress="none").finished
