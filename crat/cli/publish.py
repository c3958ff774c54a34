"""`crat publish`: a finished run's small files become part of results/."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.set_defaults(command=run)
    parser.add_argument("run", help="as for crat evaluate")
    parser.add_argument(
        "--compact",
        action="store_true",
        help="predictions and margins, not logits: an eighth of the size",
    )


def run(a: Namespace) -> None:
    """Publishes the run and prints its folder."""
    from crat.cli.runs import find_run
    from crat.outcomes.publishing import publish

    print(publish(find_run(a.run), compact=a.compact))
