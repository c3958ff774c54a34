"""`crat leaderboard`: the methods of notebook 06 by their published results; nothing is trained."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from crat.cli.tables import add_tables, show_methods
from crat.config import PROFILES
from crat.names import one_of


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.set_defaults(command=run)
    add = parser.add_argument
    add("--profile", default="laptop", help=f"{' | '.join(PROFILES)} (default laptop)")
    add_tables(parser, "the table")


def run(a: Namespace) -> None:
    """Prints the table, and writes what was asked for."""
    from crat.papers.leaderboard import BASELINE, attack_name, board

    profile = one_of("profile", a.profile, PROFILES)
    table, images = board(profile)
    attack = attack_name(profile)
    print(f"{images} under {attack}: percent, mean over seeds ± sd; a star marks the best")
    print(f"the intervals (95 %) are of the difference to {BASELINE}, the one to beat, in points\n")
    show_methods(a, table, f"{images} under {attack}", BASELINE)
