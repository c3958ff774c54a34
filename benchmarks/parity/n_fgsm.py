"""N-FGSM against pdejorge/N-FGSM: the step of train.py, run as in `fgsm_rs`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from harness import (
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
from crat.defenses.fgsm import NFGSM

CODE = "pdejorge/N-FGSM@0a9e4f040b89a4bcd85763a34dea7866416927a2"


def theirs(folder: Path) -> dict[str, Tensor]:
    model, (x, y) = tiny(), batch()
    step = statements(folder / "train.py", "eta = torch.zeros_like", "loss = F.cross_entropy")
    last = statements(folder / "train.py", "delta = eta + alpha", "opt.zero_grad")
    of_channel = torch.ones(3, 1, 1, dtype=torch.float64)
    names = {
        "torch": torch,
        "F": nn.functional,
        "args": SimpleNamespace(unif=2.0, clip=-1),
        "model": model,
        "opt": torch.optim.SGD(model.parameters(), lr=0.0),
        "X": x,
        "y": y,
        "epsilon": EPS * of_channel,
        "alpha": EPS * of_channel,
    }
    with authors(folder), noise_by_channel():
        from utils.attack_utils import AttackUtils

        names["attack_utils"] = AttackUtils(0 * of_channel, of_channel, of_channel)
        exec(step, names)
        names["grad"] = torch.autograd.grad(names["loss"], names["eta"])[0]
        exec(last, names)
    return made(model, x + names["delta"], names["loss"])


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    model, (x, y) = tiny(dtype), batch(0, dtype)
    method = NFGSM(PGD(EPS, STEP, STEPS, batch_norm="moving"))
    method.prepare(Task(torch.ones(CLASSES)))
    with given_noise(dtype):
        x_adv = method.craft(model, x, y, generator=torch.Generator())
    return made(model, x_adv, method.loss(model, x, x_adv, y)[0])
