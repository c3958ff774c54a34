"""`crat site`: the report as pages."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from crat.config import PROFILES
from crat.text import shown


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.set_defaults(command=run)
    parser.add_argument("--profile", default="quick", help=" | ".join(PROFILES))


def run(a: Namespace) -> None:
    """Builds the pages and prints the path of the first."""
    from crat.batch import site

    print(shown(site.build(a.profile)))
