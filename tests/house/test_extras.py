"""crat as a library beside others: the core alone, and what an extra adds."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from crat.extras import EXTRAS, MissingExtra, needs

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {Requirement(text).name for text in PROJECT["dependencies"]}
PACKAGES = {"yaml": "pyyaml", "myst_nb": "myst-nb", "sphinx_book_theme": "sphinx-book-theme"}
ALONE = f"""
import importlib.abc, importlib.util, sys
GONE = {set(EXTRAS) | {"IPython", "jupyter_client", "nbformat", "ipykernel"}!r}
class Gone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in GONE:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in GONE else real(name, *a)
sys.meta_path.insert(0, Gone())
"""
TINY = (
    "--data fashion_mnist_mini --epochs 1 --train-per-class 8 --valid-per-class 2 --steps 1 "
    "--width 4 --device cpu --progress none"
)


def alone(code, tmp_path):
    """Runs code where no extra is installed; returns what it printed and its error."""
    env = {"PYTHONPATH": str(ROOT), "CRAT_RUNS": str(tmp_path / "runs")}
    return subprocess.run(
        [sys.executable, "-c", ALONE + code],
        capture_output=True,
        text=True,
        env=os.environ | env,
        cwd=tmp_path,
    )


def test_every_package_of_the_table_is_in_its_extra():
    extras = PROJECT["optional-dependencies"]
    for module, extra in EXTRAS.items():
        names = {Requirement(text).name for text in extras[extra]}
        assert PACKAGES.get(module, module) in names, module
        assert PACKAGES.get(module, module) not in CORE, module


def test_the_core_is_what_attacks_and_training_import():
    names = "filelock numpy pandas pillow safetensors scipy torch torchvision tqdm"
    assert set(names.split()) == CORE
    assert all(re.search(r">=", text) and "==" not in text for text in PROJECT["dependencies"])


def test_the_page_has_the_bounds_of_the_project():
    page = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    told = page.partition("with loose bounds: ")[2].partition(" or newer")[0]
    words = dict(re.findall(r"(\w+) ([\d.]+\d)", told))
    bounds = {
        r.name: str(r.specifier).removeprefix(">=")
        for r in map(Requirement, PROJECT["dependencies"])
    }
    assert len(words) == 5
    assert {word.lower(): bounds[word.lower()] for word in words} == {
        word.lower(): version for word, version in words.items()
    }
    extras = set(PROJECT["optional-dependencies"]) - {"test", "lint"}
    assert extras <= set(re.findall(r"`(\w+)`", page.partition("| extra |")[2]))


def test_attacks_training_and_an_audit_need_no_extra(tmp_path):
    code = f"""
import crat.attacks, crat.defenses, crat.corruptions, crat.outcomes, crat.papers
from crat.analysis import metrics, claims
from crat.cli import main
from crat.store import home
assert main("train {TINY}".split()) == 0
(name,) = [path.name for path in home().glob("fashion*")]
assert main(f"evaluate {{name}} --images 20 --attacks FGSM --device cpu".split()) == 0
asked = f"audit {{name}} --data fashion_mnist_mini --images 20 --attacks FGSM --device cpu"
assert main(asked.split()) == 0
"""
    done = alone(code, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no figures without matplotlib, seaborn: pip install 'crat[plots]'" in done.stdout
    (card,) = tmp_path.glob("runs/audits/*/card.json")
    assert {path.name for path in card.parent.iterdir()} >= {"class_wise.csv", "card.json"}
    assert not list(card.parent.glob("*.png"))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("crat.plots", "crat.plots needs matplotlib, seaborn: pip install 'crat[plots]'"),
        ("crat.batch", "crat.batch needs psutil: pip install 'crat[notebooks]'"),
    ],
)
def test_what_needs_an_extra_says_so_in_a_line(module, line, tmp_path):
    done = alone(f"import {module}", tmp_path)
    assert done.stderr.splitlines()[-1] == f"crat.extras.MissingExtra: {line}"


def test_a_command_that_needs_an_extra_says_so_in_a_line(tmp_path):
    done = alone("from crat.cli import main; sys.exit(main(['reproduce', '--dry-run']))", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "crat: crat.batch needs psutil: pip install 'crat[notebooks]'\n"


def test_all_lacking_extras_are_in_the_line(monkeypatch):
    monkeypatch.setattr("crat.extras.missing", lambda *modules: list(modules))
    with pytest.raises(MissingExtra, match=r"pip install 'crat\[plots,site\]'"):
        needs("this", "seaborn", "sphinx")
    monkeypatch.undo()
    needs("this", "json")
