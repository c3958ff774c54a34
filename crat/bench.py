"""Our attack and training step against the textbook loop, in one run: images and image-steps a second, and the ratio.

The textbook is what a tutorial does: float32, contiguous memory, `loss.backward()` through the parameters in every
attack step. Both sides take the same steps on every image; nothing leaves the batch. The sides take turns, and the
ratio is the median over turns, so that a machine whose speed drifts does not decide it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks import PGD
from crat.config import ConfigError, ModelConfig, number
from crat.defenses.pgd_at import PGDAT
from crat.device import autocast, describe, pick_device, pick_dtype
from crat.nets import models
from crat.peers import textbook_pgd

EPS, STEP = number("8/255"), number("2/255")


def _sides(name: str, batch: int, steps: int, device: torch.device) -> dict[str, dict[str, Callable[[], object]]]:
    """work -> {"textbook": ..., "crat": ...}: two callables on equal weights and images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, 32, 32, generator=generator).to(device)
    y = torch.randint(0, 10, (batch,), generator=generator).to(device)
    plain, ours = (models.build(ModelConfig(name), 10, seed=0).to(device) for _ in range(2))
    ours, x_ours = ours.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    dtype = pick_dtype("auto", device)
    attack = PGD(EPS, STEP, steps)
    defense = PGDAT(PGD(EPS, STEP, steps, batch_norm="train"))
    drawn = torch.Generator(device).manual_seed(0)
    optimizers = {id(m): torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (plain, ours)}

    def our_attack() -> None:
        with autocast(device, dtype):
            attack(ours.eval(), x_ours, y, generator=drawn)

    def update(model: nn.Module, loss: Tensor) -> None:
        optimizers[id(model)].zero_grad(set_to_none=True)
        loss.backward()
        optimizers[id(model)].step()

    def textbook_training() -> None:
        update(plain, F.cross_entropy(plain.train()(textbook_pgd(plain.train(), x, y, EPS, steps, drawn)), y))

    def our_training() -> None:
        ours.train()
        with autocast(device, dtype):
            loss, _ = defense.loss(ours, x_ours, defense.craft(ours, x_ours, y, generator=drawn), y)
        update(ours, loss)

    def textbook_attack() -> None:
        textbook_pgd(plain.eval(), x, y, EPS, steps, drawn)

    return {
        f"PGD-{steps} attack": {"textbook": textbook_attack, "crat": our_attack},
        f"PGD-{steps} AT step": {"textbook": textbook_training, "crat": our_training},
    }


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, until the device has done it."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def run(
    names: Sequence[str] = ("small_cnn", "resnet18"), batch: int = 128, steps: int = 10, turns: int = 5
) -> pd.DataFrame:
    """Columns model, work, unit, textbook, crat (per second) and ratio, on 32 x 32 colour images.

    The unit is image-steps (images x attack steps) for the attack and images for the training step.
    """
    if min(batch, steps, turns) < 1:
        raise ConfigError(f"batch and steps must be at least 1, not {batch} and {steps}")
    device = pick_device()
    rows = []
    for name in names:
        for work, sides in _sides(name, batch, steps, device).items():
            for side in sides.values():
                seconds(side, device)  # warm-up
            turn = [[seconds(side, device) for side in sides.values()] for _ in range(turns)]
            textbook, ours = (median(t) for t in zip(*turn, strict=True))
            done, unit = (batch * steps, "image-steps/s") if "attack" in work else (batch, "images/s")
            ratio = median(t / o for t, o in turn)
            rows.append((name, work, unit, round(done / textbook, 1), round(done / ours, 1), round(ratio, 2)))
    return pd.DataFrame(rows, columns=["model", "work", "unit", "textbook", "crat", "ratio"])


def main(names: Sequence[str], batch: int, steps: int) -> None:
    """Prints the table with its machine and versions."""
    device = pick_device()
    print(f"{describe(device)}, torch {torch.__version__}, crat in {pick_dtype('auto', device)}, batch {batch}")
    print(run(names, batch, steps).to_string(index=False))
