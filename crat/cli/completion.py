"""`crat completion`: a script by which a shell completes crat's commands, flags and names."""

from __future__ import annotations

import argparse
import importlib
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from crat.extras import needs

SHELLS = ("bash", "zsh", "fish", "powershell", "tcsh")
RUNS = ("run", "runs", "base", "start_from", "teacher", "subject")  # arguments that name a run


def add_to(parser: ArgumentParser) -> None:
    """Adds the argument of the command."""
    parser.set_defaults(command=run)
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" | ".join(SHELLS))


def run(a: Namespace) -> None:
    """Prints the script of a shell; the names of runs in it are those of now."""
    needs("crat completion", "shtab")
    import shtab

    print(shtab.complete(whole_parser(), a.shell))


def whole_parser() -> ArgumentParser:
    """The parser with the flags of every command, and the names that each of them takes.

    It is only for completion: as choices the names would forbid a file or another spelling.
    """
    import shtab

    from crat import cli

    parser = cli.parser()
    known = _known()
    for name, command in _commands(parser):
        importlib.import_module(f"crat.cli.{name}").add_to(command)
        for action in _actions(command):
            if action.dest in known:
                action.choices = known[action.dest]
            elif action.metavar == "FILE":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar == "FOLDER":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return parser


def _commands(parser: ArgumentParser) -> Iterator[tuple[str, ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _actions(parser: ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a command and of its own commands."""
    yield from parser._actions
    for _, part in _commands(parser):
        yield from part._actions


def _known() -> dict[str, list[str]]:
    """Argument -> the names that it takes."""
    from crat import config
    from crat.audit import Plan
    from crat.cli.flags import KNOWN
    from crat.cli.recipes import RECIPES
    from crat.data.registry import DATASETS
    from crat.defenses import DEFENSES
    from crat.store import Store
    from crat.training.named import run_folders

    runs = sorted({folder.name for folder in run_folders(Store.usual())})
    known = {name: list(names) for name, names in KNOWN.items() if name not in RUNS}
    return known | {
        "attacks": list(Plan(data="cifar10").known),
        "data": list(DATASETS),
        "defense": list(DEFENSES),
        "name": list(DATASETS),  # of crat data fetch
        "names": list(DEFENSES),  # of crat methods
        "profile": list(config.PROFILES),
        "recipe": list(RECIPES),
        **dict.fromkeys(RUNS, runs),
    }
