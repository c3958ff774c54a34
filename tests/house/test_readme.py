"""README.md and docs/: size, order, generated blocks, links, commands and Python."""

import contextlib
import importlib.util
import io
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import crat
from crat import cli
from crat.config import profile
from crat.store import read_json
from crat.training.run import Run

ROOT = Path(crat.__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SMALL = "epochs=1, train_per_class=26, valid_per_class=5, steps=2, width=4, dtype='float32'"


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def test_the_readme_has_8_to_9_kilobytes_in_this_order():
    assert 8_000 <= len(README.read_bytes()) <= 9_216
    wanted = [
        "# crat",
        "![",
        "<!-- result -->",
        "## Two commands",
        "## Audit your own model",
        "## A method in 30 lines",
        "## An attack in five lines",
        "## The notebooks",
        "## How it is built",
        "## More",
        "## Licence and citation",
        "```bibtex",
    ]
    places = [text_of(README).find(part) for part in wanted]
    assert -1 not in places
    assert places == sorted(places)
    assert "supported" in "\n".join(text_of(README).splitlines()[:12])  # on the first screen


def test_the_readmes_results_are_those_of_results_and_figures():
    spec = importlib.util.spec_from_file_location("readme_block", ROOT / "docs" / "readme_block.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    text = text_of(README)
    assert made.filled(text) == text, "make readme writes the blocks anew"


def test_the_data_and_the_network_of_the_results_are_those_that_the_readme_names():
    laptop = profile("laptop")
    assert (laptop.data.name, laptop.model.name) == ("fashion_mnist", "small_cnn")
    decided = {claims.parent for claims in ROOT.glob("results/*/claims_*.json")}
    assert {folder.name for folder in decided} == {"fashion_mnist", "fashion_mnist_mini"}
    cards = [card for folder in decided for card in folder.glob("*/card.json")]
    configs = [read_json(card)["config"] for card in cards]
    assert {config["data"]["name"] for config in configs} == {folder.name for folder in decided}
    assert {config["model"]["name"] for config in configs} == {"small_cnn"}


def test_the_citation_is_that_of_the_citation_file():
    (entry,) = blocks(README, "bibtex")
    fields = dict(re.findall(r"^  (\w+) += {+(.*?)}+,?$", entry, re.MULTILINE))
    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert {name: fields[name] for name in ("title", "version", "license")} == {
        name: citation[name] for name in ("title", "version", "license")
    }
    assert fields["author"] == citation["authors"][0]["name"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", text_of(page))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_those_of_the_command_line(page):
    """Each `crat ...` names a command, and each of its flags is in that command's help."""
    shell = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = re.findall(r"(?<![\w/-])crat ([a-z].*)", shell)
    lines += re.findall(r"`crat ([a-z][^`]*)`", text_of(page))
    for line in lines:
        words = shlex.split(line.partition("  #")[0].replace("...", ""))
        command = words[:2] if words[0] == "data" else words[:1]
        shown = help_of(command)
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        unknown = [flag for flag in flags if flag not in shown]
        assert not unknown, f"crat {line}: {unknown}"


def help_of(command):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        assert cli.main([*command, "--help"]) == 0, f"no command crat {' '.join(command)}"
    return out.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_has_the_targets_that_are_named(page):
    named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", text_of(page), re.MULTILINE))
    targets = re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE)
    assert {a or b for a, b in named} <= set(targets)


@pytest.mark.parametrize("name", ["README.md", "docs/attacks.md"])
def test_the_attacks_run_as_they_are_written(name):
    (block,) = [code for code in blocks(ROOT / name, "python") if "AutoAttack" in code]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    x = torch.rand(4, 1, 28, 28)
    y = model(x).argmax(1)
    scope = {"model": model, "x": x, "y": y, "t": (y + 1) % 10, "eps_k": torch.full((10,), 8 / 255)}
    exec(block, scope)
    assert scope["x_adv"].shape == x.shape
    assert (scope["x_adv"] - x).abs().max() <= 8 / 255 + 1e-6


def test_the_plan_of_a_fine_tuning_names_its_start():
    block, *_ = blocks(ROOT / "docs" / "cli.md", "python")
    scope = {}
    exec(block, scope)
    assert scope["runs"]["tuned"].train.start_from == Run.of(scope["base"]).name


def test_the_plan_of_a_distillation_names_its_teacher():
    _, block, _ = blocks(ROOT / "docs" / "cli.md", "python")
    scope = {}
    exec(block, scope)
    assert scope["runs"]["student"].train.teacher == Run.of(scope["teacher"]).name


def test_the_example_from_python_runs_as_it_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path))
    *_, block = blocks(ROOT / "docs" / "cli.md", "python")
    battery = 'standard_battery("fashion_mnist_mini")'
    assert "epochs=4" in block
    assert battery in block
    exec(block.replace("epochs=4", SMALL).replace(battery, f"{battery}, first=100"), {})
    assert "PGD-20" in capsys.readouterr().out
