"""`crat methods`: the training methods, their settings and sources."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from crat.text import aligned


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.set_defaults(command=run)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="the tables paper / released code / crat of these"
    )
    parser.add_argument("--markdown", action="store_true", help="all tables, as in docs/methods.md")


def run(a: Namespace) -> None:
    """Prints the list of methods, or the tables of some."""
    from crat.defenses import method_named
    from crat.defenses import tables as methods

    for name in a.names:
        method_named(name)
    if a.names or a.markdown:
        print(methods.markdown(a.names), end="")
    else:
        header = ("method", "what it minimises", "options")
        print(aligned(header, methods.listing(), (20, 60, 60)))
