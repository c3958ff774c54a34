"""Our attacks beside the textbook loop and every attack library that is installed, in four tables.

    python benchmarks/attacks.py --batch 128 --images 200 --out attacks.md

All sides attack the same images of the same network, labelled by its own predictions, at a radius
at which most survive, so that nobody wins by leaving early. The work done is counted, and the
verdict is ours, in float32. The sides take turns, and a ratio is the median over turns of the ratio
within a turn. attacks.md has recorded results; `python benchmarks/peers.py` lists the libraries.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from measuring import EPS, at_least_one, markdown, measured, parser, peak_memory
from peers import PEERS, Make, Measured, autoattack_sides, measure, pgd_sides, releases
from precision import NOTE as PRECISION_NOTE
from subjects import grey_subject, predicted, robust_acc, survivable, trained
from torch import Tensor, nn

from crat import data
from crat.attacks.gradient import PGD
from crat.attacks.judge import attacked_logits
from crat.config import MODELS, ModelConfig
from crat.device import describe, pick_device, pick_dtype
from crat.outcomes.precision import precision_table
from crat.store import write_text

TURNS = 7  # at most
NOTES = {
    "PGD": "L-inf; the networks have had a short plain training on the shipped Fashion-MNIST, "
    "padded, and their own answers are the labels. eps (in 255ths) is 8, halved until half "
    "survive; a step, a quarter of it. The rate is of steps asked for and executed; ratio: how "
    "many times as fast the first row is; peak: memory that one step adds.",
    "AutoAttack standard": "A small_cnn after three epochs of adversarial training on the shipped "
    "Fashion-MNIST, its own answers as labels; eps is 0.1, halved until 60 % survive PGD-20. "
    "ratio: seconds beside the first row's.",
    "How the time of PGD grows": "Ours, the same network, judging included: 128 images and 20 "
    "steps but for the number that grows.",
    "What bfloat16 changes": PRECISION_NOTE,
}


@dataclass(frozen=True)
class Effort:
    """How much is measured; the defaults are for tables to be believed."""

    seconds: float = 150.0  # turns of one model and batch; fewer steps where not one turn fits
    width: int | None = None  # of the networks
    updates: int = 20  # of a colour network, in plain training
    adversarial_updates: int = 165  # of the grey network: three epochs
    grow_steps: tuple[int, ...] = (5, 10, 20, 40)
    grow_batch: tuple[int, ...] = (32, 128, 512)
    grow_images: tuple[int, ...] = (250, 1000, 4000)
    precision: tuple[int, int] = (500, 100)  # images of the quick and of the slow attacks


# to see that it runs
QUICK = Effort(1.0, 4, 2, 2, (1, 2), (4, 8), (8, 16), (16, 8))


def pgd_rows(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    sides: Mapping[str, Make],
    seconds: float,
) -> list[dict[str, Any]]:
    """One row for each side: PGD on one batch; the ratio is how many times as fast the first is.

    The rate is of image-steps that were asked for and executed: a pass beyond them is not a step.
    """
    memory: dict[str, float] = {}
    guess = 0.0
    for name, make in sides.items():
        measure(make(model, x[:8], eps, 1), x[:8], y[:8])  # warm-up
        model.zero_grad(set_to_none=True)
        side = make(model, x, eps, 1)
        began = time.perf_counter()
        memory[name] = peak_memory(partial(measure, side, x, y), x.device)
        guess += time.perf_counter() - began
    steps = min(steps, max(1, int(seconds / guess)))
    ready = {name: make(model, x, eps, steps) for name, make in sides.items()}
    turns: list[dict[str, Measured]] = []
    began = time.perf_counter()
    while not turns or (len(turns) < TURNS and _fits(len(turns), began, seconds)):
        turns.append({name: measure(side, x, y) for name, side in ready.items()})
    asked = steps * len(x)
    rates = [{name: min(asked, m.passed) / m.seconds for name, m in turn.items()} for turn in turns]
    first = next(iter(sides))
    return [
        {
            "batch": len(x),
            "side": name,
            "eps": round(eps * 255, 3),
            "steps": steps,
            "turns": len(turns),
            "image-steps asked": asked,
            "images passed": done.passed,
            "image-steps/s": round(median(rate[name] for rate in rates), 1),
            "ratio": round(median(rate[first] / rate[name] for rate in rates), 2),
            "robust_acc": round(robust_acc(model, x, y, done.x_adv, eps), 4),
            "peak MiB": round(memory[name], 0),
        }
        for name, done in turns[-1].items()
    ]


def _fits(turns: int, began: float, seconds: float) -> bool:
    """Whether one more turn ends in time, if it takes as long as those before."""
    return (time.perf_counter() - began) * (1 + 1 / turns) < seconds


def pgd_table(
    names: Sequence[str],
    batches: Sequence[int],
    steps: int,
    present: Sequence[str],
    effort: Effort,
    device: torch.device,
) -> pd.DataFrame:
    """PGD in L-inf on 32 x 32 colour images (padded Fashion-MNIST), from 8/255; eps in 255ths."""
    whole = data.load("fashion_mnist_mini")
    images = nn.functional.pad(whole.x_train, (2, 2, 2, 2)).expand(-1, 3, -1, -1).to(device)
    labels = whole.y_train.to(device)
    x = images.float().div(255)
    sides = pgd_sides(pick_dtype("auto", device), present)
    rows = []
    for name in names:
        config = ModelConfig(name, effort.width)
        model = trained(config, images, labels, 0.0, effort.updates, batch=64)
        few = x[:64]
        eps = survivable(model, few, predicted(model, few), EPS, 0.5)
        for batch in batches:
            now = x[:batch].contiguous()
            own = predicted(model, now)
            cell = pgd_rows(model, now, own, eps, steps, sides, effort.seconds)
            rows += [{"model": name} | row for row in cell]
    return pd.DataFrame(rows)


def autoattack_table(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    sides: Mapping[str, Make],
    batch: int = 500,
) -> pd.DataFrame:
    """AutoAttack standard, once for each side; seconds include its set-up.

    The ratio is of these seconds to the first side's.
    """
    rows: list[dict[str, Any]] = []
    for name, make in sides.items():
        began = time.perf_counter()
        done = measure(make(model, x, eps, batch), x, y)
        seconds = time.perf_counter() - began
        row = {
            "side": name,
            "images": len(x),
            "eps": round(eps, 4),
            "seconds": seconds,
            "robust_acc": round(robust_acc(model, x, y, done.x_adv, eps), 4),
            "ratio": seconds / (rows[0]["seconds"] if rows else seconds),
            "images passed": done.passed,
        }
        rows.append(row)
    return pd.DataFrame(rows).round({"seconds": 1, "ratio": 2})


def pgd_seconds(
    model: nn.Module, x: Tensor, y: Tensor, attack: PGD, batch: int, images: int, dtype: str
) -> float:
    """Median seconds of three runs of PGD on so many images, repeated where x has fewer."""
    times_over = -(-images // len(x))
    many = x.repeat(times_over, 1, 1, 1)[:images]
    labels = y.repeat(times_over)[:images]
    times = []
    for _ in range(4):  # the first warms up
        began = time.perf_counter()
        logits = attacked_logits(model, many, labels, attack, batch_size=batch, dtype=dtype)
        logits[0, 0].item()
        times.append(time.perf_counter() - began)
    return median(times[1:])


def growth_table(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, effort: Effort, dtype: str
) -> pd.DataFrame:
    """Seconds of our PGD as steps, batch (both one call) or images (in batches of 128) grow.

    exponent: the slope of log seconds over log value; 1 is linear.
    """

    def seconds(steps: int = 20, batch: int = 128, images: int = 128) -> float:
        return pgd_seconds(model, x, y, PGD(eps, eps / 4, steps), batch, images, dtype)

    times = {
        "steps": {n: seconds(steps=n) for n in effort.grow_steps},
        "batch": {n: seconds(batch=n, images=n) for n in effort.grow_batch},
        "images": {n: seconds(images=n) for n in effort.grow_images},
    }
    rows = []
    for what, by_value in times.items():
        values = list(by_value)
        exponent = np.polyfit(np.log(values), np.log(list(by_value.values())), 1)[0]
        rows += [(what, n, round(s, 3), round(exponent, 2)) for n, s in by_value.items()]
    return pd.DataFrame(rows, columns=["grows", "value", "seconds", "exponent"])


def main(
    names: Sequence[str] = ("small_cnn", "resnet18"),
    batches: Sequence[int] = (128, 512),
    steps: int = 20,
    *,
    images: int = 1000,
    peers: Sequence[str] = tuple(PEERS),
    effort: Effort = Effort(),
    out: Path | None = None,
) -> None:
    """Prints the four tables as they are made, and writes them to `out` as markdown.

    images: of AutoAttack. Raises ConfigError on numbers below 1 and on unknown models and peers.
    """
    at_least_one(batch=min(batches), steps=steps, images=images)
    device = pick_device()
    dtype = pick_dtype("auto", device)
    present, absent = releases(peers)
    libraries = ", ".join(f"{name} {version}" for name, version in (present | absent).items())
    machine = f"{describe(device)}; torch {torch.__version__}"
    sections = [f"{machine}; {libraries}; our search in {dtype}"]
    print(sections[0], flush=True)

    def show(title: str, table: pd.DataFrame) -> None:
        print(f"\n{title}\n{NOTES[title]}\n{table.to_string(index=False)}", flush=True)
        sections.append(f"## {title}\n\n{NOTES[title]}\n\n{markdown(table)}")

    show("PGD", pgd_table(names, batches, steps, tuple(present), effort, device))
    model, x, y, eps = grey_subject(device, effort.width, effort.adversarial_updates)
    sides = autoattack_sides(dtype, tuple(present))
    show("AutoAttack standard", autoattack_table(model, x[:images], y[:images], eps, sides))
    show("How the time of PGD grows", growth_table(model, x, y, eps, effort, dtype))
    n, slow = effort.precision
    show("What bfloat16 changes", precision_table(model, x[:n], y[:n], eps, slow_images=slow))
    if out is not None:
        write_text(out, "# Our attacks beside other libraries\n\n" + "\n\n".join(sections) + "\n")


if __name__ == "__main__":
    command = parser(__doc__)
    command.add_argument(
        "--model", nargs="+", default=["small_cnn", "resnet18"], help=", ".join(MODELS)
    )
    command.add_argument("--batch", type=int, nargs="+", default=[128, 512], help="images of PGD")
    command.add_argument("--steps", type=int, default=20, help="steps of PGD")
    command.add_argument("--images", type=int, default=1000, help="images of AutoAttack")
    command.add_argument(
        "--quick", action="store_true", help="next to nothing, to see that everything runs"
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="write the tables as markdown")
    asked = command.parse_args()
    effort = QUICK if asked.quick else Effort()
    settings = {"images": asked.images, "effort": effort, "out": asked.out}
    measured(command, lambda: main(asked.model, asked.batch, asked.steps, **settings))
