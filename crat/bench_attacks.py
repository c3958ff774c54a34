"""Our attacks beside the textbook loop and every library that is installed, as tables made in one
run.

All sides attack the same images of the same network, labelled by its own predictions, at a radius
at which most survive, so that nobody wins by leaving early. What was executed is counted, and the
verdict is ours, in float32. The sides take turns, and a ratio is the median over turns of the ratio
within a turn.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from crat import data, models
from crat.attacks import PGD, frozen
from crat.attacks.judge import as_images, attacked_logits
from crat.attacks.logits import finite_logits
from crat.attacks.threat import size
from crat.config import ConfigError, ModelConfig, number
from crat.defenses.pgd_at import PGDAT
from crat.device import autocast, describe, pick_device, pick_dtype
from crat.outcomes.precision import precision_table
from crat.peers import (
    PEERS,
    Make,
    Measured,
    autoattack_sides,
    measure,
    our_pgd,
    peak_memory,
    pgd_sides,
    releases,
)
from crat.store import write_text

COLOUR_EPS, GREY_EPS = number("8/255"), 0.1  # where the search for a radius begins
TURNS = 7  # at most
SLACK = 1e-6  # of ball and box, for the rounding of other libraries
NOTES = {
    "PGD": "L-inf; the networks have had a short plain training on the shipped Fashion-MNIST, padded, and their own "
    "answers are the labels. eps (in 255ths) is 8, halved until half survive; a step, a quarter of "
    "it. The rate is of "
    "steps asked for and executed; ratio: how many times as fast the first row is; peak: what one "
    "step adds.",
    "AutoAttack standard": "A small_cnn after three epochs of adversarial training on the shipped Fashion-MNIST, its "
    "own answers as labels; eps is 0.1, halved until 60 % survive PGD-20. ratio: seconds beside "
    "the first row's.",
    "How the time of PGD grows": "Ours, the same network, judging included: 128 images and 20 steps, or what is told.",
    "What bfloat16 changes": "The same network. differ: the share of images on which a bfloat16 and a float32 search "
    "disagree; seed: on which two float32 searches with other random numbers do.",
}


@dataclass(frozen=True)
class Effort:
    """How much is measured; the defaults are for tables to be believed."""

    # for the turns of one model and batch; steps are cut where not even one turn fits
    seconds: float = 150.0
    width: int | None = None  # of the networks
    updates: int = 20  # of a colour network, in plain training
    adversarial_updates: int = 165  # of the grey network: three epochs
    # steps, batch, images
    growth: tuple[tuple[int, ...], ...] = ((5, 10, 20, 40), (32, 128, 512), (250, 1000, 4000))
    precision: tuple[int, int] = (500, 100)  # images of the other and of the slow attacks


QUICK = Effort(1.0, 4, 2, 2, ((1, 2), (4, 8), (8, 16)), (16, 8))  # to see that it runs


def trained(
    config: ModelConfig, x: Tensor, y: Tensor, eps: float, updates: int, batch: int = 128
) -> nn.Module:
    """A network after a short training, by PGD-5 of radius eps (0: plain), with SGD at a one-cycle
    rate.

    Random weights would do for the speed, but their decisions, and so what bfloat16 changes, are
    nothing like a user's. x (N, C, H, W) uint8, y (N,), on the device to train on.
    """
    model = models.build(config, int(y.max()) + 1, x.shape[1:], seed=0).to(x.device)
    defense, dtype = PGDAT(PGD(eps, eps / 4, 5 if eps else 0)), pick_dtype("auto", x.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=updates)
    generator = torch.Generator(x.device).manual_seed(0)
    epochs = repeat(data.Batches(x, y, batch, generator))
    for images, labels in islice(chain.from_iterable(epochs), updates):
        with autocast(x.device, dtype):
            x_adv = defense.craft(model, images, labels, generator=generator)
            loss, _ = defense.loss(model.train(), images, x_adv, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """The model's answers in float32, (N,)."""
    with frozen(model):
        return torch.cat([finite_logits(model, part) for part in as_images(x).split(500)]).argmax(1)


def robust_acc(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, eps: float) -> float:
    """Share of images that stay right in float32, or whose adversarial image lies outside ball
    or box.
    """
    outside = size(x_adv - x, "Linf") > eps + SLACK
    outside |= (x_adv.flatten(1).amin(1) < -SLACK) | (x_adv.flatten(1).amax(1) > 1 + SLACK)
    return ((predicted(model, x_adv) == y) | outside).double().mean().item()


def survivable(model: nn.Module, x: Tensor, y: Tensor, eps: float, share: float) -> float:
    """eps, halved until PGD-20 leaves at least this share of the images right."""
    while robust_acc(model, x, y, our_pgd("float32")(model, x, eps, 20).craft(x, y), eps) < share:
        eps /= 2
    return eps


def pgd_rows(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    sides: Mapping[str, Make],
    seconds: float,
) -> list[dict]:
    """A row a side: PGD on one batch; the ratio is how many times as fast the first side is.

    The rate is of image-steps that were asked for and executed: a pass beyond them is not a step.
    """
    memory, guess = {}, 0.0
    for name, make in sides.items():
        measure(make(model, x[:8], eps, 1), x[:8], y[:8])  # warm-up
        model.zero_grad(set_to_none=True)
        side, began = make(model, x, eps, 1), time.perf_counter()
        memory[name] = peak_memory(partial(measure, side, x, y), x.device)
        guess += time.perf_counter() - began
    steps = min(steps, max(1, int(seconds / guess)))
    ready = {name: make(model, x, eps, steps) for name, make in sides.items()}
    turns: list[dict[str, Measured]] = []
    began = time.perf_counter()
    while not turns or (
        len(turns) < TURNS and (time.perf_counter() - began) * (1 + 1 / len(turns)) < seconds
    ):
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


def pgd_table(
    names: Sequence[str],
    batches: Sequence[int],
    steps: int,
    present: Sequence[str],
    effort: Effort,
    device: torch.device,
) -> pd.DataFrame:
    """PGD in L-inf on 32 x 32 colour images (Fashion-MNIST, padded), from 8/255 downwards; eps
    in 255ths.
    """
    whole, rows = data.load("fashion_mnist_mini"), []
    images = nn.functional.pad(whole.x_train, (2, 2, 2, 2)).expand(-1, 3, -1, -1).to(device)
    for name in names:
        config = ModelConfig(name, effort.width)
        model = trained(config, images, whole.y_train.to(device), 0.0, effort.updates, batch=64)
        x = images.float().div(255)
        few = x[:64]
        eps = survivable(model, few, predicted(model, few), COLOUR_EPS, 0.5)
        for batch in batches:
            sides = pgd_sides(pick_dtype("auto", device), present)
            now = x[:batch].contiguous()
            cell = pgd_rows(model, now, predicted(model, now), eps, steps, sides, effort.seconds)
            rows += [{"model": name} | row for row in cell]
    return pd.DataFrame(rows)


def autoattack_table(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, sides: Mapping[str, Make], batch: int = 500
) -> pd.DataFrame:
    """AutoAttack standard, once a side; seconds include its set-up, the ratio is theirs to the
    first side's.
    """
    rows: list[dict] = []
    for name, make in sides.items():
        began = time.perf_counter()
        done = measure(make(model, x, eps, batch), x, y)
        seconds = time.perf_counter() - began
        acc = round(robust_acc(model, x, y, done.x_adv, eps), 4)
        rows.append(
            {
                "side": name,
                "images": len(x),
                "eps": round(eps, 4),
                "seconds": seconds,
                "robust_acc": acc,
            }
        )
        rows[-1] |= {"ratio": seconds / rows[0]["seconds"], "images passed": done.passed}
    return pd.DataFrame(rows).round({"seconds": 1, "ratio": 2})


def growth_table(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, growth: Sequence[Sequence[int]], dtype: str
) -> pd.DataFrame:
    """Seconds of our PGD as one of steps, batch (both one call) and images (in batches of 128)
    grows.

    seconds: median of three; exponent: the slope of log seconds over log value; 1 is linear.
    """

    def seconds(steps: int, batch: int, images: int) -> float:
        many = (
            x.repeat(-(-images // len(x)), 1, 1, 1)[:images],
            y.repeat(-(-images // len(x)))[:images],
        )
        attack = PGD(eps, eps / 4, steps)
        times = []
        for _ in range(4):  # the first warms up
            began = time.perf_counter()
            attacked_logits(model, *many, attack, batch_size=batch, dtype=dtype)[0, 0].item()
            times.append(time.perf_counter() - began)
        return median(times[1:])

    rows = []
    by_steps, by_batch, by_images = growth
    for what, values, measured in (
        ("steps", by_steps, [seconds(n, 128, 128) for n in by_steps]),
        ("batch", by_batch, [seconds(20, n, n) for n in by_batch]),
        ("images", by_images, [seconds(20, 128, n) for n in by_images]),
    ):
        exponent = np.polyfit(np.log(values), np.log(measured), 1)[0]
        rows += [
            (what, n, round(s, 3), round(exponent, 2))
            for n, s in zip(values, measured, strict=True)
        ]
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
    if min(*batches, steps, images) < 1:
        raise ConfigError(
            f"batch, steps and images are at least 1, not {list(batches)}, {steps} and {images}"
        )
    device = pick_device()
    dtype, (present, absent) = pick_dtype("auto", device), releases(peers)
    libraries = ", ".join(f"{name} {told}" for name, told in (present | absent).items())
    head = f"{describe(device)}; torch {torch.__version__}; {libraries}; our search in {dtype}"
    print(head, flush=True)
    sections = [head]

    def tell(title: str, table: pd.DataFrame) -> None:
        print(f"\n{title}\n{NOTES[title]}\n{table.to_string(index=False)}", flush=True)
        sections.append(f"## {title}\n\n{NOTES[title]}\n\n{markdown(table)}")

    tell("PGD", pgd_table(names, batches, steps, tuple(present), effort, device))
    whole = data.load("fashion_mnist_mini").to(device)
    config = ModelConfig("small_cnn", effort.width)
    model = trained(config, whole.x_train, whole.y_train, GREY_EPS, effort.adversarial_updates)
    x = whole.x_test.float().div(255)
    y = predicted(model, x)
    eps = survivable(model, x[:200], y[:200], GREY_EPS, 0.6)
    sides = autoattack_sides(dtype, tuple(present))
    tell("AutoAttack standard", autoattack_table(model, x[:images], y[:images], eps, sides))
    tell("How the time of PGD grows", growth_table(model, x, y, eps, effort.growth, dtype))
    n, slow = effort.precision
    tell("What bfloat16 changes", precision_table(model, x[:n], y[:n], eps, slow_images=slow))
    if out is not None:
        write_text(out, "# Our attacks beside other libraries\n\n" + "\n\n".join(sections) + "\n")


def markdown(table: pd.DataFrame) -> str:
    """A table for a README."""
    rows = [
        list(table.columns),
        ["---"] * table.shape[1],
        *table.astype(object).to_numpy().tolist(),
    ]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
