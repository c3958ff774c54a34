"""The exercises for lectures: built from their solutions, which are the only source.

In a solution, code between `### BEGIN SOLUTION` and `### END SOLUTION` is what the student writes, and a cell tagged
"solution" is for the lecturer only. The exercise has neither, no outputs, and begins with where to open it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from crat import store
from crat.config import ConfigError

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
SETUP = """\
# Does nothing where crat is installed. Elsewhere, as on Colab, it gets crat and the packages it needs: some minutes.
import importlib.util
import subprocess
import sys

repository = "{repository}"  # its OWNER/NAME on GitHub
if importlib.util.find_spec("crat") is None:
    assert repository, "crat is not installed here: write the OWNER/NAME of its GitHub repository into the line above"
    clone = ["git", "clone", "--quiet", "--depth", "1", f"https://github.com/{{repository}}", "crat-clone"]
    subprocess.run(clone, check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", "crat-clone"], check=True)
    sys.path.insert(0, "crat-clone")"""
LOCALLY = (
    "In a clone of the repository, `make lab` sets everything up and opens JupyterLab; choose `course/{name}` there."
)
BADGES = """\
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})
[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"""


class CourseError(RuntimeError):
    """Solutions that no exercise can be made of, or exercises that are not theirs: one line."""


def main(repository: str | None = None, *, check: bool = False) -> None:
    """Writes the exercises beside the folder of their solutions; with `check`, only compares.

    repository: OWNER/NAME on GitHub, to which the badges lead (None: the one that CITATION.cff tells of, if any).
    Raises CourseError where an exercise is not what its solution gives, or a solution cannot be built.
    """
    course = store.root() / "notebooks" / "course"
    exercises = built(course / "solutions", checked(repository) if repository else cited(store.root()))
    stale = [name for name, text in exercises.items() if _text(course / name) != text]
    if check and stale:
        raise CourseError(f"{', '.join(stale)}: not what the solutions give; crat course build writes them anew")
    for name in stale:
        store.write_text(course / name, exercises[name])
    print(f"{len(exercises)} exercises in {course.relative_to(store.root())}, {len(stale)} of them changed")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def checked(repository: str) -> str:
    """The same OWNER/NAME; raises ConfigError where it is none."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"{repository!r} is not OWNER/NAME, a repository on GitHub")
    return repository


def cited(root: Path) -> str:
    """OWNER/NAME from the line `repository-code:` of CITATION.cff; "" where it has none."""
    found = re.search(
        r"^repository-code: *[\"']?https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?[\"']?$",
        _text(root / "CITATION.cff"),
        re.MULTILINE,
    )
    return found[1] if found else ""


def built(solutions: Path, repository: str = "") -> dict[str, str]:
    """File name -> text of the exercise, for every solution of a folder; raises CourseError where there is none."""
    texts = {}
    for path in sorted(solutions.glob("*.ipynb")):
        try:
            exercise = stripped(json.loads(path.read_text(encoding="utf-8")), path.name, repository)
        except (CourseError, ValueError, KeyError) as error:
            raise CourseError(f"{path.name}: {error}") from None
        texts[path.name] = json.dumps(exercise, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if not texts:
        raise CourseError(f"no solutions in {solutions}: they come with a clone of the repository, not with the wheel")
    return texts


def stripped(solution: dict[str, Any], name: str, repository: str = "") -> dict[str, Any]:
    """The exercise (a notebook as JSON) of a solution: its title, where to open it, then the rest without answers."""
    kept = [cell for cell in solution["cells"] if "solution" not in cell["metadata"].get("tags", [])]
    if not any(BEGIN in "".join(cell["source"]) for cell in kept):
        raise CourseError(f"nothing to solve: no {BEGIN}")
    title, *others = map(_as_given, kept)
    return solution | {"cells": [title, *opening(name, repository), *others]}


def _as_given(cell: dict[str, Any]) -> dict[str, Any]:
    if cell["cell_type"] != "code":
        return cell
    source = without_answers("".join(cell["source"]))
    return cell | {"source": source.splitlines(keepends=True), "outputs": [], "execution_count": None}


def without_answers(source: str) -> str:
    """The code with each answer replaced by a comment and an error, at the marker's indentation.

    What follows BEGIN on its line is the hint that both show. Raises CourseError where markers do not pair.
    """
    lines, inside = [], False
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
    return [f"{indent}# your code here: {hint}", f"{indent}raise NotImplementedError({json.dumps(hint)})"]


def opening(name: str, repository: str = "") -> list[dict[str, Any]]:
    """The cells behind the title: badges (where the repository is known), how to open it, and the set-up."""
    place = f"notebooks/course/{name}"
    links = {
        "colab": f"https://colab.research.google.com/github/{repository}/blob/main/{place}",
        "binder": f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/{place}",
    }
    badges = BADGES.format(**links) + "\n\n" if repository else ""
    return [
        _cell("markdown", "opening", badges + LOCALLY.format(name=name)),
        _cell("code", "setup", SETUP.format(repository=repository)) | {"execution_count": None, "outputs": []},
    ]


def _cell(kind: str, tag: str, source: str) -> dict[str, Any]:
    return {
        "cell_type": kind,
        "id": f"course-{tag}",
        "metadata": {"tags": [tag]},
        "source": source.splitlines(keepends=True),
    }
