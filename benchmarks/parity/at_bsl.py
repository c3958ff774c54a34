"""AT-BSL against NISPLab/AT-BSL: at_bsl_loss.py, the attack and the loss, two steps of training."""

from __future__ import annotations

from pathlib import Path

import torch
from harness import EPS, STEP, STEPS, authors, batch, buffers, given_noise, gradient, tiny
from torch import Tensor

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.at_bsl import ATBSL

CODE = "NISPLab/AT-BSL@23f433e8eeec463f1ec40188966a64d240c33443"
COUNTS = [50, 7, 31, 2, 400, 90, 12, 1, 5, 23]  # in no order


def theirs(folder: Path) -> dict[str, Tensor]:
    found = {}
    with authors(folder):
        from at_bsl_loss import pgd_loss

        model, seen = tiny(), []
        model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(2):
            x, y = batch(i)
            loss = pgd_loss(model, x, y, COUNTS, optimizer, STEP, EPS, STEPS)
            found |= {
                f"{i}/x_adv": seen[-1],
                f"{i}/loss": loss,
                f"{i}/gradient": gradient(model, loss),
            }
            loss.backward()
            optimizer.step()
    return found | {"buffers": buffers(model)}


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found, model = {}, tiny(dtype)
    start, mode = ATBSL.crafting()
    method = ATBSL(PGD(EPS, STEP, STEPS, start=start, batch_norm=mode))
    method.prepare(Task(torch.tensor(COUNTS)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(2):
        x, y = batch(i, dtype)
        with given_noise(dtype):
            x_adv = method.craft(model, x, y, generator=torch.Generator())
        loss, _ = method.loss(model, x, x_adv, y)
        found |= {
            f"{i}/x_adv": x_adv,
            f"{i}/loss": loss.detach(),
            f"{i}/gradient": gradient(model, loss),
        }
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found | {"buffers": buffers(model)}
