"""Core seconds of an epoch: of each run, in turn, and without a trace."""

import pytest
import torch
from tiny_runs import TINY

from crat.defenses import preset
from crat.training.run import Run
from crat.training.step import Step
from crat.training.timing import core_seconds

pytestmark = pytest.mark.usefixtures("own_store")


def test_each_run_makes_its_steps_in_turn_and_nothing_is_written(monkeypatch):
    small = TINY.but(train_per_class=10, batch_size=16, dtype="float32")
    runs = {name: Run.of(small.but(**preset(name))) for name in ("pgd_at", "fgsm")}
    order, inner = [], Step.__call__
    monkeypatch.setattr(
        Step,
        "__call__",
        lambda self, *given: (order.append(self.config.defense), inner(self, *given))[1],
    )
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    found = core_seconds(runs, rounds=2)
    assert order == ["pgd_at", "fgsm"] * 3
    assert found.keys() == runs.keys()
    assert min(found.values()) > 0
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(run.folder.exists() for run in runs.values())
