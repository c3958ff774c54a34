"""Marks for a course: every student's notebooks are run with the checks as they were given.

Foreign code is run, as the user who marks: time, memory, processes and files are limited, nothing
else is. It can read and write what that user can. Mark in a container, or as another user.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from crat import store
from crat.batch import answers
from crat.batch.answers import COURSE, AnswersError, Exercise, Submission
from crat.batch.examiner import Limits, Result, examine
from crat.text import aligned, shown

FAULTS = ("student", "task", "fault")
SPREADSHEET = ("=", "+", "-", "@")  # begin a formula


class GradingError(RuntimeError):
    """Marks that cannot be read or are another course's: one line with what to do."""


def grade(folder: Path, out: Path, limits: Limits | None = None, course: Path = COURSE) -> int:
    """Marks all students of a folder, prints the table; returns their number.

    out: the CSV of marks, a row a student and a column a task; beside it `<out>.faults.csv` says in
        one line each what failed. Both are written whenever a student is done. A student whose row
        is there, from the same files, exercises and limits, is not marked again.
    Raises AnswersError where there is nothing to mark, GradingError where `out` is no such table,
    and StoreError where it cannot be written.
    """
    limits = limits or Limits()
    exercises = answers.exercises(course)
    submissions = answers.handed_in(folder, list(exercises))
    book = Book(out, exercises)
    known = {s.student: s.fingerprint(exercises, limits) for s in submissions}
    to_do = [s for s in submissions if not book.has(s.student, known[s.student])]
    if len(to_do) < len(submissions):
        n = len(submissions) - len(to_do)
        print(
            f"{n} of {len(submissions)} students are in {shown(out)} already, from the same files"
        )
    n_files = sum(len(submission.files) for submission in to_do)
    with tqdm(total=n_files, unit="notebook", dynamic_ncols=True, disable=None, leave=False) as bar:
        for submission in to_do:
            results = _marked(submission, exercises, limits, bar)
            book.enter(submission.student, known[submission.student], results)
            book.write()
    book.show()
    return len(submissions)


def _marked(
    submission: Submission, exercises: Mapping[str, Exercise], limits: Limits, bar: tqdm
) -> list[Result]:
    """The results of what a student handed in; a file that cannot be marked is one of no points."""
    results = [
        Result(path.name, 0, "no exercise's name: it must end in one of " + ", ".join(exercises))
        for path in submission.others
    ]
    for name, paths in submission.files.items():
        bar.set_postfix_str(f"{submission.student}, {name}")
        exercise = exercises[name]
        try:
            if len(paths) > 1:
                files = ", ".join(path.name for path in paths)
                raise AnswersError(f"handed in more than once ({files}): leave one")
            results += examine(exercise.script(answers.read(paths[0])), limits, bar.refresh)
        except AnswersError as error:
            results += [Result(task, 0, str(error)) for task in exercise.checks]
        bar.update()
    return results


class Book:
    """The marks and faults of all students, as they stand in two files.

    Raises GradingError where the file is there and is no table of these exercises.
    """

    def __init__(self, out: Path, exercises: Mapping[str, Exercise]):
        self.out, self.faults_out = out, out.with_name(f"{out.stem}.faults.csv")
        tasks = [exercise.checks for exercise in exercises.values()]
        self.points = {column: points for checks in tasks for column, points in checks.items()}
        self.header = ["student", *self.points, "sum", "files"]
        self.rows = {row["student"]: row for row in _read(out, self.header)}
        self.faults = _read(self.faults_out, list(FAULTS))

    def has(self, student: str, files: str) -> bool:
        """Whether a student is marked, by the fingerprint of the files."""
        return self.rows.get(_plain(student), {}).get("files") == files

    def enter(self, student: str, files: str, results: Sequence[Result]) -> None:
        """Puts a student's results in the place of earlier ones; "" is not handed in."""
        student = _plain(student)
        marks = {r.what: f"{r.points:g}" for r in results if r.what in self.points}
        total = sum(r.points for r in results)
        row = {"student": student, **dict.fromkeys(self.points, ""), **marks}
        self.rows[student] = row | {"sum": f"{total:g}", "files": files}
        others = [fault for fault in self.faults if fault["student"] != student]
        lines = [(student, _plain(r.what), _plain(r.fault)) for r in results if r.fault]
        self.faults = others + [dict(zip(FAULTS, line, strict=True)) for line in lines]

    def write(self) -> None:
        """Writes both files, each whole or not at all; raises StoreError."""
        store.write_text(self.faults_out, _csv(FAULTS, self.faults))
        store.write_text(self.out, _csv(self.header, list(self.rows.values())))

    def show(self) -> None:
        """Prints the marks, and where they lie."""
        columns = self.header[:-1]
        most = ["of", *(f"{points:g}" for points in self.points.values())]
        rows = [[row[name] for name in columns] for row in self.rows.values()]
        total = f"{sum(self.points.values()):g}"
        print(aligned([_short(name) for name in columns], [*rows, [*most, total]]))
        print(f"\nmarks: {shown(self.out)}; {len(self.faults)} faults: {shown(self.faults_out)}")


def _short(column: str) -> str:
    """A task by its numbers, for a terminal: "1_attack_by_hand.task-2" is "1.2"."""
    exercise, dot, task = column.partition(".")
    return f"{exercise.partition('_')[0]}.{task.removeprefix('task-')}" if dot else column


def _plain(text: str) -> str:
    """A text that a spreadsheet takes for no formula, and a terminal for no command."""
    text = "".join(sign if sign.isprintable() else "?" for sign in text)
    return f"'{text}" if text.startswith(SPREADSHEET) else text


def _read(path: Path, header: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a file; [] where it is not there. Raises GradingError where it is another's."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise GradingError(f"{path} cannot be read: move it, or name another --out") from None
    rows = list(csv.reader(io.StringIO(text)))
    if not rows:
        return []
    if rows[0] != list(header) or any(len(row) != len(header) for row in rows):
        raise GradingError(f"{path} has not the marks of these exercises: name another --out")
    return [dict(zip(header, row, strict=True)) for row in rows[1:]]


def _csv(header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, header, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
