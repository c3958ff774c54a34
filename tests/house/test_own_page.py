"""docs/own.md: its files, commands and Python run, in their order, as a reader would type them."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import crat
from crat import cli
from crat.data.registry import DATASETS

PAGE = Path(crat.__file__).resolve().parents[1] / "docs" / "own.md"


def blocks(section):
    """The Python and shell blocks of a section, in their order: (language, text)."""
    text = PAGE.read_text(encoding="utf-8")
    (body,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return re.findall(r"```(python|sh)\n(.*?)```", body, re.DOTALL)


@pytest.fixture
def typed(tmp_path, own_store, monkeypatch):
    """Types a section in an empty folder; returns the names that its Python without a file made."""
    monkeypatch.setenv("CRAT_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    known = dict(DATASETS)
    modules = set(sys.modules)

    def run(section):
        scope = {}
        for language, text in blocks(section):
            if language == "sh":
                for line in text.splitlines():
                    command(shlex.split(line))
            elif named := re.match(r"# (\w+\.py)\n", text):
                Path(named[1]).write_text(text)
            else:
                exec(text, scope)
        return scope

    yield run
    DATASETS.clear()
    DATASETS.update(known)
    for name in set(sys.modules) - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == tmp_path:
            del sys.modules[name]


def command(words):
    if words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
        return
    assert words[0] == "crat"
    assert cli.main(words[1:]) == 0


def card_of(folder):
    return json.loads(Path(folder, "card.json").read_text())


def test_a_network_of_torchvision(typed):
    typed("A network of torchvision or timm")
    card = card_of("vision")
    assert (card["resize"], card["images"], card["model"]) == (224, 10, "Net")
    assert card["attacks"].keys() == {"PGD-20"}
    assert 700_000 < card["parameters"] < 800_000
    assert "chance is 10.0 %" in card["warnings"][-1]
    assert Path("vision/confusion.png").exists()


def test_a_network_that_normalises_itself(typed, capsys):
    typed("A network that normalises itself")
    told = capsys.readouterr().out
    assert "robust.py:net: Robust, 5,338 parameters, weights " in told
    assert "fashion_mnist_mini: 50 test images, Linf 0.1" in told
    assert r"\toprule" in Path("robust.tex").read_text()


def test_from_python(typed, capsys):
    (_, source), *_ = blocks("A network that normalises itself")
    Path("robust.py").write_text(source)
    scope = typed("From Python")
    table = scope["table"]
    assert isinstance(table, pd.DataFrame)
    assert set(table.attack) == {"clean", "FGSM", "PGD-20", "union"}
    assert table["class"].nunique() == 10
    assert "'card.json', 'class_bars.csv'" in capsys.readouterr().out
    card = card_of(scope["judged"].folder)
    assert (card["images"], card["eps"], card["model"]) == (60, "8/255", "Robust")


def test_images_of_your_own(typed, capsys):
    typed("Images of your own")
    card = card_of("trees")
    assert card["data"].startswith("photos-")
    assert card["images"] == 30
    assert card["results"]["clean"]["average"] == 1
    assert re.search(r"\nphotos-[0-9a-f]{8}-small_cnn-pgd_at-s0-", capsys.readouterr().out)
    assert pd.read_csv("trees/broken_by.csv")["class"].tolist() == ["ash", "birch", "cherry"]


def test_the_call_in_attacks_md(typed):
    text = PAGE.with_name("attacks.md").read_text(encoding="utf-8")
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "audit_" in code]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 10))
    scope = {"model": model, "x": torch.rand(20, 3, 3, 3), "y": torch.arange(20) % 10}
    exec(code, scope)
    assert card_of(scope["folder"])["images"] == 20
    assert scope["outcomes"].robust("FGSM").shape == (20,)


def test_every_block_is_in_a_section_that_is_typed():
    text = PAGE.read_text(encoding="utf-8")
    sections = re.findall(r"^## (.*)$", text, re.M)
    every = re.findall(r"```(python|sh)\n(.*?)```", text, re.DOTALL)
    assert [block for section in sections for block in blocks(section)] == every
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'typed("{section}")' in source for section in sections)
