"""The command line `crat ...`: a module for each command, imported at its use."""

from __future__ import annotations

import io
import os
import sys
from argparse import RawDescriptionHelpFormatter

import crat
from crat.cli.parsing import Command, Parser, commands
from crat.names import ConfigError

__all__ = ["main", "parser"]

COMMANDS = {
    "reproduce": "run the notebooks: every figure and the claims table",
    "site": "the report as pages: claims, leaderboard, notebooks",
    "train": "train one model; settings that are not given are the profile's",
    "evaluate": "attack a trained model, class by class",
    "audit": "judge any model class by class: checks, the battery, a card, figures",
    "methods": "the training methods, their settings and sources",
    "runs": "list the trained and the published runs",
    "show": "one run: its settings, its classes, its history",
    "compare": "runs beside each other, class by class, with intervals",
    "leaderboard": "the methods of notebook 06 by their published results",
    "data": "list the data sets, or fetch one",
    "course": "mark what students handed in of notebooks/course",
    "completion": "a script that completes crat's words in your shell",
}
FOR_MAINTAINERS = {"publish": "copy the small files of a finished run to results/"}
EPILOG = """\
for maintainers:
  crat publish RUN                                    {publish}
  python -m crat.store.manifest                       sign all of results/ anew
  python benchmarks/step.py|training.py|attacks.py    measure speed; each has --help
  python notebooks/course/build.py                    make the exercises from their solutions
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0, 1 (it failed), 2 (wrong arguments), 130 (interrupted), 141 (pipe closed). An error of crat's
    own is one line on stderr; any other is a bug and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a sign that a console lacks is shown as "?"
            stream.reconfigure(errors="replace")
    try:
        arguments = parser().parse_args(argv)
        code = arguments.command(arguments) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("stopped; the same command resumes from what is done", 130)
    except BrokenPipeError:  # `crat reproduce | head -1`: the exit code of a shell's SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not type(error).__module__.startswith("crat."):
            raise
        return _fail(str(error), 2 if isinstance(error, ConfigError) else 1)


def _fail(message: str, code: int) -> int:
    print(f"crat: {' '.join(message.split())}", file=sys.stderr)
    return code


def parser() -> Parser:
    """The parser of all commands; a command's own parser adds its flags at its use."""
    top = Parser(
        prog="crat",
        description=crat.__doc__,
        epilog=EPILOG.format(**FOR_MAINTAINERS),
        formatter_class=RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"crat {crat.__version__}")
    add = commands(top, "command", parser_class=Command, title="commands")
    for name, text in COMMANDS.items():
        add(name, help=text, description=text)
    for name, text in FOR_MAINTAINERS.items():
        add(name, description=text)  # without help, argparse leaves it out of the list
    return top
