"""The parser: argparse with errors of one line that name the nearest command or flag."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from crat.names import ConfigError, did_you_mean


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and name the nearest command or flag."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> Any:
        """Raises ConfigError instead of printing the usage."""
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            message += did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        raise ConfigError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses, and refuses an unknown flag with the nearest flags of this command."""
        namespace, stray = super().parse_known_args(args, namespace)
        if stray:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            near = ""
            if stray[0].startswith("-"):
                near = did_you_mean(stray[0].partition("=")[0], flags)
            self.error(f"unrecognized arguments: {' '.join(stray)}{near}")
        return namespace, stray


class Command(Parser):
    """The parser of `crat NAME`, to which `crat.cli.NAME` adds the flags at the command's use."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Imports the command's module, lets it add its flags, and parses."""
        if self.get_default("command") is None:
            name = self.prog.rpartition(" ")[2]
            importlib.import_module(f"crat.cli.{name}").add_to(self)
        return super().parse_known_args(args, namespace)


def commands(
    parser: argparse.ArgumentParser,
    names: str,
    parser_class: type[Parser] = Parser,
    **settings: Any,
) -> Any:
    """A function that adds commands to a parser, which alone prints its help."""

    def help(_: Namespace) -> int:
        parser.print_help()
        return 2

    parser.set_defaults(command=help)
    return parser.add_subparsers(metavar=names, parser_class=parser_class, **settings).add_parser


def count(text: str) -> int:
    """A whole number that is not negative, from a text."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number from 0 on, not {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number that is at least 1, from a text."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a number from 1 on, not {text!r}")
    return int(text)


def new_file(text: str) -> Path:
    """The path of a file that a command is to write; its folder is made when it is written.

    What cannot be written is refused before a command works for hours.
    """
    path = Path(text).expanduser()
    if not text or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder: name a file")
    _refuse_unwritable(path.parent, text)
    return path


def new_folder(text: str) -> Path:
    """The path of a folder, there or not, that a command is to write into; as `new_file`."""
    path = Path(text).expanduser()
    _refuse_unwritable(path, text)
    return path


def _refuse_unwritable(folder: Path, text: str) -> None:
    """Raises ArgumentTypeError where a folder, or the nearest above it, cannot be written into."""
    folder = folder.absolute()
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {nearest} is a file, no folder")
    if not os.access(nearest, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {nearest} is not yours to write")
