"""The exercises, what students handed in, and the cells that are run to mark it.

An exercise is a notebook whose cells have nbgrader's metadata: answers (`solution`), checks
(`grade`, with `points`), and all others, which are given. The exercise's own given cells and checks
are run, in its order; of the student's notebook only the answers, and cells that are the
student's own, are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crat.batch.notebook import ROOT

COURSE = ROOT / "notebooks" / "course"
LARGEST = 50_000_000  # bytes of a notebook that is read


class AnswersError(RuntimeError):
    """Exercises or answers that cannot be read: one line with what to do."""


@dataclass(frozen=True)
class Cell:
    """A cell that is run. points: of a check; what: how the lines about it call it."""

    kind: Literal["own", "given", "check"]
    source: str
    what: str
    points: float = 0


@dataclass(frozen=True)
class Exercise:
    """An exercise: its name, which is its file's, and its code cells."""

    name: str
    cells: tuple[dict[str, Any], ...]

    @property
    def checks(self) -> dict[str, float]:
        """Column of the marks -> points, for each check."""
        marks = [_mark(cell) for cell in self.cells if is_check(cell)]
        return {f"{self.name}.{mark['grade_id']}": mark.get("points", 0) for mark in marks}

    def script(self, notebook: dict[str, Any]) -> list[Cell]:
        """The cells to run for a student's notebook, in the exercise's order.

        A check that was removed is there, one that was changed is as it was given. A given cell
        that was changed is run as the student has it, then as it was given. A cell of the
        student's own stays behind the cell that it follows. Raises AnswersError where the notebook
        has no answer of this exercise, or no cell as it was given: it is of another one.
        """
        by_key = {key: i for i, cell in enumerate(self.cells) for key in _keys(cell)}
        theirs: dict[int, list[Cell]] = {}  # their versions of the cell at a place
        behind: dict[int, list[Cell]] = {}  # cells of their own behind it
        place = -1
        for cell in code_cells(notebook):
            at = next((by_key[key] for key in _keys(cell) if key in by_key), None)
            place = place if at is None else at
            if at is None or not self._is_ours(cell, at):
                written = Cell("own", _source(cell), "the answer")
                (behind if at is None else theirs).setdefault(place, []).append(written)
        ours = {_source(cell).strip() for cell in self.cells}
        same = any(_source(cell).strip() in ours for cell in code_cells(notebook))
        if not (same and any(is_answer(self.cells[i]) for i in theirs)):
            raise AnswersError(f"its cells are not those of {self.name}")
        cells = behind.get(-1, [])
        for i in range(len(self.cells)):
            cells = [*cells, *theirs.get(i, []), *self._own(i), *behind.get(i, [])]
        return cells

    def _is_ours(self, cell: dict[str, Any], i: int) -> bool:
        """Whether a student's cell needs no run: a check, or a given cell that was not changed."""
        ours = self.cells[i]
        if is_answer(ours):
            return False
        return is_check(ours) or _source(cell).strip() == _source(ours).strip()

    def _own(self, i: int) -> list[Cell]:
        """The exercise's own cell at a place; an answer has none."""
        cell = self.cells[i]
        if is_answer(cell):
            return []
        if not is_check(cell):
            return [Cell("given", _source(cell), "a given cell")]
        mark = _mark(cell)
        column = f"{self.name}.{mark['grade_id']}"
        return [Cell("check", _source(cell), column, mark.get("points", 0))]


def exercises(folder: Path = COURSE) -> dict[str, Exercise]:
    """Name -> exercise, of a folder; raises AnswersError where there is none."""
    found = {}
    for path in sorted(folder.glob("*.ipynb")):
        cells = [c for c in code_cells(read(path)) if "setup" not in c["metadata"].get("tags", [])]
        if any(map(is_check, cells)):
            found[path.stem] = Exercise(path.stem, tuple(cells))
    if not found:
        raise AnswersError(f"no exercises in {folder}: those of crat come with its repository")
    return found


def read(path: Path) -> dict[str, Any]:
    """A notebook as JSON; raises AnswersError where it is none."""
    try:
        if path.stat().st_size > LARGEST:
            raise AnswersError(f"{path.name} has more than {LARGEST // 10**6} MB")
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            _source(cell), cell["cell_type"], cell["metadata"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise AnswersError(f"{path.name} is no notebook that can be read") from None
    return notebook


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def is_check(cell: dict[str, Any]) -> bool:
    """Whether a cell of an exercise is judged without anybody reading it."""
    return bool(_mark(cell).get("grade")) and not is_answer(cell)


def is_answer(cell: dict[str, Any]) -> bool:
    """Whether the student writes a cell of an exercise."""
    return bool(_mark(cell).get("solution"))


def _mark(cell: dict[str, Any]) -> dict[str, Any]:
    mark = cell["metadata"].get("nbgrader")
    return mark if isinstance(mark, dict) else {}


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def _keys(cell: dict[str, Any]) -> list[tuple[str, str]]:
    """By what a cell is known again, the surest first; some editors drop ids or metadata."""
    metadata = cell["metadata"]
    known = {
        "grade": _mark(cell).get("grade_id"),
        "id": cell.get("id") or metadata.get("id"),
        "source": _source(cell).strip(),
    }
    return [(kind, str(value)) for kind, value in known.items() if value]


@dataclass(frozen=True)
class Submission:
    """What one student handed in: name of an exercise -> files, usually one; other files."""

    student: str
    files: dict[str, list[Path]]
    others: list[Path]

    def fingerprint(self, *of: object) -> str:
        """Changes with any of the files, and with what they are marked by."""
        digest = hashlib.sha256(repr(of).encode(errors="replace"))
        for path in sorted([*self.others, *(p for paths in self.files.values() for p in paths)]):
            digest.update(path.name.encode(errors="replace") + b"\0")
            with contextlib.suppress(OSError):
                digest.update(path.read_bytes() if path.stat().st_size <= LARGEST else b"large")
        return digest.hexdigest()[:12]


def handed_in(folder: Path, names: Sequence[str]) -> list[Submission]:
    """The submissions below a folder, by student.

    The first folder below it names the student (`submitted/` of nbgrader is passed over), and a
    file that lies in it itself is named by what stands before the exercise's name:
    `ann/1_attack_by_hand.ipynb`, `submitted/ann/week1/1_attack_by_hand.ipynb`,
    `ann_1_attack_by_hand.ipynb`. What a browser adds to a name (` (1)`, `-Copy1`) is passed over,
    and so are hidden folders. Raises AnswersError where there is no notebook.
    """
    if not folder.is_dir():
        raise AnswersError(f"{folder} is no folder: name the one of the students' notebooks")
    found: dict[str, Submission] = {}
    for path in sorted(folder.rglob("*.ipynb")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts) or not path.is_file():
            continue
        if parts[0] == "submitted" and len(parts) > 2:
            parts = parts[1:]
        exercise, before = _named(path.stem, names)
        student = parts[0] if len(parts) > 1 else before or path.stem
        submission = found.setdefault(student, Submission(student, {}, []))
        if exercise:
            submission.files.setdefault(exercise, []).append(path)
        else:
            submission.others.append(path)
    if not found:
        raise AnswersError(f"no notebook (*.ipynb) below {folder}")
    return [found[student] for student in sorted(found)]


def _named(stem: str, names: Sequence[str]) -> tuple[str, str]:
    """The exercise of a file's name ("" where it names none), and what stands before it."""
    stem = re.sub(r"( ?\(\d+\)|-Copy\d+)+$", "", stem)
    for name in sorted(names, key=len, reverse=True):
        if stem.endswith(name):
            return name, stem.removesuffix(name).rstrip("_- ")
    return "", ""
