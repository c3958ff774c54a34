"""The course: solutions are green, exercises red at their first check, answers are checked."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbclient
import nbformat
import pytest
import yaml

from crat import defenses
from crat.batch.parameters import declared
from crat.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]
COURSE = ROOT / "notebooks" / "course"
sys.path.insert(0, str(COURSE))
import build as course  # noqa: E402

NAMES = sorted(path.name for path in (COURSE / "solutions").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("name", NAMES)

# the notebooks' parameters for a quick pass; the checks must hold then, too
SMALL = {
    "1_attack_by_hand.ipynb": {"epochs": 2, "n_images": 40},
    "2_class_wise_gap.ipynb": {"repeats": 2000},
    # so many images that none alone decides a check
    "3_temperature_pgd.ipynb": {"epochs": 1, "train_per_class": 60, "n_images": 300},
    "4_cfa_margin.ipynb": {"epochs": 1, "train_per_class": 60, "n_images": 200},
}

# notebook, what a student may write instead of the right thing, and what the check says to it
WRONG = [
    ("1", "(losses(model, x, y).sum(), x)", "(losses(model, x, y).mean(), x)", "sum the losses"),
    (
        "1",
        "return torch.autograd.grad(losses(model, x, y).sum(), x)[0]",
        "losses(model, x, y).sum().backward(); return x.grad",
        "the weights' .grad was filled",
    ),
    (
        "1",
        "x + eps * gradient(model, x, y).sign()).clamp(0, 1)",
        "x + eps * gradient(model, x, y).sign())",
        "no image",
    ),
    ("1", "x + eps * gradient", "x + 2 * eps * gradient", "leaves the eps-ball"),
    ("1", "x + eps * gradient", "x - eps * gradient", "crat's attack moves"),
    ("1", "(x + (x_adv - x).clamp(-eps, eps))", "x_adv", "leaves the eps-ball"),
    ("1", "gradient(model, x_adv, y)", "gradient(model, x, y)", "taken at the present point"),
    (
        "1",
        "project(x_adv + step_size * gradient(model, x_adv, y).sign(), x, eps)",
        "x_adv + step_size * gradient(model, x_adv, y).sign()",
        "leaves the eps-ball",
    ),
    (
        "2",
        "right = (clean == y) & (attacked == y)",
        "right = attacked == y",
        "wrong when clean does not count",
    ),
    ("2", "right[y == k].mean()", "right[y == k].sum() / len(y)", "own number of images"),
    ("2", "if (y == k).any() else np.nan", "if (y == k).any() else 0", "class 2 has none"),
    ("2", "return centre - half, centre + half", "return k / n, k / n", "none of 20"),
    ("2", ".min(1).mean()", ".mean(1).min()", "nothing to choose"),
    (
        "2",
        "(second[first.argmin()] + first[second.argmin()])",
        "(first.min() + second.min())",
        "the two minima",
    ),
    ("2", "(y, predicted), 1)", "(predicted, y), 1)", "true class down"),
    (
        "3",
        'wrong = z.scatter(1, y[:, None], float("-inf"))\n    return (wrong / T).softmax(1)',
        "return (z / T).softmax(1)",
        "the true class has weight 0",
    ),
    ("3", "(wrong / T).softmax(1)", "wrong.softmax(1)", "at T = 0.5"),
    ("3", "(wrong / T).logsumexp(1)", "(wrong / T).exp().sum(1).log()", "an exponential overflows"),
    (
        "3",
        "return (wrong / T).logsumexp(1) - z.gather(1, y[:, None])[:, 0] / T",
        'return F.cross_entropy(z / T, y, reduction="none")',
        "should be the cross-entropy",
    ),
    ("4", "train.accuracy", "valid.accuracy", "not on validation"),
    ("4", 'torch.where(train.n > 0, moved, self.state["eps"])', "moved", "was not seen"),
    ("4", "* self.attack.eps", '* self.state["eps"]', "the same t_k again"),
    (
        "4",
        "after.astype(float) - before.astype(float)",
        "before.astype(float) - after.astype(float)",
        "after minus",
    ),
    ("4", "1.96 * d.std()", "1.96 * np.sqrt(before.var() + after.var())", "image by image"),
]


def code(path):
    """(tags, source) of each code cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        (c["metadata"].get("tags", []), "".join(c["source"]))
        for c in cells
        if c["cell_type"] == "code"
    ]


class Kernel:
    """One namespace for the cells of a notebook, with smaller parameters after their cell."""

    def __init__(self, name):
        self.names, self.small = {"__name__": "notebook"}, SMALL[name]

    def run(self, tags, source):
        exec(compile(source, "<cell>", "exec", dont_inherit=True), self.names)
        plt.close("all")
        if "parameters" in tags:
            assert self.small.keys() <= self.names.keys()
            self.names.update(self.small)


@pytest.fixture
def kernel(name, monkeypatch):
    monkeypatch.setitem(defenses.DEFENSES, "my_margin", None)  # taken back at the end
    with matplotlib.rc_context({"backend": "Agg"}):
        yield Kernel(name)


def with_one_gap(source):
    """The cell with one answer missing, for each of its answers."""
    lines = source.split("\n")
    marks = [
        i for i, line in enumerate(lines) if line.strip().startswith((course.BEGIN, course.END))
    ]
    for pair in zip(marks[::2], marks[1::2], strict=True):
        yield course.without_answers(
            "\n".join(line for i, line in enumerate(lines) if i not in marks or i in pair)
        )


@each_notebook
def test_each_check_is_red_until_its_answer_is_right(name, kernel):
    """The solution is green; every check is tried with gaps and with the mistakes of WRONG."""
    answered = []
    wrong = {w for w in WRONG if w[0] == name[0]}
    checks = 0
    for tags, source in code(COURSE / "solutions" / name):
        if "check" in tags:
            assert answered, "a check follows what it checks"
            for answer in answered:
                for gap in with_one_gap(answer):
                    kernel.run([], gap)
                    with pytest.raises(NotImplementedError):
                        kernel.run([], source)
                for mistake in [w for w in wrong if w[1] in answer]:
                    kernel.run([], answer.replace(mistake[1], mistake[2]))
                    with pytest.raises(AssertionError, match=mistake[3]):
                        kernel.run([], source)
                    wrong.discard(mistake)
                kernel.run([], answer)
            answered, checks = [], checks + 1
        kernel.run(tags, source)
        answered += [source] if course.BEGIN in source else []
    assert checks >= 2
    assert not answered
    assert not wrong, "no answer holds what these replace"


@each_notebook
def test_an_exercise_runs_up_to_its_first_check(name, kernel):
    cells = code(COURSE / name)
    first = next(i for i, (tags, _) in enumerate(cells) if "check" in tags)
    for tags, source in cells[:first]:
        kernel.run(tags, source)
    with pytest.raises(NotImplementedError):
        kernel.run(*cells[first])


def test_a_real_kernel_agrees():
    """An exercise in Jupyter's own kernel, red where it should be; its solution is green."""
    name = "2_class_wise_gap.ipynb"
    exercise, solution = (
        nbformat.read(COURSE / folder / name, as_version=4) for folder in ("", "solutions")
    )
    settings = {
        "timeout": 120,
        "kernel_name": "python3",
        "resources": {"metadata": {"path": str(COURSE)}},
    }
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="NotImplementedError"):
        nbclient.NotebookClient(exercise, **settings).execute()
    last = max(
        (c for c in exercise.cells if c.get("execution_count")), key=lambda c: c.execution_count
    )
    assert "check" in last.metadata.tags
    nbclient.NotebookClient(solution, **settings).execute()
    assert any(
        "image/png" in out.get("data", {}) for c in solution.cells for out in c.get("outputs", [])
    )


@each_notebook
def test_anatomy(name):
    solution, exercise = (
        json.loads((COURSE / folder / name).read_text()) for folder in ("solutions", "")
    )
    for notebook in (solution, exercise):
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not any(c.get("outputs") or c.get("execution_count") for c in exercise["cells"])
    assert course.has_outputs(solution)
    told = [str(cell.get("outputs", "")) for cell in solution["cells"]]
    assert any("image/png" in text for text in told)
    assert not any(str(ROOT) in text or "'error'" in text for text in told)
    lines = [
        re.sub(r" *### .*\n", "", source).splitlines()
        for _, source in code(COURSE / "solutions" / name)
    ]
    assert max(map(len, lines)) <= 15
    assert SMALL[name].keys() <= declared(COURSE / name).keys()
    prose = [
        "".join(cell["source"]) for cell in exercise["cells"] if cell["cell_type"] == "markdown"
    ]
    assert {"## What you have made", "## Think", "## Go on"} <= {
        text.split("\n")[0] for text in prose
    }
    texts = ["".join(cell["source"]) for cell in exercise["cells"]]
    assert not any(word in text for text in texts for word in ("SOLUTION", "lecturer"))
    minutes = int(re.search(r"\*\*Time\*\*:\s+(\d+)\s+minutes", prose[0])[1])
    assert minutes <= 45
    row = next(
        line for line in (COURSE / "README.md").read_text().splitlines() if f"({name})" in line
    )
    assert f"| {minutes} min |" in row


def violations(metadata):
    """What nbgrader's schema, version 3, has against the metadata of a cell of code."""
    kinds = {name: bool for name in ("grade", "solution", "locked", "task")}
    kinds |= {"schema_version": int, "grade_id": str, "cell_type": str, "points": int}
    wrong = [name for name, value in metadata.items() if type(value) is not kinds.get(name)]
    wrong += sorted(kinds.keys() - {"points"} - metadata.keys())
    fits = metadata["schema_version"] == 3 and metadata["cell_type"] == "code"
    named = re.fullmatch(r"[a-zA-Z0-9_\-]+", metadata["grade_id"])
    scored = ("points" in metadata) == metadata["grade"]
    return wrong + ["its values"] * (not (fits and named and scored))


@each_notebook
@pytest.mark.parametrize("folder", ["", "solutions"])
def test_nbgrader_knows_answers_and_checks(folder, name):
    cells = json.loads((COURSE / folder / name).read_text())["cells"]
    marks = [cell["metadata"].get("nbgrader") for cell in cells]
    known = [mark for mark in marks if mark]
    assert [violations(mark) for mark in known] == [[]] * len(known)
    assert len({mark["grade_id"] for mark in known}) == len(known)
    for cell, mark in zip(cells, marks, strict=True):
        source = "".join(cell["source"])
        is_answer = course.BEGIN in source or "raise NotImplementedError" in source
        assert (mark or {}).get("solution", False) == is_answer
        is_check = "check" in cell["metadata"].get("tags", [])
        assert (mark or {}).get("grade", False) == is_check
        assert not mark or mark["locked"] == is_check
    answers = "".join("".join(c["source"]) for c in cells)
    tasks = max(answers.count(course.BEGIN), answers.count("raise NotImplementedError"))
    assert sum(mark.get("points", 0) for mark in known) == tasks


def test_no_badge_leads_nowhere():
    """CITATION.cff names no repository yet."""
    known = course.cited(ROOT)
    for name in NAMES:
        text = (COURSE / name).read_text()
        assert ("badge" in text) == ("mybinder" in text) == bool(known)
    assert "mybinder.org/badge" not in (COURSE / "README.md").read_text()


def test_the_committed_exercises_are_those_of_the_solutions(capsys):
    assert course.main(["--check"]) == 0
    assert capsys.readouterr().out == "4 exercises in notebooks/course, 0 of them changed\n"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with one solution and nothing built."""
    answer = [
        "def f():\n",
        "    ### BEGIN SOLUTION one\n",
        "    return 1\n",
        "    ### END SOLUTION",
    ]
    title = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Title"]}
    cell = {
        "cell_type": "code",
        "id": "b",
        "metadata": {},
        "source": answer,
        "outputs": [],
        "execution_count": None,
    }
    check = cell | {
        "id": "d",
        "metadata": {"tags": ["check"]},
        "source": ["import os\n", "assert f() == 1\n", "print(os.getcwd())"],
    }
    said = {
        "cell_type": "markdown",
        "id": "c",
        "metadata": {"tags": ["solution"]},
        "source": ["secret"],
    }
    (tmp_path / "notebooks/course/solutions").mkdir(parents=True)
    path = tmp_path / "notebooks/course/solutions/1.ipynb"
    path.write_text(
        json.dumps(
            {
                "cells": [title, cell, check, said],
                "metadata": {},
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        )
    )
    monkeypatch.setattr(course, "ROOT", tmp_path)
    return tmp_path


def test_build_and_check(checkout, capsys):
    assert course.main(["--check"]) == 1
    told = capsys.readouterr().err
    names = "solutions/1.ipynb, 1.ipynb"
    assert told == f"{names}: not what the solutions give; without --check they are written\n"
    assert course.main([]) == 0
    assert course.main(["--check"]) == 1
    told = capsys.readouterr().err
    assert told == "1.ipynb: no outputs, or those of other code; --execute makes them\n"
    built = json.loads((checkout / "notebooks/course/1.ipynb").read_text())
    title, where, setup, task, check = built["cells"]
    assert title["source"] == ["# Title"]
    assert "make lab" in "".join(where["source"])
    assert 'repository = ""' in "".join(setup["source"])
    assert (
        "".join(task["source"])
        == 'def f():\n    # your code here: one\n    raise NotImplementedError("one")'
    )
    assert (task["outputs"], task["execution_count"]) == ([], None)
    assert check["metadata"]["nbgrader"]["points"] == 1
    assert course.main(["--check", "--repository", "a/b"]) == 1
    assert course.main(["--repository", "a b"]) == 2


def test_a_solution_is_run_and_its_outputs_are_kept(checkout, capsys):
    assert course.main(["--execute"]) == course.main(["--check"]) == 0
    path = checkout / "notebooks/course/solutions/1.ipynb"
    text = path.read_text()
    (said,) = json.loads(text)["cells"][2]["outputs"]
    assert said["text"] == [f"{Path('notebooks/course')}\n"]  # no word of where it was run
    assert "outputs" in json.loads((checkout / "notebooks/course/1.ipynb").read_text())["cells"][3]
    path.write_text(text.replace("return 1", "return 2"))
    assert course.main(["--check"]) == 1
    assert "no outputs, or those of other code" in capsys.readouterr().err
    before = path.read_text()
    assert course.main(["--execute"]) == 1
    assert "1.ipynb: AssertionError" in capsys.readouterr().err
    assert path.read_text() == before


@pytest.mark.parametrize(("kinds", "line"), [("c", "without an answer"), ("aca", "has no check")])
def test_answers_and_checks_must_pair(kinds, line):
    cells = {
        "a": {"cell_type": "code", "metadata": {}, "source": [course.BEGIN, "\n", course.END]},
        "c": {"cell_type": "code", "metadata": {"tags": ["check"]}, "source": []},
    }
    with pytest.raises(course.CourseError, match=line):
        course.with_marks([cells[kind] for kind in kinds])


def test_badges_lead_to_the_repository_that_is_cited(checkout):
    (checkout / "CITATION.cff").write_text(
        'title: x\nrepository-code: "https://github.com/some-one/crat.git"\n'
    )
    assert course.cited(checkout) == "some-one/crat"
    course.build(checkout)
    text = (checkout / "notebooks/course/1.ipynb").read_text()
    place = "notebooks/course/1.ipynb"
    assert f"(https://colab.research.google.com/github/some-one/crat/blob/main/{place})" in text
    assert f"(https://mybinder.org/v2/gh/some-one/crat/HEAD?urlpath=lab/tree/{place})" in text
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        course.checked("some-one")


@pytest.mark.parametrize(
    "source",
    [
        "### BEGIN SOLUTION\n1",
        "### END SOLUTION",
        "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION",
    ],
)
def test_markers_must_pair(source):
    with pytest.raises(course.CourseError, match="END SOLUTION"):
        course.without_answers(source)


def test_a_notebook_without_a_task_and_a_folder_without_notebooks_are_errors(tmp_path):
    with pytest.raises(course.CourseError, match="nothing to solve"):
        course.stripped({"cells": []}, "x.ipynb")
    with pytest.raises(course.CourseError, match="no solutions"):
        course.marked(tmp_path)


def test_the_set_up_cell_acts_only_where_crat_is_missing(monkeypatch):
    called = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: called.append(command))
    monkeypatch.setattr(sys, "path", list(sys.path))
    setup = "".join(course.opening("x.ipynb", "a/b")[1]["source"])
    exec(setup, {})
    assert called == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(setup, {})
    assert [command[0] for command in called] == ["git", sys.executable]
    assert "https://github.com/a/b" in called[0]
    assert sys.path[0] == "crat-clone"
    with pytest.raises(AssertionError, match="OWNER/NAME"):
        exec("".join(course.opening("x.ipynb")[1]["source"]), {})


def test_binder_installs_what_the_project_needs():
    """conda's torch for the CPU, and the figures; torchvision is for other data sets only."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python, *packages = yaml.safe_load((ROOT / ".binder/environment.yml").read_text())[
        "dependencies"
    ]
    assert python == "python=3.12"
    wanted = {
        text.replace("torch>", "pytorch-cpu>")
        for text in [*project["dependencies"], *project["optional-dependencies"]["plots"]]
        if "torchvision" not in text
    }
    assert set(packages) == wanted | {"pip"}
    assert "pip install --no-deps" in (ROOT / ".binder/postBuild").read_text()
