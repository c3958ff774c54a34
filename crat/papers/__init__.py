"""The papers: a file for each, with the runs it asks for and the claims it makes.

The claims are declared before any number of a run is known. A paper's module has a
`plan(profile, seed, selection) -> {key: RunConfig}` and, where it claims something, CLAIMS by key.
Two papers with the same settings share a run, as its name is their hash. A notebook asks `Evidence`
for its runs and their comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from crat.analysis.claims import Claim
from crat.papers import (
    all_methods,
    attacks,
    beyond,
    cfa,
    fast,
    label_augmentation,
    long_tail,
    spat,
    start_here,
    tian2021,
    universal,
)
from crat.papers.common import Runs

__all__ = [
    "LIVE",
    "PAPERS",
    "PLANS",
    "Runs",
    "all_claims",
    "all_methods",
    "common",
    "evidence",
    "leaderboard",
]

# number of the notebook -> its module
PAPERS: dict[str, ModuleType] = {
    "00": start_here,
    "01": tian2021,
    "02": attacks,
    "03": spat,
    "04": cfa,
    "05": label_augmentation,
    "06": all_methods,
    "07": universal,
    "08": long_tail,
    "09": beyond,
    "10": fast,
}

# number of the notebook -> (profile, seed, selection) -> its runs
PLANS: dict[str, Callable[..., Runs]] = {number: paper.plan for number, paper in PAPERS.items()}

# runs of a notebook whose networks are used themselves, so that published outcomes are not enough
LIVE: dict[str, tuple[str, ...]] = {
    number: paper.LIVE for number, paper in PAPERS.items() if hasattr(paper, "LIVE")
}


def all_claims() -> dict[str, Claim]:
    """All claims of the package, by "module: key"."""
    return {
        f"{paper.__name__.rpartition('.')[2]}: {key}": claim
        for paper in PAPERS.values()
        for key, claim in getattr(paper, "CLAIMS", {}).items()
    }
