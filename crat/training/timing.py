"""The time of an epoch, measured so that other work on the machine does not decide it."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from crat.training.run import Run
from crat.training.trainer import Trainer


def core_seconds(runs: Mapping[str, Run], rounds: int = 8) -> dict[str, float]:
    """Core seconds that an epoch's updates take on the CPU, for each run by its name.

    The runs make their steps in turn in this process, `rounds` each behind one that is not counted,
    and its CPU time is taken instead of the clock's. Validation is not in it. Nothing is written.
    """
    cpu, spent = torch.device("cpu"), dict.fromkeys(runs, 0.0)
    with torch.random.fork_rng(devices=[]):
        trainers = {name: Trainer(run, cpu) for name, run in runs.items()}
        epochs = {name: trainer.batches(0) for name, trainer in trainers.items()}
        batches = {name: iter(epoch) for name, epoch in epochs.items()}
        for turn in range(rounds + 1):
            for name, trainer in trainers.items():
                x, y = next(batches[name])
                began = time.process_time()
                trainer.step(x, y, trainer.config.lr)
                spent[name] += (time.process_time() - began) if turn else 0.0
    return {name: spent[name] / rounds * len(epochs[name]) for name in runs}
