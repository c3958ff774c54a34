"""TRADES against yaodongyu/TRADES: trades_loss with its attack, BatchNorm's statistics."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import torch
from harness import CLASSES, EPS, STEP, STEPS, authors, batch, buffers, given_noise, gradient, tiny
from torch import Tensor

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.trades import TRADES

CODE = "yaodongyu/TRADES@6e8e11b7c281371c2f027ffadfbaea80361f09de"
BETA = 6.0


def theirs(folder: Path) -> dict[str, Tensor]:
    with mock.patch.dict(sys.modules), authors(folder):
        del sys.modules[__name__]  # theirs has this name, too
        import trades

        model, seen = tiny(), []
        model.register_forward_pre_hook(lambda _, images: seen.append(images[0].detach()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = trades.trades_loss(model, *batch(), optimizer, STEP, EPS, STEPS, BETA)
    return {
        "x_adv": seen[-2],
        "loss": loss,
        "gradient": gradient(model, loss),
        "buffers": buffers(model),
    }


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    model, (x, y) = tiny(dtype), batch(0, dtype)
    attack = PGD(EPS, STEP, STEPS, start=TRADES.start, batch_norm=TRADES.batch_norm)
    method = TRADES(attack, BETA, passes="clean adversarial clean")
    method.prepare(Task(torch.ones(CLASSES)))
    with given_noise(dtype):
        x_adv = method.craft(model, x, y, generator=torch.Generator())
    loss, _ = method.loss(model, x, x_adv, y)
    return {
        "x_adv": x_adv,
        "loss": loss,
        "gradient": gradient(model, loss),
        "buffers": buffers(model),
    }
