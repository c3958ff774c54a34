"""FGSM-PGI against jiaxiaojunQAQ/FGSM-PGI: the step of FGSM_MEP.py, run as in `fgsm_rs`.

Their prior is that of the image, with a momentum over epochs; both sides are given the same one,
the momentum is 0 and so is their label smoothing. Their prior's pass is the attack's; ours is one
more, so BatchNorm moves in it and not in the attack.
"""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from harness import (
    BATCH,
    CLASSES,
    EPS,
    STEP,
    STEPS,
    authors,
    batch,
    made,
    statements,
    tiny,
    uniform_noise,
)
from torch import Tensor, nn

from crat.attacks import PGD
from crat.attacks.objectives import PlainCrossEntropy
from crat.defenses import Task
from crat.defenses.fgsm import FGSMPGI

CODE = "jiaxiaojunQAQ/FGSM-PGI@fc15cfeffd48f8ebebaea7c7b46b72b1c99bd7d3"
WEIGHT = 10.0
HELPERS = ("_label_smoothing", "LabelSmoothLoss", "clamp")


def prior(dtype: torch.dtype = torch.float64) -> Tensor:
    """A perturbation of each image, (B, 3, 32, 32), with which it stays inside [0, 1]."""
    x = batch(0, dtype)[0]
    return (x + EPS * (2 * uniform_noise(dtype) - 1)).clamp(0, 1) - x


def theirs(folder: Path) -> dict[str, Tensor]:
    model, (x, y) = tiny(), batch()
    file = folder / "FGSM_MEP.py"
    first = statements(file, "label_smoothing = Variable", "loss = LabelSmoothLoss")
    functions = [
        node
        for source in (file, folder / "utils.py")
        for node in ast.parse(source.read_text()).body
        if getattr(node, "name", "") in HELPERS
    ]
    helpers = compile(ast.Module(functions, []), str(file), "exec")
    of_channel = torch.ones(3, 1, 1, dtype=torch.float64)
    names = {
        "np": np,
        "torch": torch,
        "F": nn.functional,
        "args": SimpleNamespace(factor=1.0, momentum_decay=0.0, lamda=WEIGHT),
        "model": model,
        "X": x,
        "y": y,
        "delta": prior(),
        "next_delta": prior(),
        "momentum": torch.zeros_like(x),
        "epsilon": EPS * of_channel,
        "alpha": EPS * of_channel,
        "lower_limit": 0 * of_channel,
        "upper_limit": of_channel,
        "Variable": torch.Tensor,
    }
    in_float64 = mock.patch.object(torch.Tensor, "float", torch.Tensor.double)
    with authors(folder), in_float64:
        exec(helpers, names)
        exec(first, names)
    found = made(model, x + names["delta"], names["loss"])
    return found | {"state/prior": names["next_delta"].detach()}


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    model, (x, y) = tiny(dtype), batch(0, dtype)
    attack = PGD(EPS, STEP, STEPS, objective=PlainCrossEntropy(), batch_norm="train")
    method = FGSMPGI(attack, weight=WEIGHT)
    method.prepare(Task(torch.ones(CLASSES), (3, 32, 32), batch_size=BATCH))
    method.state["prior"] = prior(dtype)
    x_adv = method.craft(model, x, y)
    found = made(model, x_adv, method.loss(model, x, x_adv, y)[0])
    return found | {"state/prior": method.state["prior"]}
