"""The exercises for lectures, built from their solutions, which are the only source.

    python notebooks/course/build.py            # writes the exercises, and nbgrader's marks
    python notebooks/course/build.py --execute  # also runs each solution and keeps its outputs
    python notebooks/course/build.py --check    # whatever is not up to date is an error

In a solution, code between `### BEGIN SOLUTION` and `### END SOLUTION` is what the student writes,
and a cell tagged "solution" is for the lecturer only. The exercise has neither, no outputs, and
begins with where to open it. Each answer and each check (a cell tagged "check") of both has the
metadata that nbgrader and `crat course grade` read; a check is worth the answers that it judges.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
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


def build(
    root: Path, repository: str | None = None, *, check: bool = False, execute: bool = False
) -> str:
    """Writes the exercises of a checkout, or with `check` only compares them; returns a summary.

    repository: OWNER/NAME on GitHub, to which the badges lead (None: the one of CITATION.cff).
    execute: runs the solutions first. Raises CourseError where an exercise is not what its solution
    gives, where a solution's outputs are not those of its code, or a solution cannot be built or
    run.
    """
    course = root / "notebooks" / "course"
    solutions = marked(course / "solutions")
    if execute:
        solutions = {name: executed(solutions[name], name, course) for name in solutions}
    exercises = built(solutions, checked(repository) if repository else cited(root))
    texts = {course / "solutions" / name: written(solutions[name]) for name in solutions}
    texts |= {course / name: written(exercises[name]) for name in exercises}
    stale = [path for path, text in texts.items() if _text(path) != text]
    if check and stale:
        names = ", ".join(path.relative_to(course).as_posix() for path in stale)
        raise CourseError(f"{names}: not what the solutions give; without --check they are written")
    for path in stale:
        write_text(path, texts[path])
    old = [name for name in solutions if not has_outputs(solutions[name])]
    told = f"{', '.join(old)}: no outputs, or those of other code; --execute makes them"
    if check and old:
        raise CourseError(told)
    changed = len({path.name for path in stale})
    summary = f"{len(exercises)} exercises in {course.relative_to(root)}, {changed} of them changed"
    return summary + (f"\n{told}" if old else "")


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


def marked(solutions: Path) -> dict[str, dict[str, Any]]:
    """File name -> solution with nbgrader's metadata, for a whole folder; raises CourseError."""
    notebooks = {}
    for path in sorted(solutions.glob("*.ipynb")):
        try:
            notebook = json.loads(path.read_text(encoding="utf-8"))
            notebooks[path.name] = notebook | {"cells": with_marks(notebook["cells"])}
        except (CourseError, ValueError, KeyError) as error:
            raise CourseError(f"{path.name}: {error}") from None
    if not notebooks:
        raise CourseError(f"no solutions in {solutions}")
    return notebooks


def with_marks(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells, each answer and each check with nbgrader's metadata, and no other cell with it.

    Tasks are counted by their answers. A check is worth one point for each answer since the last
    check: it judges all of them. Raises CourseError where it judges none.
    """
    marked_cells = []
    tasks = 0
    open_tasks: list[int] = []
    for cell in cells:
        metadata = {k: v for k, v in cell["metadata"].items() if k != "nbgrader"}
        answers = "".join(cell["source"]).count(BEGIN) if cell["cell_type"] == "code" else 0
        if answers:
            numbers = [*range(tasks + 1, tasks + answers + 1)]
            tasks += answers
            open_tasks += numbers
            metadata["nbgrader"] = _mark("answer", numbers, solution=True)
        elif "check" in metadata.get("tags", []):
            if not open_tasks:
                raise CourseError(f"a check without an answer above it, behind task {tasks}")
            metadata["nbgrader"] = _mark("task", open_tasks, grade=True)
            open_tasks = []
        marked_cells.append(cell | {"metadata": metadata})
    if open_tasks:
        raise CourseError(f"task {open_tasks[0]} has no check")
    return marked_cells


def _mark(kind: str, tasks: Sequence[int], *, grade: bool = False, solution: bool = False) -> dict:
    """The metadata of an answer or a check, by version 3 of nbgrader's schema."""
    return {
        "schema_version": 3,
        "cell_type": "code",
        "grade_id": "-".join([kind, *map(str, tasks)]),
        "grade": grade,
        "solution": solution,
        "locked": grade,  # its text is put back when it is graded
        "task": False,
        **({"points": len(tasks)} if grade else {}),
    }


def executed(solution: dict[str, Any], name: str, course: Path) -> dict[str, Any]:
    """The solution with the outputs of a run with an empty store; raises CourseError."""
    import nbclient
    import nbformat

    notebook = nbformat.reads(json.dumps(solution), as_version=4)
    with tempfile.TemporaryDirectory() as runs:
        client = nbclient.NotebookClient(
            notebook,
            timeout=1200,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(course)}},
        )
        try:
            client.execute(env=os.environ | {"CRAT_RUNS": runs})
        except nbclient.exceptions.CellExecutionError as error:
            raise CourseError(f"{name}: {error.ename}: {error.evalue}") from None
    place = json.dumps(f"{course.parents[1]}/")[1:-1]  # a warning names the file that gives it
    run = json.loads(nbformat.writes(notebook).replace(place, ""))
    cells = [
        cell | {name: done[name] for name in ("outputs", "execution_count") if name in done}
        for cell, done in zip(solution["cells"], run["cells"], strict=True)
    ]
    metadata = solution["metadata"] | {"crat": {"executed": code_hash(solution)}}
    return solution | {"cells": cells, "metadata": metadata}


def code_hash(solution: dict[str, Any]) -> str:
    """The hash of all code of a notebook, by which its outputs are known to be its own."""
    code = ["".join(c["source"]) for c in solution["cells"] if c["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def has_outputs(solution: dict[str, Any]) -> bool:
    """Whether every code cell was run, and the code is still the one that was run."""
    code = [cell for cell in solution["cells"] if cell["cell_type"] == "code"]
    ran = all(cell.get("execution_count") for cell in code)
    return ran and solution["metadata"].get("crat", {}).get("executed") == code_hash(solution)


def written(notebook: dict[str, Any]) -> str:
    """The text of a notebook's file."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def built(solutions: dict[str, dict[str, Any]], repository: str = "") -> dict[str, dict[str, Any]]:
    """File name -> exercise, for every solution; raises CourseError."""
    exercises = {}
    for name, solution in solutions.items():
        try:
            exercises[name] = stripped(solution, name, repository)
        except (CourseError, ValueError, KeyError) as error:
            raise CourseError(f"{name}: {error}") from None
    return exercises


def stripped(solution: dict[str, Any], name: str, repository: str = "") -> dict[str, Any]:
    """The exercise of a solution, both notebooks as JSON.

    Its title, where to open it, then the other cells without answers.
    """
    cells = [c for c in solution["cells"] if "solution" not in c["metadata"].get("tags", [])]
    if not any(BEGIN in "".join(cell["source"]) for cell in cells):
        raise CourseError(f"nothing to solve: no {BEGIN}")
    title, *others = map(_as_given, cells)
    metadata = {k: v for k, v in solution["metadata"].items() if k != "crat"}
    return solution | {"cells": [title, *opening(name, repository), *others], "metadata": metadata}


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
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="only compare, write nothing")
    what.add_argument(
        "--execute", action="store_true", help="run the solutions (two minutes), keep their outputs"
    )
    parser.add_argument(
        "--repository",
        metavar="OWNER/NAME",
        help="on GitHub, for the badges (default: that of CITATION.cff)",
    )
    asked = parser.parse_args(argv)
    try:
        print(build(ROOT, asked.repository, check=asked.check, execute=asked.execute))
    except (CourseError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
