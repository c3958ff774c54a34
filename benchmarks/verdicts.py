"""Does the rule of verdicts keep its promise? A/A tests and planted differences, simulated.

    python benchmarks/verdicts.py [--draws 400] [--out benchmarks/verdicts.md]

Ten methods are trained on the same images with the same seeds, five with an average over updates
and five without. Their runs vary as the published runs of notebook 06 do. In an A/A test two
methods are the same, and a verdict that one is better is false. A planted difference is there, and
the rule should find it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from crat.analysis.claims import Claim, Verdict, claims_table, decide
from crat.analysis.comparisons import compare

K, PER_CLASS, METHODS = 10, 500, 5
CLASSES = np.r_[0.30, np.linspace(0.55, 0.95, K - 1)]  # robust accuracy of each class
# Standard deviations of a run's average and of its worst class, in fractions: three seeds of ten
# methods, averaged over updates or not.
STRATA = {"averaged": (0.0058, 0.0146), "not averaged": (0.0135, 0.0360)}
BLOCK = 0.005  # what a seed does to all methods alike
AGREE = 0.8  # how much two runs agree on an image, beside its class
DRAWS = 100  # bootstrap draws of a comparison
SMALLEST = {"average": 0.01, "worst": 0.02}
PAIRS = {
    "both averaged": ("averaged", "averaged"),
    "neither": ("not averaged", "not averaged"),
    "one of them": ("averaged", "not averaged"),
}


class World:
    """Images, and methods that are trained on them with the same seeds."""

    def __init__(self, rng: np.random.Generator, seeds: int, per_class: int = PER_CLASS) -> None:
        self.rng = rng
        self.y = np.repeat(np.arange(K), per_class)
        self.latent = rng.standard_normal(self.y.size)
        self.block = BLOCK * rng.standard_normal(seeds)

    def method(self, stratum: str, gain: NDArray | float = 0.0) -> NDArray:
        """The runs (S, N) of a method, right or wrong; gain: added to its class accuracies."""
        sd_average, sd_worst = STRATA[stratum]
        # an average over K classes has its own part, common to all classes, and a K-th of theirs
        own_class = np.sqrt((sd_worst**2 - sd_average**2) * K / (K - 1))
        common = np.sqrt(max(sd_average**2 - own_class**2 / K, 0))
        shape = (self.block.size, K)
        moved = self.block[:, None] + common * self.rng.standard_normal((self.block.size, 1))
        p = CLASSES + gain + moved + own_class * self.rng.standard_normal(shape)
        noise = self.rng.standard_normal((self.block.size, self.y.size))
        threshold = stats.norm.ppf(np.clip(p, 0.001, 0.999))[:, self.y]
        return np.sqrt(AGREE) * self.latent + np.sqrt(1 - AGREE) * noise < threshold


def verdict(
    world: World,
    a: str,
    b: str,
    functional: str,
    gain: NDArray | float = 0.0,
    role: str = "primary",
) -> Verdict:
    """The verdict on a method of stratum a, better by `gain`, against one of stratum b."""
    first, second = world.method(a, gain), world.method(b)
    like = {s: [world.method(s) for _ in range(METHODS - (2 if a == b else 1))] for s in (a, b)}
    found = compare(
        world.y,
        first,
        second,
        functional,
        like_a=like[a],
        like_b=None if a == b else like[b],
        draws=DRAWS,
    )
    return decide(Claim("simulated", "here", "A is better than B", functional, role=role), found)


def shares(
    draws: int, seeds: int, functional: str, pair: str, gain: NDArray | float = 0.0
) -> dict[str, float]:
    """The share of each verdict among simulated claims, before a correction for their number."""
    a, b = PAIRS[pair]
    worlds = (World(np.random.default_rng(draw), seeds) for draw in range(draws))
    said = [verdict(world, a, b, functional, gain).verdict for world in worlds]
    return {name: said.count(name) / draws for name in sorted(set(said))}


def false_families(draws: int, role: str, size: int = 20, per_class: int = 200) -> float:
    """The share of families of A/A claims in which any claim is decided, after the correction."""
    false = 0
    for draw in range(draws):
        world = World(np.random.default_rng(10_000 + draw), 3, per_class)
        pairs = list(PAIRS.values())
        asked = [
            verdict(world, *pairs[i % 3], ("average", "worst")[i % 2], role=role)
            for i in range(size)
        ]
        table = claims_table(asked)
        false += table.verdict.isin(["supported", "reversed"]).any()
    return false / draws


def worst_by(points: float) -> NDArray:
    """A gain of the weakest class alone, in points."""
    return np.r_[points / 100, np.zeros(K - 1)]


def row(cells: Sequence[object]) -> str:
    """A row of a markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def percent(value: float) -> str:
    """A fraction in percent."""
    return f"{100 * value:.1f}"


def aa_table(draws: int) -> list[str]:
    """A/A tests of each pair of strata: the share that is decided, and that is called no effect."""
    lines = [row(["pair", "seeds", "functional", "false", "no effect", "undecided"])]
    lines.append("|" + "---|" * 6)
    for pair in PAIRS:
        for seeds in (3, 8):
            for functional in SMALLEST:
                found = shares(draws, seeds, functional, pair)
                false = found.get("supported", 0) + found.get("reversed", 0)
                rest = (found.get(name, 0) for name in ("no effect", "undecided"))
                cells = [pair, seeds, functional, *map(percent, (false, *rest))]
                lines.append(row(cells))
    return lines


def power_table(draws: int) -> list[str]:
    """Planted differences: the share of simulated claims that is found, with its sign."""
    planted = [("worst", f"+{p}", worst_by(p)) for p in (3, 5, 10)]
    planted += [("average", f"+{p}", p / 100) for p in (1, 2, 3)]
    lines = [row(["functional", "points", "pair", "3 seeds", "5 seeds", "8 seeds"])]
    lines.append("|" + "---|" * 6)
    for functional, points, gain in planted:
        for pair in PAIRS:
            found = [
                shares(draws, seeds, functional, pair, gain).get("supported", 0)
                for seeds in (3, 5, 8)
            ]
            lines.append(row([functional, points, pair, *map(percent, found)]))
    return lines


def main() -> None:
    """Prints the tables, and writes them where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=400, help="simulated claims a row")
    parser.add_argument("--out", type=Path, help="a file for the tables")
    asked = parser.parse_args()
    families = max(asked.draws // 4, 20)
    lines = [
        "# Does the rule of verdicts keep its promise?",
        "",
        f"`python benchmarks/verdicts.py --draws {asked.draws}`: simulated, seeded, in percent.",
        "",
        "Two methods that are the same (aim: at most 6 % false):",
        "",
        *aa_table(asked.draws),
        "",
        f"Families of twenty such claims with any false verdict, of {families} (aim: at most 6 %):",
        f"{percent(false_families(families, 'primary'))} % by Holm's correction, "
        f"{percent(false_families(families, 'exploratory'))} % by Benjamini and Hochberg's.",
        "",
        "Planted differences that are found, before a correction for the number of claims:",
        "",
        *power_table(asked.draws),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if asked.out:
        asked.out.write_text(text)


if __name__ == "__main__":
    main()
