"""A training that takes a second, how two of them are compared, and an AutoAttack that takes no
longer.
"""

from dataclasses import replace

import torch

from crat.attacks import APGD, FAB, AutoAttack, Hunter, Square
from crat.config import RunConfig

TINY = RunConfig().but(
    train_per_class=26,
    valid_per_class=5,
    epochs=3,
    steps=2,
    batch_size=64,
    dtype="float32",
    width=4,
)


def weights(run, which="last"):
    return run.model(which).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def shorten_autoattack(patch, steps=10, queries=60):
    """Its parts become short: for tests of what is kept and told of them, not of their strength."""
    whole, lengths = (
        AutoAttack.attacks,
        {APGD: {"steps": steps}, FAB: {"steps": 5}, Square: {"queries": queries}, Hunter: {}},
    )

    def short(self, n_classes):
        return {
            name: replace(part, **lengths[type(part)])
            for name, part in whole(self, n_classes).items()
        }

    patch.setattr(AutoAttack, "attacks", short)
