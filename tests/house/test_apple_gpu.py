"""Training, attacks and corruptions on a device that refuses what Apple's GPU refuses (apple.py).

There is no such GPU where the tests run. The stand-in computes as the CPU does, so that every check
is to the last bit: what differs is a mistake of ours, such as a float64 tensor on the device.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crat import device, distributed
from crat.cli import main
from crat.config import ConfigError
from crat.data.images import Batches
from crat.defenses import DEFENSES
from crat.training.averaging import EMA

TESTS = Path(__file__).parents[1]
APPLE = torch.device("mps", 0)


@pytest.fixture(scope="module")
def found():
    """Name of a check -> "" or what is wrong: all checks in a process of their own."""
    done = subprocess.run(
        [sys.executable, TESTS / "apple_checks.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def wrong(found, kind):
    names = [name for name in found if name.startswith(kind)]
    assert names
    return {name: found[name] for name in names if found[name]}


def test_the_stand_in_refuses_float64(found):
    assert found["the device refuses what Apple's refuses"] == ""


def test_every_method_trains_there_as_on_the_cpu(found):
    assert {f"train {name}" for name in DEFENSES} <= found.keys()
    assert wrong(found, "train") == {}


def test_every_attack_and_corruption_runs_there_as_on_the_cpu(found):
    assert wrong(found, "attack") == {}
    assert wrong(found, "corrupt") == {}


def test_nothing_else_is_wrong_there(found):
    assert wrong(found, "") == {}


def test_where_there_is_none_one_line_says_so(capsys):
    if torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    assert main(["train", "--device", "mps"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("crat: device 'mps' cannot be used here; this machine has cpu")
    assert error.count("\n") == 1


def test_float64_is_float32_there_and_stays_elsewhere():
    assert device.finest(APPLE) == torch.float32
    assert device.finest(torch.device("cpu")) == torch.float64
    assert device.finest(torch.device("cuda", 0)) == torch.float64
    values = torch.tensor([0.1], dtype=torch.float64)
    assert device.moved(values, torch.device("cpu")).dtype == torch.float64
    assert device.precise(values.float()).dtype == torch.float64


def test_auto_is_float32_there():
    assert device.pick_dtype("auto", APPLE) == "float32"


def test_a_card_names_the_gpu(monkeypatch):
    assert device.describe(APPLE).endswith("its GPU (mps)")
    assert device.describe(torch.device("cpu")).endswith("threads")


def test_several_processes_do_not_train_there(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigError, match="on CPUs or CUDA GPUs, not mps:0: start crat without"):
        distributed.join(APPLE)


def test_on_a_cpu_the_draw_of_classes_and_the_average_are_those_of_float64():
    """The numbers of published runs: each as plainly written."""
    x, y = torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1, 1, 2, 2])
    probs = torch.tensor([0.1, 0.3, 0.6])
    drawn = torch.Generator().manual_seed(3)
    order = Batches(x, y, 2, generator=drawn, class_probs=probs)._order()
    weights = (probs.double() / 2)[y]
    plainly = torch.Generator().manual_seed(3)
    assert torch.equal(order, torch.multinomial(weights, 6, replacement=True, generator=plainly))
    net, average = torch.nn.Linear(2, 1), EMA(0.9)
    average.update(net)
    before = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1)
    average.update(net)
    share = torch.tensor(1 - 0.9, dtype=torch.float64).to(before)
    assert torch.equal(average.state["weight"], before.lerp(net.weight.detach(), share))
