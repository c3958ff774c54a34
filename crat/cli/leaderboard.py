"""`crat leaderboard`: the methods of notebook 06 by their published results; nothing is trained."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from crat.cli.tables import add_tables, show_methods
from crat.config import PROFILES
from crat.names import one_of

if TYPE_CHECKING:
    import pandas as pd


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.set_defaults(command=run)
    add = parser.add_argument
    add("--profile", default="laptop", help=f"{' | '.join(PROFILES)} (default laptop)")
    add_tables(parser, "the table")


def run(a: Namespace) -> None:
    """Prints the table, and writes what was asked for."""
    from crat.papers.common import BASELINE
    from crat.papers.leaderboard import attack_name

    profile = one_of("profile", a.profile, PROFILES)
    table, images = board(profile)
    attack = attack_name(profile)
    print(f"{images} under {attack}: percent, mean over seeds ± sd; a star marks the best")
    print(f"the intervals (95 %) are of the difference to {BASELINE}, the one to beat, in points\n")
    show_methods(a, table, f"{images} under {attack}", BASELINE)


def board(profile: str) -> tuple[pd.DataFrame, str]:
    """The published methods, the best average first, and the images in words.

    Columns: those of `Evidence.against`, and those of
    `crat.papers.leaderboard.leaderboard` that it lacks, as fractions.
    Raises StoreError where no run of the profile is published.
    """
    from crat.papers.common import BASELINE
    from crat.papers.evidence import Evidence
    from crat.papers.leaderboard import leaderboard
    from crat.store import StoreError

    ranked = leaderboard(profile)
    if ranked.empty:
        raise StoreError(f"no run of the profile {profile} is published: crat runs lists those")
    evidence = Evidence.of("06", profile)
    every = evidence.planned(*ranked.method)
    keys = [key for key in every if evidence.run(key).published]
    attack, pgd = next(iter(evidence.battery.items()))
    test = evidence.judge({attack: pgd}, keys)
    table = test.against(BASELINE)
    further = ranked.drop(
        columns=[name for name in table.columns if name != "method"], errors="ignore"
    )
    table = ranked[["method"]].merge(table, on="method").merge(further, on="method")
    return table, f"{test.dataset}, {test.labels(BASELINE).size} test images"
