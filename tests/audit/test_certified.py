"""`crat audit --certify`: the bracket of a small network, its card, its file, what it refuses."""

import json

import pandas as pd
import pytest

from crat import cli

NET = """
from torch import nn
from crat.config import ModelConfig
from crat.nets.models import build
def small():
    return build(ModelConfig("small_cnn", width=1), 10, (1, 28, 28))
def pooled():
    return build("lenet5", 10, (1, 28, 28))
class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small()
    def forward(self, x):
        return self.net(x)
"""


@pytest.fixture
def certify(own_store, monkeypatch, tmp_path, capsys):
    """Runs `crat audit --certify` on 20 images: exit code, stdout, stderr."""
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)

    def run(words, certify="--certify"):
        shared = "--data fashion_mnist_mini --images 20 --attacks FGSM --device cpu --out out"
        code = cli.main(["audit", *words.split(), *shared.split(), *certify.split()])
        return code, *capsys.readouterr()

    return run


def test_the_bracket_is_written_and_printed(certify, tmp_path):
    code, out, err = certify("net.py:small --eps 0.01")
    assert code == 0, err
    table = pd.read_csv(tmp_path / "out" / "certified.csv")
    assert table.n.tolist() == [2] * 10
    assert (table.certified_acc <= table.robust_acc).all()
    assert (
        table.certified_acc.max() > 0
    )  # the network, untrained, has one answer: its class is right
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["certify"] is True
    assert card["certified"]["bound"] == "CROWN(eps=0.01, steps=20)"
    assert card["certified"]["average"] == pytest.approx(table.certified_acc.mean())
    assert card["certified"]["worst"] == table.certified_acc.min()
    head, *rows = out.rpartition("95 % interval\n\n")[2].splitlines()[:11]
    assert head.split() == ["class", "n", "certified", "not", "broken", "95", "%"]
    assert [row.split("  ")[0] for row in rows] == table["class"].tolist()
    certify("net.py:small --eps 0.01", certify="")
    assert not (tmp_path / "out" / "certified.csv").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("net.py:pooled", "no bound goes through MaxPool2d"),
        ("net.py:Other", "no bound goes through Other"),
        ("net.py:small --norm L2 --eps 1", "bounds are those of all logits, in Linf"),
        ("net.py:small --resize 20", "bounds are those of all logits, in Linf"),
    ],
)
def test_what_cannot_be_certified_is_refused_before_any_attack(certify, words, line, tmp_path):
    code, _, err = certify(words)
    assert code in (1, 2)
    assert err.startswith(f"crat: {line}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
