"""FRL against hannxu123/fair_robust: attack, loss, evaluation and update.

Reweight only, and with remargin.

Each epoch of the code evaluates, moves the multipliers and then trains; ours moves them at the end
of the epoch before.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from harness import (
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
    uniform_noise,
)
from torch import Tensor

from crat.attacks import PGD
from crat.defenses import ClassStats, Task
from crat.defenses.frl import FRL as Ours

CODE = "hannxu123/fair_robust@a80547def881cb4ca99b50e7544f997f9a0210a7"
BETA = 1.5
BOUND = 0.03
RATE_1 = 0.4
RATE_2 = 0.6
LIMIT = 0.5
# a small rate, and batches in which no sign flips in float32
RATE = 0.01
BATCHES = 1
FIRST = 180
FILES = {"reweight": "utils_frl", "remargin": "utils_frl2"}


class Loader(list):
    dataset = range(2 * CLASSES)


def validation(dtype: torch.dtype = torch.float64) -> Loader:
    """Two batches of one image a class: the code divides by zero where a class is missing."""
    return Loader((batch(FIRST + i, dtype, CLASSES)[0], torch.arange(CLASSES)) for i in (7, 8))


_zeros = torch.zeros


def _on_cpu(*shape, device=None, **settings) -> Tensor:
    return _zeros(*shape, **settings)


def _noise(low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    return (low + (high - low) * uniform_noise()[: shape[0]]).numpy()


def theirs(folder: Path) -> dict[str, Tensor]:
    found = {}
    settings = {"epsilon": EPS, "num_steps": STEPS, "step_size": STEP, "clip_max": 1, "clip_min": 0}
    bound = BOUND * torch.ones(CLASSES, dtype=torch.float64)
    for case, file in FILES.items():
        patches = (
            mock.patch.object(torch, "zeros", _on_cpu),
            mock.patch.object(np.random, "uniform", _noise),
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
            mock.patch.object(torch, "float", torch.float64),
        )
        with authors(folder), patches[0], patches[1], patches[2], patches[3]:
            code = importlib.import_module(file)
            model, multipliers = tiny(), torch.zeros(3 * CLASSES)
            optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
            for epoch in range(2):
                x, y = batch(FIRST)
                training = [batch(FIRST + i) for i in range(BATCHES)]
                where = (model, training, validation(), optimizer, epoch, settings, settings, "cpu")
                rule = (bound, bound, RATE_1, RATE_2, multipliers, BETA, LIMIT)
                multipliers = code.frl_train(*where, *rule)
            u, v, widths = code.cost_sensitive(*multipliers.split(CLASSES))
            found |= {f"{case}/buffers": buffers(model), f"{case}/state/clean_weight": u}
            found |= {f"{case}/state/boundary_weight": v, f"{case}/state/eps": EPS * widths}
            found[f"{case}/x_adv"] = code.trades_adv(model, x, widths[y], **settings)
            found |= one_step(code, model, (u, v, widths), settings, case)
    return found


def one_step(code, model, weights, settings, case: str) -> dict[str, Tensor]:
    """Loss and gradient of one more batch: what its train_model gives to backward."""
    seen = []
    backward = torch.Tensor.backward
    kept = mock.patch.object(
        torch.Tensor,
        "backward",
        lambda loss: (seen.append((loss.detach(), gradient(model, loss))), backward(loss))[1],
    )
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    with kept:
        code.train_model(model, [batch(FIRST)], still, *weights, 3, BETA, settings, "cpu")
    return {f"{case}/loss": seen[-1][0], f"{case}/gradient": seen[-1][1]}


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    for case in FILES:
        model = tiny(dtype)
        attack = PGD(EPS, STEP, STEPS, start=Ours.start, batch_norm=Ours.batch_norm)
        frl = Ours(
            attack,
            case == "remargin",
            BETA,
            BOUND,
            RATE_1,
            RATE_2,
            LIMIT,
            warmup=1,
            released_passes=True,
        )
        frl.prepare(Task(torch.ones(CLASSES)))
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for _ in range(2):
            frl.epoch_end(None, evaluated(model, dtype))  # type: ignore[arg-type]
            for i in range(BATCHES):
                loss = step(frl, model, *batch(FIRST + i, dtype), dtype)[1]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        weights = ("clean_weight", "boundary_weight", "eps")
        state = {"eps": torch.full((CLASSES,), EPS, dtype=dtype)} | frl.state
        found |= {f"{case}/state/{name}": state[name] for name in weights} | {
            f"{case}/buffers": buffers(model)
        }
        x_adv, loss = step(frl, model, *batch(FIRST, dtype), dtype)
        found |= {
            f"{case}/x_adv": x_adv,
            f"{case}/loss": loss.detach(),
            f"{case}/gradient": gradient(model, loss),
        }
    return found


def step(frl: Ours, model, x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    model.train()
    with given_noise(dtype):
        x_adv = frl.craft(model, x, y, generator=torch.Generator())
    return x_adv, frl.loss(model, x, x_adv, y)[0]


def evaluated(model, dtype: torch.dtype) -> ClassStats:
    """Validation as the code counts it: right under attack, whatever the clean image gives."""
    total = None
    model.eval()
    for x, y in validation(dtype):
        with given_noise(dtype):
            x_adv = PGD(EPS, STEP, STEPS)(model, x, y, generator=torch.Generator())
        with torch.no_grad():
            clean, logits = model(x), model(x_adv)
        stats = ClassStats.of(y, F.cross_entropy(logits, y, reduction="none"), logits, clean)
        total = stats if total is None else total + stats
    assert total is not None
    return total
