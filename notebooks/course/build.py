"""The exercises for lectures, built from their solutions, which are the only source.

    python notebooks/course/build.py            # writes the exercises
    python notebooks/course/build.py --check    # an exercise that is not up to date is an error

In a solution, code between `### BEGIN SOLUTION` and `### END SOLUTION` is what the student writes,
and a cell tagged "solution" is for the lecturer only. The exercise has neither, no outputs, and
begins with where to open it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crat.config import ConfigError
from crat.store import write_text

ROOT = Path(__file__).resolve().parents[2]

BEGIN = "### BEGIN SOLUTION"
END = "### END SOLUTION"
SETUP = """\
# Does nothing where crat is installed. Elsewhere, as on Colab, it installs crat: some minutes.
import importlib.util
import subprocess
import sys

repository = "{repository}"  # its OWNER/NAME on GitHub
if importlib.util.find_spec("crat") is None:
    assert repository, "crat is not installed here: write the OWNER/NAME of its repository above"
    address = f"https://github.com/{{repository}}"
    clone = ["git", "clone", "--quiet", "--depth", "1", address, "crat-clone"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--editable", "crat-clone"]
    subprocess.run(clone, check=True)
    subprocess.run(install, check=True)
    sys.path.insert(0, "crat-clone")"""
LOCALLY = (
    "In a clone of the repository, `make lab` sets everything up and opens JupyterLab; "
    "choose `course/{name}` there."
)
BADGES = """\
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})
[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"""


class CourseError(RuntimeError):
    """A solution that no exercise can be made of, or an exercise of another solution: one line."""


def build(root: Path, repository: str | None = None, *, check: bool = False) -> str:
    """Writes the exercises of a checkout, or with `check` only compares them; returns a summary.

    repository: OWNER/NAME on GitHub, to which the badges lead (None: the one of CITATION.cff).
    Raises CourseError where an exercise is not what its solution gives, or a solution cannot be
    built.
    """
    course = root / "notebooks" / "course"
    exercises = built(course / "solutions", checked(repository) if repository else cited(root))
    stale = [name for name, text in exercises.items() if _text(course / name) != text]
    if check and stale:
        names = ", ".join(stale)
        raise CourseError(f"{names}: not what the solutions give; without --check they are written")
    for name in stale:
        write_text(course / name, exercises[name])
    return f"{len(exercises)} exercises in {course.relative_to(root)}, {len(stale)} of them changed"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def checked(repository: str) -> str:
    """The same OWNER/NAME; raises ConfigError on another text."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"{repository!r} is not OWNER/NAME, a repository on GitHub")
    return repository


def cited(root: Path) -> str:
    """OWNER/NAME from the line `repository-code:` of CITATION.cff; "" where it has none."""
    address = r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?"
    line = re.compile(rf"^repository-code: *[\"']?{address}[\"']?$", re.MULTILINE)
    found = line.search(_text(root / "CITATION.cff"))
    return found[1] if found else ""


def built(solutions: Path, repository: str = "") -> dict[str, str]:
    """File name -> text of the exercise, for every solution of a folder; raises CourseError."""
    texts = {}
    for path in sorted(solutions.glob("*.ipynb")):
        try:
            exercise = stripped(json.loads(path.read_text(encoding="utf-8")), path.name, repository)
        except (CourseError, ValueError, KeyError) as error:
            raise CourseError(f"{path.name}: {error}") from None
        texts[path.name] = json.dumps(exercise, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if not texts:
        raise CourseError(f"no solutions in {solutions}")
    return texts


def stripped(solution: dict[str, Any], name: str, repository: str = "") -> dict[str, Any]:
    """The exercise of a solution, both notebooks as JSON.

    Its title, where to open it, then the other cells without answers.
    """
    cells = [c for c in solution["cells"] if "solution" not in c["metadata"].get("tags", [])]
    if not any(BEGIN in "".join(cell["source"]) for cell in cells):
        raise CourseError(f"nothing to solve: no {BEGIN}")
    title, *others = map(_as_given, cells)
    return solution | {"cells": [title, *opening(name, repository), *others]}


def _as_given(cell: dict[str, Any]) -> dict[str, Any]:
    if cell["cell_type"] != "code":
        return cell
    source = without_answers("".join(cell["source"]))
    return cell | {
        "source": source.splitlines(keepends=True),
        "outputs": [],
        "execution_count": None,
    }


def without_answers(source: str) -> str:
    """The code with each answer replaced by a comment and an error, at the marker's indentation.

    The text behind BEGIN is the hint in both. Raises CourseError where markers do not pair.
    """
    lines: list[str] = []
    inside = False
    for line in source.split("\n"):
        mark = line.strip()
        if mark.startswith((BEGIN, END)):
            if mark.startswith(BEGIN) == inside:
                raise CourseError(f"{mark}: each {BEGIN} needs its own {END}")
            inside = not inside
            if inside:
                lines += _stub(line[: line.index(BEGIN)], mark.removeprefix(BEGIN).strip())
        elif not inside:
            lines.append(line)
    if inside:
        raise CourseError(f"a {BEGIN} without its {END}")
    return "\n".join(lines)


def _stub(indent: str, hint: str) -> list[str]:
    hint = hint or "the answer"
    error = f"raise NotImplementedError({json.dumps(hint)})"
    return [f"{indent}# your code here: {hint}", f"{indent}{error}"]


def opening(name: str, repository: str = "") -> list[dict[str, Any]]:
    """The cells behind the title: badges of a known repository, how to open it, the set-up."""
    place = f"notebooks/course/{name}"
    links = {
        "colab": f"https://colab.research.google.com/github/{repository}/blob/main/{place}",
        "binder": f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/{place}",
    }
    badges = BADGES.format(**links) + "\n\n" if repository else ""
    setup = _cell("code", "setup", SETUP.format(repository=repository))
    return [
        _cell("markdown", "opening", badges + LOCALLY.format(name=name)),
        setup | {"execution_count": None, "outputs": []},
    ]


def _cell(kind: str, tag: str, source: str) -> dict[str, Any]:
    return {
        "cell_type": kind,
        "id": f"course-{tag}",
        "metadata": {"tags": [tag]},
        "source": source.splitlines(keepends=True),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, 1 (an exercise is not its solution's) or 2 (asked wrongly)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    parser.add_argument(
        "--repository",
        metavar="OWNER/NAME",
        help="on GitHub, for the badges (default: that of CITATION.cff)",
    )
    asked = parser.parse_args(argv)
    try:
        print(build(ROOT, asked.repository, check=asked.check))
    except (CourseError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
