"""DAFA's TRADES and PGD against rucy74/DAFA: losses.py and utils.py's class weights.

Of losses.py also madry_loss's second step.

Epoch 1 of two is the warm-up; the loss, gradient, attack and buffers are those of epoch 2, under
the new weights.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

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
    buffers,
    given_noise,
    gradient,
    tiny,
)
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.dafa import DAFA

CODE = "rucy74/DAFA@c60ba8352d712c6108480a2ce7e7fa7abf30b48a"
BETA = 6.0
LAMBDA = 1.5
RATE = 0.1
BASES = ("trades", "pgd_at")


class Seen(nn.Module):
    """Keeps the images of the first pass in train mode: x_adv, which the loss does not return."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.x = model, None

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.x is None:
            self.x = x.detach().clone()
        return self.model(x)


def theirs(folder: Path) -> dict[str, Tensor]:
    found = {}
    args = Namespace(
        pgd_step_size=STEP, pgd_num_steps=STEPS, epsilon=EPS, beta=BETA, n_class=CLASSES
    )
    with authors(folder):
        import losses
        from utils import calculate_class_weights

        for base, loss_of in (("trades", losses.trades_loss), ("pgd_at", losses.madry_loss)):
            model, weights = tiny(), torch.ones(CLASSES)
            optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
            for epoch in range(2):
                memory = {"probs": np.zeros((3 * BATCH, CLASSES)), "labels": np.zeros(3 * BATCH)}
                for i in range(3):
                    x, y = batch(i)
                    seen, places = Seen(model).train(), np.arange(i * BATCH, (i + 1) * BATCH)
                    loss, _ = loss_of(seen, x, y, optimizer, args, weights, places, memory)
                    if epoch == 1 and i == 0:
                        found[f"{base}/x_adv"] = seen.x
                        found[f"{base}/loss"], found[f"{base}/gradient"] = (
                            loss,
                            gradient(model, loss),
                        )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                if epoch == 0:
                    weights = torch.from_numpy(calculate_class_weights(memory, LAMBDA))
            found |= {f"{base}/state/weight": weights, f"{base}/buffers": buffers(model)}
    return found


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    for base in BASES:
        model = tiny(dtype)
        attack = PGD(EPS, STEP, STEPS, start="gaussian", batch_norm="eval")
        dafa = DAFA(attack, base, LAMBDA, BETA, warmup=1, ties_lose=True, unweighted_step=True)
        dafa.prepare(Task(torch.ones(CLASSES)))
        dafa.take(torch.ones(CLASSES, dtype=dtype))  # eps in float32 is off by 1e-9
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for epoch in range(2):
            total = None
            for i in range(3):
                x, y = batch(i, dtype)
                with given_noise(dtype):
                    x_adv = dafa.craft(model, x, y, generator=torch.Generator())
                loss, stats = dafa.loss(model, x, x_adv, y)
                if epoch == 1 and i == 0:
                    found[f"{base}/x_adv"] = x_adv
                    found[f"{base}/loss"], found[f"{base}/gradient"] = (
                        loss.detach(),
                        gradient(model, loss),
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total = stats if total is None else total + stats
            dafa.epoch_end(total, None)
        found |= {f"{base}/state/weight": dafa.state["weight"], f"{base}/buffers": buffers(model)}
    return found
