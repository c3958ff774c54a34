"""Who may write into a run's folder: whoever holds its lease, and nobody who only plans."""

import pytest
import torch
from tiny_runs import TINY, same, weights

from crat.store.lease import held
from crat.training.trainer import Trainer, train

pytestmark = pytest.mark.usefixtures("own_store")


def test_a_plan_writes_nothing_into_a_run():
    """The best weights are lost and are the last ones: only the training itself writes them
    again.
    """
    half = train(TINY, progress="none", max_minutes=0)
    best = weights(half, "best")
    (half.folder / "best.safetensors").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in half.folder.iterdir()}
    assert Trainer(half, torch.device("cpu")).state.epochs_done == 1
    assert {path.name: path.stat().st_mtime_ns for path in half.folder.iterdir()} == before
    with held(half.folder, torch.device("cpu")) as lease:
        Trainer(half, torch.device("cpu"), lease=lease)
    assert same(best, weights(half, "best"))
