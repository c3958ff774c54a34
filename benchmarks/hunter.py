"""Where AutoAttack's passes go, and what a hunter before it, or a circle in PGD, saves.

    python benchmarks/hunter.py --images 100                  # a quarter of an hour of one core
    python benchmarks/hunter.py --tables verdicts circles

Published networks of Fashion-MNIST (their weights are in results/), searched and judged in
float32; passes are counted, so a busy machine changes nothing. hunter.md has recorded results.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from autoattack_estimate import Population, trial
from measuring import at_least_one, markdown, measured, parser
from torch import Tensor, nn

from crat import data
from crat.analysis.two_phase import Design
from crat.attacks import AutoAttack, CrossEntropy, Hunter, PerImage
from crat.attacks.frozen import frozen
from crat.attacks.gradient import ascend, ascend_until_circles
from crat.attacks.hunt import Hunt, Hunted, pursue
from crat.attacks.logits import finite_logits
from crat.attacks.threat import budget, uniform_start
from crat.outcomes import evaluate, margins, strong_battery, usual_battery
from crat.training import Run
from crat.training.named import find_run

RUNS = {
    "AT": "pgd_at-s0-53db9ebe064f4488",
    "label augmentation": "label_augmentation-s0-2a3771a36341f2aa",
    "SPAT": "spat-s0-fcd2368dba8d4e6e",
    "standard": "standard-s0-76ec7180bd226a6d",
}
JUDGED = ("AT", "label augmentation", "SPAT")  # AutoAttack on 1,000 images is published
EPS = 0.1  # of the networks' training and test
IMAGES = 10_000  # of the test set, for which the cost of a class-wise judgement is worked out
TABLES = ("battery", "verdicts", "cost", "circles")


class Counted(nn.Module):
    """A network that counts the images of its passes, forward and backward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits."""
        self.forwards += len(x)
        if x.requires_grad and torch.is_grad_enabled():
            self.backwards += len(x)
        return self.inner(x)


class Subject(NamedTuple):
    """A counted network, the first images of the test set and their labels."""

    run: Run
    model: Counted
    x: Tensor
    y: Tensor


def subject(name: str, images: int) -> Subject:
    """A published network by its name in RUNS."""
    run = find_run(RUNS[name])
    whole = data.load("fashion_mnist")
    model = Counted(run.model("best").eval())
    return Subject(run, model, whole.x_test[:images].float().div(255), whole.y_test[:images])


class Spent(NamedTuple):
    """A part of a battery: the images that it met and broke, and its passes."""

    part: str
    met: int
    broke: int
    forwards: int
    backwards: int


class Ended(NamedTuple):
    """The cost of each part, the images broken (N,), and the logits at the best points (N, K)."""

    parts: list[Spent]
    broken: Tensor
    logits: Tensor


def spent(it: Subject, attacks: dict[str, Hunted], eps: float) -> Ended:
    """A battery on the subject's images."""
    model, x, y = it.model, it.x, it.y
    noise = PerImage(0, torch.arange(len(x)))
    found = []
    with frozen(model):
        model.forwards = model.backwards = 0
        hunt = Hunt(model, x, y, every=1)
        found.append(Spent("clean", len(x), len(x) - len(hunt), model.forwards, 0))
        for name, attack in attacks.items():
            before = len(hunt)
            model.forwards = model.backwards = 0
            pursue(attack, model, hunt, x, y, budget(eps, x), noise.fork(name))
            found.append(Spent(name, before, before - len(hunt), model.forwards, model.backwards))
        return Ended(found, hunt.broken, finite_logits(model, hunt.x_adv))


class Cost(NamedTuple):
    """Passes forward and backward."""

    forwards: float
    backwards: float

    def times(self, images: float) -> Cost:
        """Of so many images."""
        return Cost(self.forwards * images, self.backwards * images)

    def plus(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(self.forwards + other.forwards, self.backwards + other.backwards)


def total(parts: list[Spent]) -> Cost:
    """The passes of all parts."""
    return Cost(sum(part.forwards for part in parts), sum(part.backwards for part in parts))


def of_a_survivor(name: str) -> Cost:
    """The whole battery's passes on an image that cannot break: its radius is next to nothing."""
    one = subject(name, 1)
    return total(spent(one, AutoAttack(1e-6).attacks(10), 1e-6).parts)


def battery_table(name: str, eps: float, images: int) -> pd.DataFrame:
    """The battery without and with a hunter: the passes of each part."""
    rows: list[dict[str, Any]] = []
    verdicts = []
    survivor = of_a_survivor(name)
    for hunter in (False, True):
        it = subject(name, images)
        parts, broken, _ = spent(it, AutoAttack(eps, hunter=hunter).attacks(10), eps)
        verdicts.append(broken)
        left = images - int(broken.sum())
        whole = total(parts)
        head = {"network": name, "eps": eps, "hunter": "yes" if hunter else "no"}
        rows += [head | part._asdict() for part in parts]
        share = sum(survivor.times(left)) / sum(whole)
        summary = {"part": f"all, {left} survive", "met": images, "broke": images - left}
        rows.append(head | summary | whole._asdict() | {"of survivors %": round(100 * share, 1)})
    assert (verdicts[1] | ~verdicts[0]).all(), "an image survived with a hunter only"
    return pd.DataFrame(rows)


class Verdicts(NamedTuple):
    """The hunter beside published outcomes: a row, and populations to draw from (without, with)."""

    row: dict[str, Any]
    populations: dict[str, Population]


def verdicts_of(name: str, images: int = 1000) -> Verdicts:
    """The hunter alone beside the published outcomes of PGD, CW and AutoAttack."""
    it = subject(name, images)
    attacks = usual_battery("fashion_mnist")
    usual = evaluate(it.run, attacks, first=images, tell=None)
    battery = {"AA": strong_battery("fashion_mnist")["AA"]}
    asked: dict[str, Any] = {"first": images, "dtype": "bfloat16", "tell": None}
    autoattack = evaluate(it.run, battery, **asked).robust("AA")
    first = np.logical_and.reduce([usual.robust(attack) for attack in attacks])
    of_attacks = [usual.margins[attack] for attack in attacks]
    (_, hunted), broken, logits = spent(it, {"hunter": Hunter(EPS)}, EPS)
    left = ~broken.numpy()
    row = {
        "network": name,
        "PGD-20 and CW-20 leave": int(first.sum()),
        "AutoAttack": int(autoattack.sum()),
        "hunter": int(left.sum()),
        "broken by AutoAttack only": int((left & ~autoattack).sum()),
        "by the hunter only": int((~left & autoattack).sum()),
        "of those that PGD and CW leave, AutoAttack breaks": int((first & ~autoattack).sum()),
        "and the hunter leaves of these": int((first & left & ~autoattack).sum()),
        "forwards an image": round(hunted.forwards / images, 1),
        "backwards an image": round(hunted.backwards / images, 1),
    }
    with_hunter = [*of_attacks, margins.of(logits.numpy(), usual.y)]
    populations = {
        "PGD, CW": Population(name, usual.y, first, np.min(of_attacks, axis=0), 1.0 - autoattack),
        "PGD, CW, hunter": Population(
            name, usual.y, first & left, np.min(with_hunter, axis=0), 1.0 - autoattack
        ),
    }
    return Verdicts(row, populations)


def sample_table(verdicts: list[Verdicts], draws: int) -> pd.DataFrame:
    """The intervals of AutoAttack on a sample, without and with a hunter in phase one."""
    kept = ("attacked", "lowest coverage", "mean", "width", "error")
    rows = []
    for of_network in verdicts:
        for phase_one, population in of_network.populations.items():
            for hard in (0.05, 0.0):
                row = trial(population, Design(hard=hard), draws)
                head = {"network": population.name, "phase one": phase_one, "hard": f"{hard:.0%}"}
                rows.append(head | {column: row[column] for column in kept})
    return pd.DataFrame(rows)


def cost_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The passes of judging IMAGES class by class, in millions, worked out from what was counted.

    What the battery spends on images that it breaks, some ten passes each, is left out.
    """
    survivor = of_a_survivor("AT")
    usual = Cost(2 * 20 + 2, 2 * 20)
    rows: list[dict[str, Any]] = []
    for row in verdicts.to_dict("records"):
        robust, left_by_usual = row["AutoAttack"] / 1000, row["PGD-20 and CW-20 leave"] / 1000
        hunter = Cost(row["forwards an image"], row["backwards an image"])
        everyone = usual.times(IMAGES)
        phase_one = everyone.plus(hunter.times(IMAGES))
        rest = IMAGES * left_by_usual
        ways = {
            "AutoAttack on all": survivor.times(IMAGES * robust),
            "sample after PGD and CW, 5 % and 5 %": everyone.plus(
                survivor.times(attacked(rest, Design()))
            ),
            "sample after the hunter too, 5 % and 5 %": phase_one.plus(
                survivor.times(attacked(rest, Design()))
            ),
            "sample after the hunter too, 0 % and 5 %": phase_one.plus(
                survivor.times(attacked(rest, Design(hard=0)))
            ),
        }
        first = sum(ways["AutoAttack on all"])
        for way, cost in ways.items():
            millions = {side: round(passes / 1e6, 2) for side, passes in cost._asdict().items()}
            ratio = round(first / sum(cost), 1)
            rows.append({"network": row["network"], "way": way} | millions | {"ratio": ratio})
    return pd.DataFrame(rows)


def attacked(survivors: float, design: Design) -> float:
    """How many of so many survivors a design attacks."""
    hard = design.hard * survivors
    return hard + design.random * (survivors - hard)


def circle_row(name: str, share: float, steps: int, images: int) -> dict[str, Any]:
    """PGD with and without the early stop: the same last iterates, and the passes saved."""
    it = subject(name, images)
    numbers = PerImage(0, torch.arange(images))
    start = uniform_start(it.x, EPS, "Linf", numbers)
    way = (it.x, start, it.y, EPS, share * EPS, steps)
    with frozen(it.model):
        whole = ascend(it.model, *way, "Linf", CrossEntropy())
        without = it.model.forwards
        early = ascend_until_circles(it.model, *way, CrossEntropy())
        saved = 2 - it.model.forwards / without
        right = [it.model(found).argmax(1) == it.y for found in (whole, early)]
    return {
        "network": name,
        "step / eps": share,
        "steps": steps,
        "passes saved %": round(100 * saved, 1),
        "images with the same last iterate": int((whole == early).flatten(1).all(1).sum()),
        "with the same verdict": int((right[0] == right[1]).sum()),
        "of": images,
    }


def main(images: int, tables: list[str], draws: int) -> None:
    """Prints the tables as they are made."""
    at_least_one(images=images, draws=draws)
    if "verdicts" in tables or "cost" in tables:
        verdicts = [verdicts_of(name) for name in JUDGED]
        rows = pd.DataFrame([each.row for each in verdicts])
        print(f"{markdown(rows)}\n", flush=True)
        if "cost" in tables:
            print(f"{markdown(cost_table(rows))}\n", flush=True)
            print(f"{markdown(sample_table(verdicts, draws))}\n", flush=True)
    if "circles" in tables:
        cells = [("AT", 0.25, 20), ("AT", 0.25, 40), ("AT", 0.25, 100), ("standard", 0.25, 100)]
        circles = pd.DataFrame([circle_row(*cell, images) for cell in cells])
        print(f"{markdown(circles)}\n", flush=True)
    if "battery" in tables:
        for name, eps in (("standard", EPS), ("AT", 2 * EPS), ("AT", EPS)):
            print(f"{markdown(battery_table(name, eps, images))}\n", flush=True)


if __name__ == "__main__":
    command = parser(__doc__)
    command.add_argument("--images", type=int, default=100, help="of the battery and the circles")
    command.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    command.add_argument("--draws", type=int, default=200, help="of a sample's images")
    asked = command.parse_args()
    measured(command, lambda: main(asked.images, asked.tables, asked.draws))
