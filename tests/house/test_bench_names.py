"""Benchmarks are run by hand, so a test looks whether crat still has what they ask it for."""

import ast
import importlib
import types
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = sorted(BENCHMARKS.rglob("*.py"))


def imported(tree):
    """Name in the file -> what it stands for, of everything that is imported from crat."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "crat":
            module = importlib.import_module(node.module)
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                there = hasattr(module, alias.name)
                thing = getattr(module, alias.name) if there else importlib.import_module(whole)
                found[alias.asname or alias.name] = thing
    return found


def missing(source):
    """The attributes of crat's modules that a file uses and that are not there."""
    tree = ast.parse(source)
    modules = {k: v for k, v in imported(tree).items() if isinstance(v, types.ModuleType)}
    used = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    named = [(n.value.id, n.attr) for n in used if isinstance(n.value, ast.Name)]
    return [f"{m}.{attr}" for m, attr in named if m in modules and not hasattr(modules[m], attr)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_benchmark_asks_for_what_is_there(path):
    assert missing(path.read_text(encoding="utf-8")) == []


def test_what_is_gone_is_found():
    source = "from crat.analysis import two_phase\ntwo_phase.choose\ntwo_phase.gone()\n"
    assert missing(source) == ["two_phase.gone"]
    with pytest.raises(ModuleNotFoundError, match="gone"):
        missing("from crat.analysis import gone\n")
