"""Free AT against locuslab/fast_adversarial: two replays of CIFAR10/train_free.py, as `fgsm_rs`.

The authors' own code is TensorFlow 1, which no longer runs here; this is Wong et al.'s version. It
cuts the perturbation to the box of the images it was made on only, so the images here keep eps
from 0 and 1.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from harness import AMP, BATCH, CLASSES, EPS, STEP, STEPS, authors, batch, buffers, statements, tiny
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.free_at import FreeAT

CODE = "locuslab/fast_adversarial@54f728755e71857b632882ba6d6cef22f56e2172"
RATE = 0.01  # small, so that float32 flips few signs
REPLAYS = 3


def inner(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images in [0.1, 0.9] and their labels."""
    x, y = batch(0, dtype)
    return 0.1 + 0.8 * x, y


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def theirs(folder: Path) -> dict[str, Tensor]:
    model, (x, y) = tiny(), inner()
    replays = statements(folder / "CIFAR10" / "train_free.py", "for _ in range", "for _ in range")
    of_channel = torch.ones(3, 1, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    names = {
        "torch": torch,
        "amp": AMP,
        "args": SimpleNamespace(minibatch_replays=REPLAYS),
        "model": model,
        "criterion": nn.CrossEntropyLoss(),
        "opt": optimizer,
        "scheduler": SimpleNamespace(step=lambda: None),
        "X": x,
        "y": y,
        "delta": torch.zeros_like(x).requires_grad_(),
        "epsilon": EPS * of_channel,
        "lower_limit": 0 * of_channel,
        "upper_limit": of_channel,
    }
    with authors(folder / "CIFAR10", apex={"amp": None}, **{"apex.amp": None}):
        from utils import clamp

        exec(replays, names | {"clamp": clamp}, found := dict(names))
    return {
        "state/delta": found["delta"].detach(),
        "loss": found["loss"].detach(),
        "gradient": torch.cat([p.grad.flatten() for p in model.parameters()]).clone(),
        "weights": weights(model),
        "buffers": buffers(model),
    }


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    model, (x, y) = tiny(dtype), inner(dtype)
    method = FreeAT(PGD(EPS, STEP, STEPS), replays=REPLAYS)
    method.prepare(Task(torch.ones(CLASSES), (3, 32, 32), batch_size=BATCH))
    method.state["delta"] = method.state["delta"].to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(method.updates_a_batch):
        loss, _ = method.loss(model, x, method.craft(model, x, y), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(model, x, y)
    return {
        "state/delta": method.state["delta"],
        "loss": loss.detach(),
        "gradient": torch.cat([p.grad.flatten() for p in model.parameters()]).clone(),
        "weights": weights(model),
        "buffers": buffers(model),
    }
