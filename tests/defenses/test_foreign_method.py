"""A training method in a file of the user's: `--defense file.py:Class`."""

import subprocess
import sys

import pytest

from crat import cli
from crat.config import ConfigError, RunConfig
from crat.defenses import DEFENSES, METHODS, known_name, preset
from crat.training.run import Run

SOURCE = """
from dataclasses import dataclass
import torch.nn.functional as F
from crat import defenses

@dataclass
class Plain(defenses.Defense):
    weight: float = {weight}

    def loss(self, model, x, x_adv, y):
        logits = model(x_adv)
        losses = self.weight * F.cross_entropy(logits, y, reduction="none")
        return losses.mean(), defenses.ClassStats.of(y, losses, logits)

class Other: ...
"""
TINY = "--train-per-class 20 --valid-per-class 10 --epochs 1 --steps 1 --progress none --device cpu"


@pytest.fixture
def file(own_store, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE.format(weight=1.0))
    known = dict(DEFENSES)
    yield path
    DEFENSES.clear()
    DEFENSES.update(known)


def test_a_class_in_a_file_is_a_method(file, capsys):
    assert known_name(f"{file}:Plain") == "plain"
    assert preset(f"{file}:Plain") == {"defense": "plain", "options": {}}
    words = f"train --defense {file}:Plain --options weight=2 {TINY}"
    assert cli.main(words.split()) == 0
    assert "fashion_mnist_mini-small_cnn-plain-s0-" in capsys.readouterr().out
    config = RunConfig().but(defense=f"{file}:Plain", options={"weight": 2.0}, dtype="bfloat16")
    assert Run.of(config, "cpu").config.train.defense == "plain"


def test_another_process_knows_it_by_its_name(file):
    known_name(f"{file}:Plain")
    mine = Run.of(RunConfig().but(defense="plain"), "cpu").name
    asked = "from crat.config import RunConfig\nfrom crat.training.run import Run\n"
    asked += "print(Run.of(RunConfig().but(defense='plain'), 'cpu').name)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert done.stdout.strip() == mine, done.stderr
    # an edited method is another run
    file.write_text(SOURCE.format(weight=3.0))
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.strip() != mine
    file.unlink()
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert f"ConfigError: there is no file {file}, which has the method Plain" in done.stderr


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("{0}:Left", "has no method 'Left', a subclass of Defense; it has: Plain"),
        ("{0}:Other", "has no method 'Other', a subclass of Defense; it has: Plain"),
        ("nowhere.py:Plain", "there is no file "),
    ],
)
def test_a_fault_is_one_line(file, given, line):
    with pytest.raises(ConfigError) as caught:
        known_name(given.format(file))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_fails_is_named(file):
    file.write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError, match=r"cannot import .*mine.py: ModuleNotFoundError"):
        known_name(f"{file}:Plain")


def test_a_name_of_crats_is_refused(file):
    file.write_text(file.read_text().replace("class Plain", "class WAT"))
    with pytest.raises(ConfigError, match="wat is a method of crat's"):
        known_name(f"{file}:WAT")
    assert DEFENSES["wat"] is METHODS["wat"]
    assert "plane" not in DEFENSES
