"""Marks: what students hand in, the checks as they were given, and what costs only its own mark."""

import csv
import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from crat import cli
from crat.batch import answers, examinee, examiner, grading

ROOT = Path(__file__).resolve().parents[2]
COURSE = ROOT / "notebooks" / "course"
STUB = "def {name}(x):\n    # your code here\n    raise NotImplementedError('{name}')"
CHECKS = {
    "double": "assert same(double(2), 4), 'twice the number'\nassert double(-1) == -2",
    "square": "assert same(square(3), 9), 'the number by itself'\nassert all([square(-1) == 1])",
}
HELPER = "def same(a, b):\n    return a == b\n\n\nlimit = 3"


def cell(source, key, grade_id=None, **mark):
    metadata = {}
    if grade_id:
        metadata["nbgrader"] = {"schema_version": 3, "grade_id": grade_id, **mark}
    return {
        "cell_type": "code",
        "id": key,
        "metadata": metadata,
        "source": source.splitlines(keepends=True),
        "outputs": [],
        "execution_count": None,
    }


def notebook(double=None, square=None, more=()):
    """The tiny exercise with these answers; more: cells behind the helper."""
    written = {"double": double, "square": square}
    cells = [cell(HELPER, "helper"), *more]
    for i, (name, check) in enumerate(CHECKS.items(), 1):
        answer = written[name] or STUB.format(name=name)
        cells.append(cell(answer, f"a{i}", f"answer-{i}", solution=True, grade=False))
        cells.append(cell(check, f"c{i}", f"task-{i}", solution=False, grade=True, points=i))
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


RIGHT = {"double": "def double(x):\n    return 2 * x", "square": "def square(x):\n    return x * x"}


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")


@pytest.fixture(autouse=True)
def signals_are_left(monkeypatch):
    monkeypatch.setattr("crat.cli.course.signal.signal", lambda *_: None)


@pytest.fixture
def tiny(tmp_path):
    """A folder with the tiny exercise, of two tasks of one and two points."""
    save(tmp_path / "course" / "tiny.ipynb", notebook())
    return tmp_path / "course"


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def examined(given, seconds=20.0, memory=4.0):
    """The results of a notebook of the tiny exercise: task -> (points, fault)."""
    exercise = answers.Exercise("tiny", tuple(notebook()["cells"]))
    limits = examiner.Limits(seconds, memory)
    results = examiner.examine(exercise.script(given), limits, lambda: None)
    return {result.what: (result.points, result.fault) for result in results}


def test_students_are_known_by_folder_or_file(tmp_path):
    for path in (
        "ann/tiny.ipynb",
        "submitted/bob/week1/tiny (1).ipynb",
        "cay_tiny-Copy1.ipynb",
        "dan/.ipynb_checkpoints/tiny-checkpoint.ipynb",
        "eve/notes.ipynb",
        "fay/a/fay_tiny.ipynb",
        "fay/b/tiny.ipynb",
    ):
        save(tmp_path / path, "{}")
    found = {s.student: s for s in answers.handed_in(tmp_path, ["tiny", "other"])}
    assert {name: len(s.files.get("tiny", [])) for name, s in found.items()} == {
        "ann": 1,
        "bob": 1,
        "cay": 1,
        "eve": 0,
        "fay": 2,
    }
    assert [path.name for path in found["eve"].others] == ["notes.ipynb"]
    with pytest.raises(answers.AnswersError, match="no notebook"):
        answers.handed_in(tmp_path / "dan", ["tiny"])


def script(given):
    exercise = answers.Exercise("tiny", tuple(notebook()["cells"]))
    return [(c.kind, c.source) for c in exercise.script(given)]


def test_checks_and_given_cells_are_put_back():
    cells = notebook(**RIGHT)["cells"]
    usual = script({"cells": cells})
    assert [kind for kind, _ in usual] == ["given", "own", "check", "own", "check"]
    assert script({"cells": [c for c in cells if c["id"] not in ("c1", "helper")]}) == usual
    for i in (0, 2, 4):  # ids and metadata are lost in some editors
        bare = [c | {"metadata": {}, "id": ""} if c in cells[i::2] else c for c in cells]
        assert script({"cells": bare})[0] == usual[0]
    changed = [c | {"source": "print(1)"} if c["id"] in ("c1", "helper") else c for c in cells]
    assert script({"cells": changed}) == [("own", "print(1)"), *usual]
    own = cell("import math", "mine")
    assert script({"cells": [own, *cells[:2], own, *cells[2:]]}) == [
        ("own", "import math"),
        *usual[:2],
        ("own", "import math"),
        *usual[2:],
    ]


def test_lines_of_magic_are_left_out():
    assert examinee.without_magic("%time\nif x:\n    !pip install y\n") == "pass\nif x:\n    pass\n"
    assert examinee.without_magic("x = '''\n%d\n'''") == "x = '''\n%d\n'''"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"cells": [3]}',
        '{"cells": [{"source": [], "cell_type": "code", "metadata": []}]}',
    ],
)
def test_what_is_no_notebook(text, tmp_path):
    save(tmp_path / "a.ipynb", text)
    with pytest.raises(answers.AnswersError, match="is no notebook that can be read"):
        answers.read(tmp_path / "a.ipynb")


def test_a_solved_notebook_has_all_points_and_a_half_done_half():
    assert examined(notebook(**RIGHT)) == {"tiny.task-1": (1, ""), "tiny.task-2": (2, "")}
    wrong = notebook("def double(x):\n    return x + 2", RIGHT["square"])
    assert examined(wrong) == {"tiny.task-1": (0, "AssertionError"), "tiny.task-2": (2, "")}
    half = examined(notebook(RIGHT["double"]))
    assert half["tiny.task-2"] == (0, "NotImplementedError: square")
    broken = examined(notebook("def double(x) return", RIGHT["square"]))
    points, fault = broken["tiny.task-1"]
    assert points == 0
    assert fault.startswith("NameError: name 'double' is not defined; before it: SyntaxError")


TRICKS = {
    "another helper": "def same(a, b):\n    return True",
    "builtins": "import builtins\nbuiltins.AssertionError = int\nbuiltins.abs = lambda x: 0",
    "names of Python's own": "all = any = lambda x: True\n__builtins__ = {'same': max}",
    "a library": "import math\nmath.isclose = lambda *a: True",
    "the exit": "import sys\nsys.exit(0)",
    "a thread without end": (
        "import threading, time\n"
        "threading.Thread(target=lambda: time.sleep(999)).start()\nraise KeyboardInterrupt"
    ),
    "an error without a text": (
        "class E(Exception):\n    def __str__(self):\n        raise self\nraise E"
    ),
    "a gigabyte": "line = 'x' * 1000000 + '\\n'\nfor _ in range(1000):\n    print(line)",
    "other streams": "import os\nfor i in range(3, 9):\n    try:\n"
    "        os.write(i, b'guess null\\n' * 1000)\n    except OSError:\n        pass",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_what_changes_no_mark(trick):
    """A check is as it was given, in names of its own; what fails is the cell, not the process."""
    more = [cell(TRICKS[trick], "mine")]
    results = examined(notebook(RIGHT["double"], "def square(x):\n    return 3 * x", more))
    assert [points for points, _ in results.values()] == [1, 0]


def test_the_libraries_are_put_back_for_a_check():
    check = (
        "import numpy as np, torch\n"
        "from crat.analysis import metrics\nfrom crat.attacks import FGSM\n"
        "assert not np.allclose(0, 1) and not torch.allclose(torch.zeros(1), torch.ones(1))\n"
        "assert torch.ones(2).sum() == 2 and abs(-1) == 1 and FGSM(0.1).eps == 0.1\n"
        "assert not hasattr(FGSM, 'more') and not any([answer])\n"
        "assert metrics.wilson(1, 2)[0] < 0.5"
    )
    cheat = (
        "import builtins, numpy as np, torch\nfrom crat.attacks import FGSM\nanswer = 0\n"
        "np.allclose = torch.allclose = lambda *a, **k: True\nbuiltins.any = lambda x: False\n"
        "torch.Tensor.sum = lambda self: 5\nbuiltins.abs = lambda x: 5\nFGSM.more = abs\n"
        "from crat.analysis import metrics\n"
        "metrics.wilson.__code__ = (lambda *a: (1, 1)).__code__\n"
        "assert metrics.wilson(1, 2) == (1, 1)"
    )
    cells = [
        answers.Cell("given", "import torch", "a given cell"),
        answers.Cell("own", cheat, "the answer"),
        answers.Cell("check", check, "task", 1),
    ]
    cells.append(answers.Cell("check", "assert False", "cheated", 1))
    result, cheated = examiner.examine(cells, examiner.Limits(60), lambda: None)
    assert cheated.fault == "AssertionError"  # the tricks themselves ran
    assert (result.fault, result.points) == ("", 1)


ENDS = {
    "import os\nos._exit(0)": "the process ended (exit code 0), in the answer",
    "while True:\n    pass": "no end within 3 seconds, in the answer",
    "import re\nre.match('(a+)+$', 'a' * 40 + 'b')": "no end within 3 seconds, in the answer",
    "import os\nos.closerange(3, 99)": "the process ended (exit code 1), in the answer",
}


@pytest.mark.parametrize("code", ENDS, ids=lambda code: code.splitlines()[-1].strip())
def test_what_ends_a_run_costs_the_tasks_from_there_on(code):
    given = notebook(RIGHT["double"], RIGHT["square"] + "\n\n\n" + code)
    results = examined(given, seconds=3)
    assert results["tiny.task-1"] == (1, "")
    points, fault = results["tiny.task-2"]
    assert points == 0
    assert fault.startswith(ENDS[code])


def test_memory_is_limited():
    """Of a process by the system, where it can; of all of them by the looks at them."""
    eats = "kept = bytearray(2**29)\nfor i in range(0, 2**29, 4096):\n    kept[i] = 1"
    after = "\nimport time\ntime.sleep(20)"
    _, fault = examined(notebook(eats + after), memory=0.3)["tiny.task-1"]
    assert "MemoryError" in fault or "more than 0.3 GB" in fault
    code = f"kept = b'x' * {180 * 10**6}" + after
    start = f"subprocess.Popen([sys.executable, '-c', {code!r}])"
    two = f"import subprocess, sys\nfor _ in 'ab':\n    {start}"
    _, fault = examined(notebook(two + after), memory=0.3)["tiny.task-1"]
    assert fault == "more than 0.3 GB of memory, in the answer"


def test_files_and_processes_are_limited_and_nothing_is_left(monkeypatch):
    monkeypatch.setattr(examiner, "FILES", 10**6)
    wide = "open('a', 'wb').write(bytes(2 * 10**6))\nimport time\ntime.sleep(20)"
    assert examined(notebook(wide))["tiny.task-1"][1].startswith("more than 0 GB of files")
    monkeypatch.setattr(examiner, "PROCESSES", 4)
    marker = f"time.sleep({time.time_ns()})"
    start = f"subprocess.Popen([sys.executable, '-c', 'import time; {marker}']"
    many = f"import subprocess, sys, time\nfor _ in range(8):\n    {start})\ntime.sleep(20)"
    assert examined(notebook(many))["tiny.task-1"][1].startswith("more than 4 processes")
    one = f"import subprocess, sys\n{start}, start_new_session=True)"
    assert examined(notebook(more=[cell(one, "mine")]))["tiny.task-1"][0] == 0
    lines = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    assert not any(marker in " ".join(line) for line in lines)


def test_a_run_has_a_folder_of_its_own_and_reads_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    more = (
        "import os\nhere = os.listdir()\ntry:\n    input()\nexcept EOFError:\n    here += ['end']"
    )
    seen = notebook("def double(x):\n    raise ValueError(here)", more=[cell(more, "mine")])
    assert examined(seen)["tiny.task-1"] == (0, "ValueError: ['end']")
    assert list(tmp_path.iterdir()) == []


def test_marks_of_a_course(tiny, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out" / "marks.csv"
    save(folder / "ann" / "tiny.ipynb", notebook(**RIGHT))
    save(folder / "bob" / "tiny.ipynb", notebook(RIGHT["double"]))
    save(folder / "cay_tiny.ipynb", "{broken")
    save(folder / "dan" / "tiny.ipynb", {"cells": [cell("1 + 1", "x")]})
    save(folder / "=eve" / "notes.ipynb", notebook())
    words = ["course", "grade", str(folder), "--out", str(out), "--exercises", str(tiny)]
    assert cli.main(words) == 0
    marks = {row.pop("student"): list(row.values())[:3] for row in read(out)}
    assert marks == {
        "'=eve": ["", "", "0"],
        "ann": ["1", "2", "3"],
        "bob": ["1", "0", "1"],
        "cay": ["0", "0", "0"],
        "dan": ["0", "0", "0"],
    }
    faults = [tuple(row.values()) for row in read(tmp_path / "out" / "marks.faults.csv")]
    assert ("bob", "tiny.task-2", "NotImplementedError: square") in faults
    assert ("cay", "tiny.task-1", "cay_tiny.ipynb is no notebook that can be read") in faults
    assert ("dan", "tiny.task-2", "its cells are not those of tiny") in faults
    assert ("'=eve", "notes.ipynb", "no exercise's name: it must end in one of tiny") in faults
    told = capsys.readouterr().out
    assert "bob      1       0       1" in told
    assert "8 faults" not in told
    assert told.count("\n") == 9

    def no_more(*_):
        raise AssertionError("examined again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grading, "examine", no_more)
        assert cli.main(words) == 0
    assert "5 of 5 students are in" in capsys.readouterr().out
    save(folder / "bob" / "tiny.ipynb", notebook(**RIGHT))
    assert cli.main(words) == 0
    assert "4 of 5 students are in" in capsys.readouterr().out
    assert {row["student"]: row["sum"] for row in read(out)}["bob"] == "3"
    assert not [
        row for row in read(tmp_path / "out" / "marks.faults.csv") if row["student"] == "bob"
    ]


def test_a_stopped_marking_keeps_what_it_has(tiny, tmp_path, monkeypatch):
    for name in ("ann", "bob"):
        save(tmp_path / "in" / name / "tiny.ipynb", notebook(**RIGHT))
    plain = grading.examine
    begun = []

    def stopping(*given):
        begun.append(given)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(grading, "examine", stopping)
    out = tmp_path / "marks.csv"
    words = ["course", "grade", str(tmp_path / "in"), "--out", str(out), "--exercises", str(tiny)]
    assert cli.main(words) == 130
    assert [row["student"] for row in read(out)] == ["ann"]
    assert cli.main(words) == 0
    assert [row["student"] for row in read(out)] == ["ann", "bob"]
    assert len(begun) == 3


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_killed_marking_leaves_no_process(end, tmp_path, tiny):
    places = tmp_path / "places"
    places.mkdir()
    save(tmp_path / "in/ann/tiny.ipynb", notebook("import time\ntime.sleep(99)"))
    command = [sys.executable, "-m", "crat", "course", "grade", str(tmp_path / "in")]
    command += ["--out", str(tmp_path / "marks.csv"), "--exercises", str(tiny)]
    env = {"PYTHONPATH": str(ROOT), "TMPDIR": str(places)}
    marking = psutil.Popen(command, env=os.environ | env)
    until = time.monotonic() + 120
    while not (children := marking.children()) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    getattr(marking, end)()
    assert marking.wait() == (130 if end == "terminate" else -9)
    _, alive = psutil.wait_procs(children, timeout=120)
    assert children
    assert not alive
    assert end == "kill" or list(places.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ("nowhere", 1, "nowhere is no folder"),
        ("empty", 1, "no notebook"),
        ("in --exercises empty", 1, "no exercises in"),
        ("in --out strange.csv", 1, "has not the marks of these exercises: name another --out"),
        ("in --out empty", 2, "is a folder: name a file"),
        ("in/ann/1_attack_by_hand.ipynb", 1, "is no folder"),
        ("in --seconds 0", 2, "a number above 0, not '0'"),
        ("in --memory much", 2, "a number above 0, not 'much'"),
        ("", 2, "required: FOLDER"),
    ],
)
def test_errors_are_one_line(words, code, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    save(tmp_path / "in" / "ann" / "1_attack_by_hand.ipynb", "{}")
    save(tmp_path / "strange.csv", "name,mark\nann,1\n")
    assert cli.main(["course", "grade", *words.split()]) == code
    told = capsys.readouterr()
    assert line in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_a_system_without_limits_of_its_own_marks_as_well(monkeypatch):
    def none(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(examinee.importlib, "import_module", none)
    examinee.limit(1, 1)  # else this process had a second to live


def test_a_notebook_of_another_exercise():
    exercises = answers.exercises()
    assert [sum(e.checks.values()) for e in exercises.values()] == [4, 5, 3, 3]
    other = answers.read(COURSE / "2_class_wise_gap.ipynb")
    with pytest.raises(answers.AnswersError, match="not those of 1_attack_by_hand"):
        exercises["1_attack_by_hand"].script(other)


def test_a_real_exercise(tmp_path):
    """Its solution, but for the last task."""
    name = "2_class_wise_gap"
    solution, exercise = (
        json.loads((COURSE / folder / f"{name}.ipynb").read_text(encoding="utf-8"))
        for folder in ("solutions", "")
    )
    stub = next(c for c in exercise["cells"] if "def confusion" in "".join(c["source"]))
    cells = [stub if c["id"] == stub["id"] else c for c in solution["cells"]]
    save(tmp_path / f"in/ann/{name}.ipynb", solution | {"cells": cells})
    grading.grade(tmp_path / "in", tmp_path / "marks.csv", examiner.Limits(1000))
    (row,) = read(tmp_path / "marks.csv")
    assert [row[f"{name}.task-{i}"] for i in range(1, 6)] == ["1", "1", "1", "1", "0"]
    (fault,) = read(tmp_path / "marks.faults.csv")
    assert fault["fault"].startswith("NotImplementedError: count the pairs")
