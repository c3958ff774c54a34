"""Our attacks beside the textbook loop and every attack library that is installed, in five tables.

    python benchmarks/attacks.py --batch 128 --images 200 --out attacks.md

All sides attack the same images of the same network, labelled by its own predictions, at a radius
at which most survive, so that nobody wins by leaving early. The work done is counted, and the
verdict is ours, in float32. The sides take turns, and a ratio is the median over turns of the ratio
within a turn; beside it stands the ratio of the best turns, as medians suffer where others use the
machine. The rate of a matrix product is measured in every turn, too. attacks.md has recorded
results; `python benchmarks/peers.py` lists the libraries.
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
from attack_libraries import LIBRARIES
from measuring import EPS, at_least_one, markdown, measured, parser, peak_memory
from peers import PEERS, Make, Measured, autoattack_sides, measure, pgd_sides, releases
from precision import NOTE as PRECISION_NOTE
from subjects import grey_subject, predicted, robust_acc, survivable, trained
from torch import Tensor, nn
from training import Flops, matrix_rate

from crat import data
from crat.attacks.frozen import frozen
from crat.attacks.gradient import PGD
from crat.attacks.judge import attacked_logits
from crat.attacks.logits import forward_backward
from crat.attacks.objectives import CrossEntropy
from crat.config import MODELS, ModelConfig
from crat.device import describe, pick_device, pick_dtype
from crat.outcomes.precision import precision_table
from crat.store import write_text

TURNS = 7  # at most
NOTES = {
    "PGD": "L-inf; the networks have had a short plain training on the shipped Fashion-MNIST, "
    "padded, and their own answers are the labels. eps (in 255ths) is 8, halved until half "
    "survive; a step, a quarter of it. The rate, median over turns and best turn, is of steps "
    "asked for and executed (of crat as the README calls it the passes cannot be counted); ratio: "
    "how many times as fast the first row is. Of matrix rate: the operations that the gradient of "
    "an image takes, at the median rate, over the median rate of a square product of random "
    "numbers in the first row's precision, measured in the same turns. Peak: memory that one step "
    "adds. Channels last in a name: as somebody runs it who knows the hardware.",
    "AutoAttack standard": "A small_cnn after three epochs of adversarial training on the shipped "
    "Fashion-MNIST, its own answers as labels; eps is 0.1, halved until 60 % survive PGD-20. "
    "ratio: seconds beside the first row's.",
    "One attack at a time": "The same network and eps, 100 steps each. ratio: seconds beside "
    "crat's; robust_acc: FAB-T and FMN break an image where the nearest point found lies within "
    "eps. adv-lib has no Square, so no AutoAttack; only adv-lib has FMN.",
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
    single: int = 50  # images of one attack at a time


# to see that it runs
QUICK = Effort(1.0, 4, 2, 2, (1, 2), (4, 8), (8, 16), (16, 8), 4)


def pgd_rows(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    sides: Mapping[str, Make],
    seconds: float,
    dtype: str = "float32",
) -> list[dict[str, Any]]:
    """One row for each side: PGD on one batch; the ratio is how many times as fast the first is.

    The rate is of image-steps that were asked for and executed: a pass beyond them is not a step.
    dtype: of the matrix product whose rate is measured in each turn.
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
    matrix: list[float] = []
    began = time.perf_counter()
    while not turns or (len(turns) < TURNS and _fits(len(turns), began, seconds)):
        matrix.append(matrix_rate(x.device, dtype, turns=3))
        turns.append({name: measure(side, x, y) for name, side in ready.items()})
    asked = steps * len(x)
    rates = [{name: executed(asked, m) / m.seconds for name, m in t.items()} for t in turns]
    work = gradient_flops(model, x[:8], y[:8]) / 8
    first = next(iter(sides))
    best = {name: max(rate[name] for rate in rates) for name in sides}
    rows = []
    for name, done in turns[-1].items():
        rate = median(rate[name] for rate in rates)
        row = {
            "batch": len(x),
            "side": name,
            "eps": round(eps * 255, 3),
            "steps": steps,
            "turns": len(turns),
            "image-steps asked": asked,
            "images passed": "" if done.passed is None else done.passed,
            "image-steps/s": round(rate, 1),
            "best": round(best[name], 1),
            "ratio": round(median(rate[first] / rate[name] for rate in rates), 2),
            "ratio of best": round(best[first] / best[name], 2),
            "of matrix rate %": round(100 * rate * work / median(matrix) / 1e12, 1),
            "matrix TFLOP/s": round(median(matrix), 2),
            "robust_acc": round(robust_acc(model, x, y, done.x_adv, eps), 4),
            "peak MiB": round(memory[name], 0),
        }
        rows.append(row)
    return rows


def executed(asked: int, done: Measured) -> int:
    """Image-steps that were asked for and executed; where nobody counted, those asked for."""
    return asked if done.passed is None else min(asked, done.passed)


def gradient_flops(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Operations of matrix products and convolutions of one gradient by these images."""
    with frozen(model), Flops() as counter:
        forward_backward(model, x, y, CrossEntropy())
    return counter.total


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
    dtype = pick_dtype("auto", device)
    sides = pgd_sides(dtype, present)
    rows = []
    for name in names:
        config = ModelConfig(name, effort.width)
        model = trained(config, images, labels, 0.0, effort.updates, batch=64)
        few = x[:64]
        eps = survivable(model, few, predicted(model, few), EPS, 0.5)
        for batch in batches:
            now = x[:batch].contiguous()
            own = predicted(model, now)
            cell = pgd_rows(model, now, own, eps, steps, sides, effort.seconds, dtype)
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


# of the attacks that this table runs, those that a library has
SINGLE = {
    "crat": ("apgd-ce", "apgd-t", "fab-t"),
    "adv-lib": ("apgd-ce", "apgd-t", "fab-t", "fmn"),
    "pyautoattack": ("apgd-ce", "apgd-t", "fab-t"),
    "torchattacks": ("apgd-ce", "apgd-t", "fab-t"),
}


def single_table(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, present: Sequence[str], dtype: str
) -> pd.DataFrame:
    """One attack at a time, once for each library: ours searches in `dtype`, the others in float32.

    The ratio is of the seconds to ours.
    """
    rows: list[dict[str, Any]] = []
    for attack in dict.fromkeys(name for names in SINGLE.values() for name in names):
        ours = float("nan")
        for library in (name for name in SINGLE if attack in SINGLE[name]):
            if library != "crat" and library not in present:
                continue
            settings = {"dtype": dtype} if library == "crat" else {}
            began = time.perf_counter()
            x_adv = LIBRARIES[library](model, x, y, attack, "Linf", eps, 0, **settings).detach()
            x_adv.sum().item()  # a GPU has finished
            seconds = time.perf_counter() - began
            right = robust_acc(model, x, y, x_adv, eps)
            ours = seconds if library == "crat" else ours
            row = {"attack": attack, "library": library, "images": len(x), "seconds": seconds}
            rows.append(row | {"robust_acc": round(right, 4), "ratio": seconds / ours})
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
    """Prints the five tables as they are made, and writes them to `out` as markdown.

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
    some = effort.single
    single = single_table(model, x[:some], y[:some], eps, tuple(present), dtype)
    show("One attack at a time", single)
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
