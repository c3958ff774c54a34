"""The committed notebooks: their anatomy, their outputs, and the size of their live trainings.

pytest runs nbval on them besides (pyproject.toml): every cell again, its output compared.
"""

import ast
import json
import re
from pathlib import Path

import pytest
from nbval.plugin import get_sanitize_patterns

from crat import data
from crat.batch.parameters import declared
from crat.outcomes import margins
from crat.papers import LIVE, PLANS

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    every = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell, "".join(cell["source"])) for cell in every if cell["cell_type"] == kind]


def test_there_are_notebooks_and_each_has_its_plan():
    assert {path.stem[:2] for path in NOTEBOOKS} == set(PLANS)


@each_notebook
def test_anatomy(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert path.stat().st_size < 1_000_000
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")
    code = cells(path, "code")
    tagged = [source for cell, source in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert len(tagged[0].splitlines()) <= 12
    assert {"profile", "seed"} <= declared(path).keys()
    # times and paths of one machine
    assert all("papermill" not in cell["metadata"] for cell, _ in code)
    prose = len(cells(path, "markdown"))
    assert 0.4 <= prose / len(code) <= 1.5


PARAMETERS = {"profile": "quick", "seed": 0, "data": "", "seeds": "", "recompute": False}
BY_EVIDENCE = [
    path for path in NOTEBOOKS if "crat.papers.evidence" in path.read_text(encoding="utf-8")
]
each_by_evidence = pytest.mark.parametrize("path", BY_EVIDENCE, ids=lambda path: path.stem)


@each_by_evidence
def test_a_notebook_has_the_parameters_of_all_notebooks(path):
    more = {"06": {"further": ""}, "01": {"start_from": ""}, "05": {"start_from": ""}}
    assert declared(path) == PARAMETERS | more.get(path.name[:2], {})


@each_by_evidence
def test_lines_are_of_100_columns(path):
    """But for formulas and rows of tables, which cannot be broken."""
    for kind in ("code", "markdown"):
        for _, source in cells(path, kind):
            lines = [line for line in source.splitlines() if not line.startswith(("|", "$$", "\\"))]
            assert max(map(len, lines), default=0) <= 100, source


def test_no_function_is_defined_in_two_notebooks():
    defined = [
        node.name
        for path in BY_EVIDENCE
        for _, source in cells(path, "code")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("__")
        and node.name != "forward"
    ]
    assert len(defined) == len(set(defined)), sorted(
        name for name in set(defined) if defined.count(name) > 1
    )


@each_notebook
def test_cells_and_functions_are_short(path):
    for cell, source in cells(path, "code"):
        tree = ast.parse(source)
        imports = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        lines = len(source.splitlines()) - sum(n.end_lineno - n.lineno + 1 for n in imports)
        assert lines <= 15, source
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 10, node.name
        assert all(output["output_type"] != "error" for output in cell["outputs"]), source


@each_notebook
def test_every_cell_was_run_and_enough_is_compared(path):
    """An output-stripped notebook would pass nbval with nothing compared."""
    code = [(cell, source) for cell, source in cells(path, "code") if source.strip()]
    assert [cell["execution_count"] for cell, _ in code] == list(range(1, len(code) + 1))
    compared = [
        cell
        for cell, source in code
        if "NBVAL_IGNORE_OUTPUT" not in source and any(map(is_text, cell["outputs"]))
    ]
    asserted = [source for _, source in code if "assert" in source]
    assert len(compared) >= 5
    assert asserted
    # what is ignored must have a reason to differ: a device, a training, a drawing
    for cell, source in code:
        if "NBVAL_IGNORE_OUTPUT" in source:
            reasons = (
                "setting",
                "describe",
                "outcomes",
                "judge(",
                "train(",
                "import",
                "plots.",
                "to_string",
            )
            assert any(word in source for word in reasons), source
            assert cell["outputs"] or any(
                word in source for word in ("import", "outcomes", "judge(")
            ), source


def is_text(output):
    return output["output_type"] == "stream" or "text/plain" in output.get("data", {})


@each_notebook
def test_figures_come_with_their_tables(path):
    """Every figure that is saved names its table; the committed laptop figures have both files."""
    saved = sum(source.count("plots.save(") for _, source in cells(path, "code"))
    assert saved >= 3
    published = ROOT / "figures" / "laptop" / path.stem
    if path.stem[:2] != "00":  # which is live, all of it
        drawn = {file.stem for file in published.glob("*.png")}
        assert len(drawn) == saved
        assert drawn == {file.stem for file in published.glob("*.csv")}


@pytest.mark.parametrize("number", PLANS)
def test_what_a_notebook_trains_while_its_reader_waits_is_small(number):
    """Passes are counted, not timed: 110,000 images forward and back took 10 s of one core."""
    live = LIVE.get(number, ()) if number == "00" else ("live",)
    runs = {key: run.resolved() for key, run in PLANS[number]("quick", 0).items() if key in live}
    assert runs.keys() == set(live)
    for key, run in runs.items():
        images = data.load(run.data)
        passes = (
            run.train.epochs * (len(images.y_train) + len(images.y_valid)) * (run.train.steps + 1)
        )
        assert passes <= 120_000, key
        assert run.model.width == 8, key


def test_a_kept_run_is_not_compared():
    """A cell prints one line more where another notebook of the session trained the same run."""
    text = (ROOT / "tests" / "nbval_sanitize.cfg").read_text()
    patterns = get_sanitize_patterns(text)
    assert len(patterns) == text.count("regex: ")
    told = "before\nkept: mini-pgd_at-s0-12ab, trained 26 November 14:02\nafter: kept: 3\n"
    for pattern, instead in patterns:
        told = re.sub(pattern, instead, told)
    assert told == "before\nafter: kept: 3\n"


@pytest.mark.parametrize("number", [number for number in PLANS if number != "00"])
def test_published_results_are_whole(number):
    """Every run of a notebook but the live one is published with card, history and outcomes."""
    from crat.training.run import Run

    evidence = {key: config for key, config in PLANS[number]("quick", 0).items() if key != "live"}
    for key, config in evidence.items():
        run = Run.of(config)
        assert run.published is not None, key
        card = run.card()
        assert card["finished"], key
        assert len(run.history()) == config.train.epochs * 2 * len(card["classes"]), key
        compact = (run.published / margins.NAME).exists()
        assert compact or list((run.published / "eval").glob("test-*.npz")), key
        weights = [path.name for path in run.published.rglob("*.safetensors")]
        assert weights in ([], ["best.safetensors"]), key
