"""A training that takes a second, and how two of them are compared."""

import torch

from crat.config import RunConfig

TINY = RunConfig().but(
    train_per_class=26, valid_per_class=5, epochs=3, steps=2, batch_size=64, dtype="float32", width=4
)


def weights(run, which="last"):
    return run.model(which).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
