"""The key of an audit's outcomes covers the model's code, gradients and state, images, labels."""

import json
import re
from dataclasses import replace

import numpy as np
import odd_nets
import pandas as pd
import pytest

from crat import audit, data, store
from crat.attacks.watched import ZERO_GRADIENT
from crat.audit import Plan, report
from crat.audit import model as audit_model

BASE = {"device": "cpu", "tell": lambda line: None}


@pytest.fixture(scope="module")
def images():
    return data.load("fashion_mnist_mini")


@pytest.fixture(scope="module")
def nets(images, tmp_path_factory):
    return odd_nets.put(tmp_path_factory.mktemp("nets"), images)


STATE = """
import json
from pathlib import Path
import torch
from nets import Net


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx, gradient):
        return gradient * setting("backward")


def setting(name):  # what no key can hold
    return json.loads(Path("setting.json").read_text())[name]


def rounded():
    return Net(before=Through.apply)


def off_the_clean_images():
    return Net(before=lambda x: x + setting("off") * ((255 * x).round() / 255 - x))


class Scaled(Net):
    scale = 1.0

    def forward(self, x):
        return super().forward(x) * self.scale


def scaled():
    net = Scaled()
    net.scale = setting("off") + 1.0
    return net
"""


@pytest.mark.parametrize(
    ("net", "name", "values"),
    [
        ("rounded", "backward", (0, 1)),
        ("off_the_clean_images", "off", (0.0, 1.0)),
        ("scaled", "off", (0.0, 1.0)),
    ],
)
def test_another_backward_or_forward_under_the_same_weights_is_judged_anew(
    nets, own_store, monkeypatch, net, name, values
):
    monkeypatch.setattr(report, "_draw", lambda *_: None)
    monkeypatch.chdir(nets)
    (nets / "state.py").write_text(STATE)
    plan = Plan("fashion_mnist_mini", "0.1", images=40, attacks=("FGSM",), dtype="float32")
    keys = []
    told = []
    settings = {"device": "cpu", "tell": told.append}
    for value in (*values, values[0], values[1]):
        (nets / "setting.json").write_text(json.dumps({"backward": 1, "off": 0.0, name: value}))
        folder, found, _ = audit.audit("state.py:" + net, plan, **settings)
        card = store.read_json(folder / "card.json")
        keys.append((card["audit"], found.robust("FGSM").sum()))
        if name == "backward":  # told at every audit, of what is kept as well
            assert card["warnings"].count(ZERO_GRADIENT) == (value == 0)
    assert keys[0] == keys[2] != keys[1] == keys[3]
    assert len([line for line in told if line.startswith("kept: ")]) >= 2
    if name == "backward":
        assert keys[0][1] > keys[1][1]  # a zero gradient looks robust


def test_labels_class_names_and_images_are_part_of_the_key(nets, images, own_store, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: None)
    plan = Plan("fashion_mnist_mini", "0.1", images=20, attacks=("FGSM",), dtype="float32")
    keys = []
    changed = [
        {},
        {"classes": tuple(reversed(images.classes))},
        {"y_test": (images.y_test + 1) % 10},
        {"x_test": 255 - images.x_test},
        {},
    ]
    for changes in changed:
        monkeypatch.setattr(
            audit_model.data, "load", lambda name, changes=changes: replace(images, **changes)
        )
        folder, _, _ = audit.audit(f"{nets / 'nets.py'}:linear", plan, **BASE)
        keys.append(store.read_json(folder / "card.json")["audit"])
    assert keys[0] == keys[-1]
    assert len(set(keys)) == len(changed) - 1


def test_a_model_that_no_key_can_hold_is_judged_each_time(nets, own_store, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: None)
    (nets / "compiled.py").write_text(
        "import numpy\nfrom nets import Net\n\n"
        "def net():\n    net = Net()\n    net.compiled = numpy.frompyfunc(lambda z: z, 1, 1)\n    "
        "return net"
    )
    monkeypatch.chdir(nets)
    plan = Plan("fashion_mnist_mini", "0.1", images=20, attacks=("FGSM",), dtype="float32")
    told = []
    folders = {
        audit.audit("compiled.py:net", plan, device="cpu", tell=told.append)[0] for _ in range(2)
    }
    assert len(folders) == 2
    part = "<lambda> (vectorized) of type numpy.ufunc"
    assert told.count(f"warning: {part} is part of the model and no key can hold it") == 2
    assert not [line for line in told if line.startswith("kept")]


def test_images_are_spread_over_the_classes_and_no_class_is_nan(nets, own_store, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: None)
    for n, counts in ((20, [2] * 10), (4, [1, 1, 1, 1])):
        plan = Plan("fashion_mnist_mini", "0.1", images=n, attacks=("FGSM",), dtype="float32")
        folder, found, _ = audit.audit(f"{nets / 'nets.py'}:linear", plan, **BASE)
        assert np.bincount(found.y).tolist() == counts
        assert "nan" not in audit.class_table(found)
        table = pd.read_csv(folder / "class_wise.csv")
        assert (table.n > 0).all()
        assert table.notna().all().all()
        results = store.read_json(folder / "card.json")["results"]["FGSM"]
        assert results["share"] == found.robust("FGSM").mean()
    assert re.search(r"\nmean over classes +\d+\.\d", audit.class_table(found))
    assert re.search(r"\nall images +4 +\d+\.\d", audit.class_table(found))
