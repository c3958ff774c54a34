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
    parser.add_argument(
        "--weights",
        action="store_true",
        help="the network of the best epoch, too; nothing else, where the run is published",
    )


def run(a: Namespace) -> None:
    """Publishes the run and prints its folder."""
    from crat.outcomes.publishing import publish, publish_weights
    from crat.training.named import find_run

    found = find_run(a.run)
    if a.compact or not a.weights or not found.published:
        target = publish(found, compact=a.compact)
    if a.weights:
        target = publish_weights(found)
    print(target)
