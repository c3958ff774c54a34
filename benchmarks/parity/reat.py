"""REAT against GuanlinLee/REAT: loss_functions.py, and train.py's counting in three batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from harness import (
    CLASSES,
    EPS,
    STEP,
    STEPS,
    Tiny,
    authors,
    batch,
    buffers,
    given_noise,
    gradient,
    tiny,
)
from torch import Tensor, nn

from crat.attacks import PGD
from crat.attacks.objectives import PlainCrossEntropy
from crat.defenses import ClassStats, Task
from crat.defenses.reat import REAT
from crat.nets.models import Classifier, Normalize

CODE = "GuanlinLee/REAT@a7909fd98a52d2bdb6a68aea7248e80900cffa29"
COUNTS = [
    400,
    220,
    120,
    66,
    36,
    20,
    11,
    6,
    3,
    1,
]  # sorted, for the code takes the last classes as the rarest


def inner_batch(number: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images that eps never takes out of [0, 1], where the code's random start is not cut."""
    x, y = batch(number, dtype)
    return 0.1 + 0.8 * x, y


class Features(nn.Module):
    """The body of harness.Tiny."""

    def __init__(self, whole: Tiny):
        super().__init__()
        self.conv, self.bn = whole.conv, whole.bn

    def forward(self, x: Tensor) -> Tensor:
        return Tiny.features(self, x)


def classifier(dtype: torch.dtype, head: nn.Module | None = None) -> Classifier:
    """harness.tiny as a network of ours."""
    whole = tiny(dtype)
    return Classifier(
        "tiny", Normalize((0.0,), (1.0,), 3), Features(whole), head or whole.head, CLASSES
    ).to(dtype)


class WithFeatures(nn.Module):
    """harness.tiny under the call of the authors' networks."""

    def __init__(self):
        super().__init__()
        whole = tiny()
        self.body, self.head = Features(whole), whole.head

    def forward(self, x: Tensor, if_feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        features = self.body(x)
        return (features, self.head(features)) if if_feature else self.head(features)


def theirs(folder: Path) -> dict[str, Tensor]:
    found = {}
    double = mock.patch.object(
        torch, "FloatTensor", lambda *shape: torch.empty(*shape, dtype=torch.float64)
    )
    with authors(folder), double, mock.patch.object(np, "float32", np.float64):
        import loss_functions

        model = WithFeatures().train()
        seen = []
        asked = SimpleNamespace(eps=EPS, ns=STEPS, ss=STEP)
        model.body.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        answered, following = list(COUNTS), [0] * CLASSES
        for i in range(3):
            x, y = inner_batch(i)
            logits, loss = loss_functions.REAT(
                model, x, y, optimizer, list(COUNTS), answered, asked
            )
            found |= {
                f"{i}/x_adv": seen[-1],
                f"{i}/loss": loss,
                f"{i}/gradient": gradient(model, loss),
            }
            loss.backward()
            optimizer.step()
            for k in logits.argmax(1).tolist():
                following[k] += 1
        x, y = inner_batch(0)
        for name, counts in (("first", answered), ("next", following)):
            leaf = (torch.eye(CLASSES)[y] * 2).requires_grad_()
            loss = loss_functions.RBL(y, leaf, list(COUNTS), counts)
            found |= {
                f"weighted/{name}": loss,
                f"weighted/{name}/gradient": torch.autograd.grad(loss, leaf)[0],
            }
    return found | {"buffers": buffers(model)}


def _weighted_loss(method: REAT, dtype: torch.dtype, name: str) -> dict[str, Tensor]:
    """The ascended objective as the code averages it: by the sum of the weights."""
    y = inner_batch(0)[1]
    leaf = (torch.eye(CLASSES, dtype=dtype)[y] * 2).requires_grad_()
    loss = (
        method._weighted(PlainCrossEntropy())(leaf, y).sum()
        / method.state["weight"].to(dtype)[y].sum()
    )
    return {
        f"weighted/{name}": loss.detach(),
        f"weighted/{name}/gradient": torch.autograd.grad(loss, leaf)[0],
    }


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    model = classifier(dtype).train()
    total = None
    start, mode = REAT.crafting()
    method = REAT(PGD(EPS, STEP, STEPS, start=start, batch_norm=mode))
    method.prepare(Task(torch.tensor(COUNTS)))
    found |= _weighted_loss(method, dtype, "first")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(3):
        x, y = inner_batch(i, dtype)
        with given_noise(dtype):
            x_adv = method.craft(model, x, y, generator=torch.Generator())
        loss, stats = method.loss(model, x, x_adv, y)
        found |= {
            f"{i}/x_adv": x_adv,
            f"{i}/loss": loss.detach(),
            f"{i}/gradient": gradient(model, loss),
        }
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = stats if total is None else ClassStats.__add__(total, stats)
    method.epoch_end(total, None)
    found |= _weighted_loss(method, dtype, "next")
    return found | {"buffers": buffers(model.body)}
