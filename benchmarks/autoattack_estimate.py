"""How often the intervals of AutoAttack on a sample hold the truth (crat.analysis.two_phase).

    python benchmarks/autoattack_estimate.py --draws 1000

10,000 images are drawn with replacement, again and again, from populations whose truth is known:
the published runs with AutoAttack on 1,000 images, and runs in which AutoAttack breaks planted
shares of PGD's and CW's survivors, wherever their margins lie. autoattack_estimate.md has recorded
results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from measuring import at_least_one, markdown, measured, parser
from numpy.typing import NDArray

from crat import store
from crat.analysis import two_phase
from crat.analysis.two_phase import Counts, Design
from crat.outcomes.batteries import strong_battery, usual_battery
from crat.outcomes.evaluation import evaluate, judged
from crat.training.run import Run, card_config

IMAGES = 10_000
PLANTED = (0.01, 0.05, 0.20, 0.50)
ONE = 6  # the class of the planted runs in which alone gradients are hidden: Shirt
SHARES = ((0.02, 0.08), (0.08, 0.02), (0.0, 0.10))


class Population(NamedTuple):
    """Images of which more are drawn, (n,) each: labels, phase one, and AutoAttack's chances."""

    name: str
    y: NDArray
    survived: NDArray
    margin: NDArray
    broken: NDArray  # the probability that AutoAttack breaks this survivor

    @property
    def truth(self) -> NDArray:
        """The robust accuracy of each class, (K,)."""
        robust = self.survived * (1 - self.broken)
        return np.bincount(self.y, robust) / np.bincount(self.y)


def published() -> Iterator[Population]:
    """The published runs of Fashion-MNIST that have AutoAttack on the first 1,000 images."""
    usual = usual_battery("fashion_mnist")
    strong = {"AA": strong_battery("fashion_mnist")["AA"]}
    asked: dict[str, Any] = {"first": 1000, "dtype": "bfloat16"}
    for card in sorted(store.results_home().glob("fashion_mnist/*/card.json")):
        config = card_config(store.read_json(card), card.parent)
        run = Run(config, store.home() / card.parent.name, card.parent)
        if not judged(run, strong, **asked):
            continue
        found = evaluate(run, usual, first=1000, tell=None)
        margins = [found.margins[name] for name in usual]
        survived = np.logical_and.reduce([found.robust(name) for name in usual])
        withstood = evaluate(run, strong, tell=None, **asked).robust("AA")
        name = f"{config.train.defense}, seed {config.train.seed}"
        yield Population(name, found.y, survived, np.min(margins, axis=0), 1.0 - withstood)


def planted(run: Population) -> Iterator[Population]:
    """A run whose survivors AutoAttack breaks by chance: of all classes, and of one only."""
    for share in PLANTED:
        everywhere = np.full(len(run.y), share)
        yield run._replace(name=f"planted {share:.0%}", broken=everywhere)
        in_one = np.where(run.y == ONE, share, 0.0)
        yield run._replace(name=f"planted {share:.0%} of one class", broken=in_one)
        # the smallest margins, which are attacked anyway, say nothing of the others
        median = np.median(run.margin[run.survived])
        far = np.where(run.margin > median, share, 0.0)
        yield run._replace(name=f"planted {share:.0%} of the larger margins", broken=far)


class Draw(NamedTuple):
    """The estimates from one draw of images."""

    tally: Counts
    table: pd.DataFrame  # by class
    totals: dict[str, Any]
    these: NDArray  # the robust accuracy of the drawn images themselves, (K,)


def one_draw(population: Population, design: Design) -> Draw:
    """Draws images with replacement, attacks a sample of them and estimates; seeded as `design`."""
    rng = np.random.default_rng([design.seed, 1])
    places = rng.integers(0, len(population.y), IMAGES)
    y = population.y[places]
    survived = population.survived[places]
    margin = population.margin[places] + 1e-9 * rng.random(IMAGES)  # copies of an image differ
    withstood = rng.random(IMAGES) >= population.broken[places]
    sample = two_phase.choose(y, survived, margin, design)
    tally = two_phase.counts(y, survived, sample, withstood[sample.places])
    these = np.bincount(y, survived & withstood) / tally.n
    return Draw(tally, two_phase.class_estimates(tally), two_phase.totals(tally), these)


def within(value: NDArray | float, low: Any, high: Any) -> NDArray:
    """Whether a value lies in an interval, elementwise."""
    return (np.asarray(low) <= value) & (value <= np.asarray(high))


def trial(population: Population, design: Design, draws: int) -> dict[str, Any]:
    """A row of the table: coverage, widths and errors over many draws; all in percent."""
    truth = population.truth
    names = list(map(str, range(len(truth))))
    inside, inside_these, over_classes, errors, widths, named, attacked, accused = (
        [] for _ in range(8)
    )
    for seed in range(draws):
        draw = one_draw(population, replace(design, seed=seed))
        table = draw.table
        inside.append(within(truth, table.low, table.high))
        inside_these.append(within(draw.these, table.low, table.high))
        intervals = [draw.totals["average_interval"], draw.totals["worst_interval"]]
        values = (truth.mean(), truth.min())
        over_classes.append([within(v, *ends) for v, ends in zip(values, intervals, strict=True)])
        errors.append(table.robust_acc - truth)
        widths.append(table.high - table.low)
        named.append(table.se)
        attacked.append(table.attacked.sum())
        accused.append("hides" in two_phase.warning(draw.tally, "", names))
    coverage = 100 * np.mean(inside, axis=0)
    average, worst = 100 * np.mean(over_classes, axis=0)
    each = IMAGES / len(truth)
    binomial = np.sqrt(truth * (1 - truth) / each).mean()
    return {
        "population": population.name,
        "attacked": round(np.mean(attacked)),
        "lowest coverage": f"{coverage.min():.1f}",
        "mean": f"{coverage.mean():.1f}",
        "accused": f"{100 * np.mean(accused):.0f}",
        "of these images": f"{100 * np.mean(inside_these, axis=0).min():.1f}",
        "of the average": f"{average:.1f}",
        "of the worst": f"{worst:.1f}",
        "width": f"{100 * np.mean(widths):.1f}",
        "error": f"{100 * np.std(errors, axis=0).mean():.2f}",
        "se": f"{100 * np.mean(named):.2f}",
        "all 10,000": f"{100 * binomial:.2f}",
        "first 1,000": f"{100 * binomial * np.sqrt(10):.2f}",
    }


def main(draws: int) -> None:
    """Prints the table of populations, and that of other shares of the same sum."""
    at_least_one(draws=draws)
    runs = list(published())
    populations = [*runs, *planted(runs[1])]
    print(markdown(pd.DataFrame([trial(each, Design(), draws) for each in populations])))
    rows = []
    for hard, random in SHARES:
        for each in (runs[1], populations[-9]):
            row = trial(each, Design(hard, random), draws)
            rows.append({"hard, random": f"{hard:.0%}, {random:.0%}"} | row)
    print(f"\n{markdown(pd.DataFrame(rows))}")


if __name__ == "__main__":
    command = parser(__doc__)
    command.add_argument("--draws", type=int, default=100, help="of 10,000 images, a population")
    measured(command, lambda: main(command.parse_args().draws))
