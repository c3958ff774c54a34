"""GradAlign against tml-epfl/understanding-fast-adv-training: the step of train.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from harness import (
    BATCH,
    CLASSES,
    EPS,
    STEP,
    STEPS,
    authors,
    batch,
    given_noise,
    made,
    statements,
    tiny,
)
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.fgsm import GradAlign

CODE = "tml-epfl/understanding-fast-adv-training@ceed49440bfc35a676375b783eaba5940e583bcc"
WEIGHT = 0.2
LENGTH = 1.25


def theirs(folder: Path) -> dict[str, Tensor]:
    model, (x, y) = tiny(), batch()
    step = statements(folder / "train.py", "if args.attack in", "loss += reg")
    args = SimpleNamespace(
        attack="fgsm",
        attack_init="zero",
        minibatch_replay=1,
        dataset="cifar10",
        batch_size=BATCH,
        fgsm_alpha=LENGTH,
        grad_align_cos_lambda=WEIGHT,
    )
    names = {
        "torch": torch,
        "F": nn.functional,
        "args": args,
        "model": model,
        "opt": None,
        "loss_function": nn.CrossEntropyLoss(),
        "X": x,
        "y": y,
        "eps": EPS,
        "half_prec": False,
        "double_bp": True,
        "data": SimpleNamespace(shapes_dict={"cifar10": (50000, 3, 32, 32)}),
        "iteration": 0,
    }
    stubs = {"apex": {"amp": None}, "apex.amp": None}
    with authors(folder, **stubs), mock.patch.object(torch.cuda, "FloatTensor", torch.DoubleTensor):
        import utils

        names |= {"utils": utils} | {
            name: getattr(utils, name) for name in ("clamp", "l2_norm_batch", "get_input_grad")
        }
        exec(step, names)
    return made(model, x + names["delta"], names["loss"])


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    model, (x, y) = tiny(dtype), batch(0, dtype)
    method = GradAlign(PGD(EPS, STEP, STEPS, batch_norm="moving"), step=LENGTH, weight=WEIGHT)
    method.prepare(Task(torch.ones(CLASSES)))
    with given_noise(dtype):
        x_adv = method.craft(model, x, y, generator=torch.Generator())
    return made(model, x_adv, method.loss(model, x, x_adv, y)[0])
