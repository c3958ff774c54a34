"""FGSM-RS against locuslab/fast_adversarial: the step of CIFAR10/train_fgsm.py.

Its main() trains as soon as it is called, so the statements of its loop are run on tiny images.
Their images are normalised and their limits with them; here mean 0 and sd 1 leave both as they are.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from harness import (
    AMP,
    CLASSES,
    EPS,
    STEP,
    STEPS,
    authors,
    batch,
    given_noise,
    made,
    noise_by_channel,
    statements,
    tiny,
)
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.fgsm import FGSMRS

CODE = "locuslab/fast_adversarial@54f728755e71857b632882ba6d6cef22f56e2172"
LENGTH = 1.25  # of the step, in units of eps: 10 of 8, as their defaults


def theirs(folder: Path) -> dict[str, Tensor]:
    model, (x, y) = tiny(), batch()
    step = statements(folder / "CIFAR10" / "train_fgsm.py", "if args.delta_init", "loss = crit")
    of_channel = torch.ones(3, 1, 1, dtype=torch.float64)
    names = {
        "torch": torch,
        "F": nn.functional,
        "amp": AMP,
        "args": SimpleNamespace(delta_init="random"),
        "model": model,
        "criterion": nn.CrossEntropyLoss(),
        "opt": None,
        "X": x,
        "y": y,
        "epsilon": EPS * of_channel,
        "alpha": LENGTH * EPS * of_channel,
        "lower_limit": 0 * of_channel,
        "upper_limit": of_channel,
    }
    with authors(folder / "CIFAR10", apex={"amp": None}, **{"apex.amp": None}), noise_by_channel():
        from utils import clamp

        exec(step, names | {"clamp": clamp}, found := {})
    return made(model, x + found["delta"], found["loss"])


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    model, (x, y) = tiny(dtype), batch(0, dtype)
    method = FGSMRS(PGD(EPS, STEP, STEPS, batch_norm="moving"))
    method.prepare(Task(torch.ones(CLASSES)))
    with given_noise(dtype):
        x_adv = method.craft(model, x, y, generator=torch.Generator())
    return made(model, x_adv, method.loss(model, x, x_adv, y)[0])
