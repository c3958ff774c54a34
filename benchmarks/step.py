"""Our attack and training step against the textbook loop, in images and image-steps a second.

    python benchmarks/step.py --model small_cnn resnet18 --batch 128 --steps 10

The textbook is what a tutorial does: float32, contiguous memory, `loss.backward()` through the
parameters in every attack step. Both sides take the same steps on every image; nothing leaves the
batch. The sides take turns, and the ratio is the median over turns, so that a machine whose speed
drifts does not decide it. step.md has recorded results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import pandas as pd
import torch
from measuring import EPS, STEP_SIZE, at_least_one, measured, parser, seconds
from peers import textbook_pgd
from training import images, our_step, textbook_step

from crat.attacks.gradient import PGD
from crat.config import MODELS, ModelConfig
from crat.device import autocast, describe, pick_device, pick_dtype
from crat.nets import models

Work = Callable[[], object]


def attack_sides(name: str, batch: int, steps: int, device: torch.device) -> dict[str, Work]:
    """The PGD attack of the textbook and of crat, on equal weights and images."""
    x, y = images(batch, device)
    plain, ours = (models.build(ModelConfig(name), 10, seed=0).to(device).eval() for _ in range(2))
    ours = ours.to(memory_format=torch.channels_last)
    x_ours = x.contiguous(memory_format=torch.channels_last)
    dtype = pick_dtype("auto", device)
    attack = PGD(EPS, STEP_SIZE, steps)
    generator = torch.Generator(device).manual_seed(0)

    def textbook() -> None:
        textbook_pgd(plain, x, y, EPS, steps, generator)

    def crat() -> None:
        with autocast(device, dtype):
            attack(ours, x_ours, y, generator=generator)

    return {"textbook": textbook, "crat": crat}


def training_sides(name: str, batch: int, steps: int, device: torch.device) -> dict[str, Work]:
    """A step of adversarial training, as `attack_sides`."""
    return {
        "textbook": textbook_step(name, batch, steps, device),
        "crat": our_step("pgd_at", name, batch, steps, device),
    }


def compared(
    sides: Mapping[str, Work], amount: int, turns: int, device: torch.device
) -> list[float]:
    """Amount per second of the textbook and of crat, and the ratio of their seconds."""
    for side in sides.values():
        seconds(side, device)  # warm-up
    turn = [[seconds(side, device) for side in sides.values()] for _ in range(turns)]
    textbook, ours = (median(times) for times in zip(*turn, strict=True))
    ratio = median(t / o for t, o in turn)
    return [round(amount / textbook, 1), round(amount / ours, 1), round(ratio, 2)]


def run(names: Sequence[str], batch: int, steps: int, turns: int = 5) -> pd.DataFrame:
    """Columns model, work, unit, textbook, crat (per second) and ratio, on 32 x 32 colour images.

    The unit is image-steps (images x attack steps) for the attack and images for the training step.
    """
    at_least_one(batch=batch, steps=steps, turns=turns)
    device = pick_device()
    rows = []
    for name in names:
        attack = attack_sides(name, batch, steps, device)
        training = training_sides(name, batch, steps, device)
        rate = compared(attack, batch * steps, turns, device)
        rows.append([name, f"PGD-{steps} attack", "image-steps/s", *rate])
        rate = compared(training, batch, turns, device)
        rows.append([name, f"PGD-{steps} AT step", "images/s", *rate])
    return pd.DataFrame(rows, columns=["model", "work", "unit", "textbook", "crat", "ratio"])


def main(names: Sequence[str], batch: int, steps: int) -> None:
    """Prints the table below its machine and versions."""
    device = pick_device()
    dtype = pick_dtype("auto", device)
    print(f"{describe(device)}, torch {torch.__version__}, crat in {dtype}, batch {batch}")
    print(run(names, batch, steps).to_string(index=False))


if __name__ == "__main__":
    command = parser(__doc__)
    command.add_argument(
        "--model", nargs="+", default=["small_cnn", "resnet18"], help=", ".join(MODELS)
    )
    command.add_argument("--batch", type=int, default=128, help="images in the batch")
    command.add_argument("--steps", type=int, default=10, help="steps of PGD")
    asked = command.parse_args()
    measured(command, lambda: main(asked.model, asked.batch, asked.steps))
