"""`crat leaderboard`: the methods of notebook 06 by their published results; nothing is trained."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
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
    add("--data", default="", help="cifar10: the methods that are on it, too (default: its own)")
    add_tables(parser, "the table")


def run(a: Namespace) -> None:
    """Prints the table, and writes what was asked for."""
    from crat.papers.common import BASELINE
    from crat.papers.leaderboard import attack_name

    profile = one_of("profile", a.profile, PROFILES)
    table, images = board(profile, a.data)
    attack = attack_name(profile, a.data)
    print(f"{images} under {attack}: percent, mean over seeds ± sd; a star marks the best")
    print(f"the intervals (95 %) are of the difference to {BASELINE}, the one to beat, in points\n")
    show_methods(a, table, f"{images} under {attack}", BASELINE)


def board(profile: str, dataset: str = "") -> tuple[pd.DataFrame, str]:
    """The published methods, the best average first, and the images in words.

    Columns: those of `Evidence.against`, and those of
    `crat.papers.leaderboard.leaderboard` that it lacks, as fractions.
    dataset: as in `crat.papers.all_methods.board_runs`.
    Raises StoreError where none of these runs is published, ConfigError on another data set.
    """
    from crat.papers.all_methods import board_runs
    from crat.papers.common import BASELINE, evidence_profile
    from crat.papers.evidence import Evidence
    from crat.papers.leaderboard import leaderboard
    from crat.store import StoreError

    ranked = leaderboard(profile, dataset=dataset)
    if ranked.empty:
        raise StoreError(f"no run of the profile {profile} is published: crat runs lists those")
    runs = board_runs(evidence_profile(profile), dataset)
    evidence = replace(Evidence.of("06", profile), asked=runs)
    keys = [key for key in evidence.planned(*ranked.method) if evidence.run(key).published]
    attack, pgd = next(iter(evidence.battery.items()))
    test = evidence.judge({attack: pgd}, keys)
    table = test.against(BASELINE)
    further = ranked.drop(
        columns=[name for name in table.columns if name != "method"], errors="ignore"
    )
    table = ranked[["method"]].merge(table, on="method").merge(further, on="method")
    return table, f"{test.dataset}, {test.labels(BASELINE).size} test images"
