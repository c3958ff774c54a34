"""The benchmark of a step: both sides do the same work, and the table says what it measured."""

import runpy
import sys
from pathlib import Path

import loader
import pytest
import step
import torch
from measuring import EPS, STEP_SIZE, measured, parser
from peers import textbook_pgd

from crat.attacks import PGD
from crat.config import ConfigError, ModelConfig
from crat.data.streamed import usual_workers
from crat.nets import models


def test_the_two_attacks_take_the_same_steps():
    model = models.build(ModelConfig("small_cnn", width=4), 10, seed=0).double().eval()
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(4)
    plain = textbook_pgd(model, x, y, EPS, 3, torch.Generator().manual_seed(1))
    assert all(p.grad is not None for p in model.parameters())  # the textbook pays for these

    class Noise(PGD):
        def _start(self, images, eps, generator):
            noise = torch.empty_like(images).uniform_(-eps, eps, generator=generator)
            return (images + noise).clamp(0, 1)

    ours = Noise(EPS, STEP_SIZE, 3)(model, x, y, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


def test_one_table_in_one_run(capsys):
    step.main(["small_cnn"], batch=8, steps=2)
    lines = capsys.readouterr().out.splitlines()
    assert "torch" in lines[0]
    assert lines[1].split() == ["model", "work", "unit", "textbook", "crat", "ratio"]
    assert [line.split()[0] for line in lines[2:]] == ["small_cnn", "small_cnn"]
    assert "PGD-2 attack image-steps/s" in lines[2]
    assert "PGD-2 AT step" in lines[3]


def test_the_loader_stands_beside_the_step():
    table = loader.run([32], "small_cnn", images=12, batch=4, steps=1, turns=1)
    assert table["work"].tolist() == [
        f"loader, {usual_workers()} workers",
        "small_cnn, PGD-1 AT step",
    ]
    assert (table.crat > 0).all()
    assert table.ratio[0] > 0


@pytest.mark.parametrize(
    "numbers", [{"batch": 0, "steps": 2}, {"batch": 2, "steps": 0}], ids=["batch", "steps"]
)
def test_numbers_below_one_are_refused(numbers):
    with pytest.raises(ConfigError, match="must be at least 1, not 0"):
        step.run(["small_cnn"], **numbers)


@pytest.mark.parametrize(
    "name",
    [
        "step",
        "training",
        "attacks",
        "precision",
        "peers",
        "gpu",
        "autoattack_estimate",
        "loader",
        "hunter",
    ],
)
def test_each_script_explains_itself(name, monkeypatch, capsys):
    path = Path(step.__file__).with_name(f"{name}.py")
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


def test_a_wrong_setting_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step.py"])
    with pytest.raises(SystemExit) as ended:
        measured(parser(step.__doc__), lambda: step.run(["small_cnn"], batch=-1, steps=2))
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "step.py: error: batch must be at least 1, not -1"
    )
