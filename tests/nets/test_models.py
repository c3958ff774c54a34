"""Networks: shapes, seeds, heads, weights on disk, and the numbers of the released code."""

import copy
import itertools
import math
import re
from unittest.mock import Mock

import pytest
import torch
import torchvision
from torch import nn

from crat.config import MODELS, ConfigError, ModelConfig
from crat.data.registry import DATASETS
from crat.nets.models import (
    CheckpointError,
    build,
    class_weight_norms,
    load_checkpoint,
    load_weights,
    save_weights,
)

THIN = {
    "preact_resnet18": 4,
    "resnet18": 4,
    "wrn_34_10": 1,
    "small_cnn": 4,
}  # widths for tests of shape


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads wait for each other longer than these nets compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def thin(name, n_classes=10, image_shape=(3, 32, 32), head="linear", **options):
    depth = 10 if name == "wrn_34_10" else None
    return build(
        ModelConfig(name, THIN.get(name), depth, head), n_classes, image_shape, **options
    ).eval()


def images(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def bn(name, channels):
    """A BatchNorm's parameters in the released code, without its counter, as before torch 0.4.1."""
    return {
        f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")
    }


def biased(**layers):
    return {f"{name}.weight": shape for name, shape in layers.items()} | {
        f"{n}.bias": s[:1] for n, s in layers.items()
    }


def preact_block(name, inside, outside, shortcut):
    names = bn(f"{name}.bn1", inside) | bn(f"{name}.bn2", outside)
    names |= {
        f"{name}.conv1.weight": (outside, inside, 3, 3),
        f"{name}.conv2.weight": (outside, outside, 3, 3),
    }
    return names | (
        {f"{name}.{shortcut}.weight": (outside, inside, 1, 1)} if inside != outside else {}
    )


def preact_resnet18_names(final_bn):
    """CFA's PreActResNet18 (final_bn) and FRL's (without)."""
    names, inside = {"conv1.weight": (64, 3, 3, 3)} | biased(linear=(10, 512)), 64
    for layer, outside in enumerate((64, 128, 256, 512), start=1):
        names |= preact_block(f"layer{layer}.0", inside, outside, "shortcut.0")
        names |= preact_block(f"layer{layer}.1", outside, outside, "shortcut.0")
        inside = outside
    return names | (bn("bn", 512) if final_bn else {})


def wide_resnet_names(depth, width):
    """TRADES' WideResNet, with the sub_block1 that its forward never calls."""
    names = {"conv1.weight": (16, 3, 3, 3)} | bn("bn1", 64 * width) | biased(fc=(10, 64 * width))
    stages = {"block1": (16, 16), "sub_block1": (16, 16), "block2": (16, 32), "block3": (32, 64)}
    for stage, (inside, outside) in stages.items():
        widths = [
            inside * (width if inside < outside else 1),
            *[outside * width] * ((depth - 4) // 6),
        ]
        for j, (first, second) in enumerate(itertools.pairwise(widths)):
            names |= preact_block(f"{stage}.layer.{j}", first, second, "convShortcut")
    return names


def formula_weights(names):
    """Float64 weights by formula: sines over the fan-in, about 1 for BatchNorm's scales."""
    found = {}
    for i, name in enumerate(sorted(names)):
        shape = names[name]
        wave = torch.sin(
            torch.arange(math.prod(shape), dtype=torch.float64) * (1 + i / 7) + i
        ).reshape(shape)
        around_one = "running_var" in name or re.search(r"bn\d?\.weight", name)
        found[name] = (
            wave * math.sqrt(6 / math.prod(shape[1:])) if shape[1:] else wave / 2 + bool(around_one)
        )
    return found


def formula_image(*shape):
    return (torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) ** 2) / 2 + 0.5).reshape(
        1, *shape
    )


SMALL_CNN = {
    f"feature_extractor.conv{i}": (*c, 3, 3)
    for i, c in enumerate(((32, 1), (32, 32), (64, 32), (64, 64)), 1)
}
SMALL_CNN |= {
    f"classifier.fc{i}": sizes for i, sizes in enumerate(((200, 1024), (200, 200), (10, 200)), 1)
}
LENET5 = {
    "conv1": (32, 1, 3, 3),
    "conv2": (64, 32, 3, 3),
    "linear1": (200, 3136),
    "linear2": (10, 200),
}
RELEASED = {
    "cfa": (preact_resnet18_names(True), "preact_resnet18", {}, (3, 32, 32)),
    "frl": (preact_resnet18_names(False), "preact_resnet18", {"final_bn": False}, (3, 32, 32)),
    "trades_wrn_16_2": (
        wide_resnet_names(16, 2),
        ModelConfig("wrn_34_10", width=2, depth=16),
        {},
        (3, 32, 32),
    ),
    "trades_mnist": (biased(**SMALL_CNN), "mnist_small_cnn", {}, (1, 28, 28)),
    "advertorch": (biased(**LENET5), "lenet5", {}, (1, 28, 28)),
}

# The first five logits of formula_image under formula_weights in eval mode, float64, from the
# authors' own modules: PKU-ML/CFA 071f333, hannxu123/fair_robust a80547d, yaodongyu/TRADES 6e8e11b
# (WideResNet(16, 10, 2); SmallCNN()), AdverTorch 0.2.3 (its test_utils.LeNet5).
RECORDED = {
    "advertorch": [
        -0.124174712567,
        0.428842622405,
        -0.083518490576,
        -0.410426770116,
        0.311027474697,
    ],
    "cfa": [-1.28334466846, 0.432247192479, 1.74395730819, -2.47014680092, 3.17362547226],
    "frl": [0.368160950713, 0.200805305253, -0.00192676709932, -0.201009193878, -0.358164064113],
    "trades_wrn_16_2": [
        -0.222251852316,
        -0.277352294268,
        0.107944711151,
        -0.330541584886,
        -0.123401196297,
    ],
    "trades_mnist": [
        -0.445371006046,
        -0.294638148218,
        0.387540573868,
        0.278248563134,
        -0.300700151455,
    ],
}


@pytest.mark.parametrize("whose", RELEASED)
def test_released_weights_give_the_released_logits(whose, tmp_path):
    names, config, options, shape = RELEASED[whose]
    model = build(config, 10, shape, **options).double().eval()
    file = {
        "state_dict": {f"module.{name}": tensor for name, tensor in formula_weights(names).items()},
        "epoch": 3,
    }
    torch.save(file, tmp_path / "theirs.pt")
    load_checkpoint(model, tmp_path / "theirs.pt")
    with torch.no_grad():
        logits = model(formula_image(*shape))[0, :5]
    torch.testing.assert_close(
        logits, torch.tensor(RECORDED[whose], dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_wide_resnet_has_the_released_size_without_the_unused_block():
    own = sum(p.numel() for p in build("wrn_34_10", 10).parameters())
    used = [
        s
        for name, s in wide_resnet_names(34, 10).items()
        if not re.search("^sub_block1|running_", name)
    ]
    assert own == sum(math.prod(shape) for shape in used)


def test_resnet50_is_torchvisions(tmp_path):
    theirs = torchvision.models.resnet50(num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "r50.pt")
    load_checkpoint(ours := build("resnet50", 7, (3, 64, 64), seed=1).eval(), tmp_path / "r50.pt")
    with torch.no_grad():
        torch.testing.assert_close(ours(x := images(1, 3, 64, 64)), theirs(x))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 64, 64), (3, 96, 96)], ids=str)
def test_every_net_takes_every_image_size(name, shape):
    model, x = thin(name, 3, shape), images(2, *shape)
    before = x.clone()
    with torch.no_grad():
        features, logits = model.features(x), model(x)
    assert logits.shape == (2, 3)
    assert features.shape == (2, model.head.in_features)
    torch.testing.assert_close(model.head(features), logits)
    assert torch.equal(x, before)  # the ReLUs in place stay inside


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides_and_the_global_state_stays(name):
    state = torch.get_rng_state()
    first, again, other = (weights(thin(name, seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, again)
    assert not same(first, other)


# The first weight of the first, the second and the last convolution, at seed 7.
FIRST_WEIGHTS = {
    "small_cnn": (0.023282, -0.037086, 0.108656),
    "mnist_small_cnn": (0.331435, 0.118616, -0.040324),
    "lenet5": (0.023282, 0.024567, 0.024567),
    "preact_resnet18": (0.023282, -0.037086, -0.022331),
    "resnet18": (0.023282, -0.037086, -0.022331),
    "wrn_34_10": (0.202831, -0.005701, 0.160115),
}


@pytest.mark.parametrize("name", FIRST_WEIGHTS)
def test_the_weights_of_a_seed_are_those_of_the_published_runs(name):
    """A layer that is made before another draws other numbers, and all runs would begin anew."""
    convolutions = [p for p in thin(name, 10, (1, 28, 28), seed=7).body.parameters() if p.ndim == 4]
    first = [convolutions[i].flatten()[0].item() for i in (0, 1, -1)]
    assert first == pytest.approx(FIRST_WEIGHTS[name], abs=1e-5)


def test_small_cnn_stays_cheap():
    model, macs = build("small_cnn", 10, (1, 28, 28)), []
    for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        layer.register_forward_hook(
            lambda m, _, out: macs.append(out[0].numel() * m.weight[0].numel())
        )
    model(images(1, 1, 28, 28))
    assert sum(macs) + model.head.weight.numel() == 3_756_928


def test_normalisation_is_inside_and_travels_with_the_weights(tmp_path):
    mean, std = DATASETS["cifar10"].mean, DATASETS["cifar10"].std
    model, plain, x = thin("resnet18", mean=mean, std=std), thin("resnet18"), images(2, 3, 32, 32)
    scaled = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(scaled))
        save_weights(model, tmp_path / "w.safetensors")
        load_weights(plain, tmp_path / "w.safetensors")
        assert torch.equal(plain(x), model(x))
    assert (mean, std) == ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    assert (DATASETS["fashion_mnist_mini"].mean, DATASETS["fashion_mnist_mini"].std) == (
        (0.0,),
        (1.0,),
    )
    with pytest.raises(ValueError, match=r"takes \(N, 3, H, W\) images, not \(2, 1, 32, 32\)"):
        model(x[:, :1])  # would be broadcast to three channels else


@pytest.mark.parametrize(("head", "scale"), [("cosine", 8.0), ("hypersphere", 15.0)])
def test_cosine_heads_give_scaled_cosines_and_leave_their_weights(head, scale):
    model, x = thin("small_cnn", 4, head=head).double(), images(5, 3, 32, 32, dtype=torch.float64)
    before, phi = weights(model), model.features(x)
    cosine = torch.stack(
        [torch.nn.functional.cosine_similarity(phi, w[None]) for w in model.head.weight], dim=1
    )
    torch.testing.assert_close(model(x), scale * cosine)
    assert same(before, weights(model))
    if head == "cosine":  # SPAT's z = phi W^T + b, then s z
        nn.init.constant_(model.head.bias, 0.25)
        torch.testing.assert_close(model(x), scale * (cosine + 0.25))
    else:
        assert model.head.bias is None
    model.head.weight.data *= 3
    torch.testing.assert_close(model.head(2 * phi), model(x))  # neither length matters
    assert thin("small_cnn", 4, head=head, scale=20).head.scale == 20


def test_augmented_head_and_class_weight_norms():
    model = thin("small_cnn", 4, head="augmented", extra_outputs=3).double()
    assert (model(images(2, 3, 32, 32, dtype=torch.float64)).shape, model.n_classes) == ((2, 7), 4)
    expected = [math.sqrt(sum(v**2 for v in row)) for row in model.head.weight[:4].tolist()]
    torch.testing.assert_close(
        class_weight_norms(model), torch.tensor(expected, dtype=torch.float64)
    )
    with pytest.raises(ConfigError, match="unit vectors"):
        class_weight_norms(thin("small_cnn", 4, head="hypersphere"))


@pytest.mark.parametrize(
    ("config", "options", "told"),
    [
        (ModelConfig("lenet5", width=2), {}, "lenet5 has no width; it has: no options"),
        (ModelConfig("resnet18", depth=34), {}, "resnet18 has no depth; it has: width"),
        (ModelConfig("small_cnn", width=0), {}, "at least 1, not 0"),
        (ModelConfig("wrn_34_10", depth=33), {}, "6 n [+] 4 .* not 33"),
        ("small_cnn", {"final_bn": False}, "small_cnn has no final_bn"),
        ("small_cnn", {"extra_outputs": 2}, "at least 1 for the augmented head"),
        (ModelConfig(head="augmented"), {}, "not 0 for augmented"),
        ("small_cnn", {"scale": 2}, "linear head has no scale"),
        ("small_cnn", {"mean": (0.1, 0.2)}, "mean has 2 values for images of 3 channels"),
        ("small_cnn", {"n_classes": 1}, "2 classes or more"),
        ("mnist_small_cnn", {"image_shape": (1, 8, 8)}, "at least 16 x 16 pixels, not 8 x 8"),
        ("alexnet", {}, "unknown model 'alexnet'; known: small_cnn"),
    ],
)
def test_what_an_architecture_has_not_is_told(config, options, told):
    with pytest.raises(ConfigError, match=told) as error:
        build(config, **({"n_classes": 10} | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("load", [load_weights, load_checkpoint])
def test_weights_come_back_bit_for_bit(load, tmp_path):
    model = thin("preact_resnet18", head="cosine", scale=5).to(memory_format=torch.channels_last)
    path = tmp_path / "new folder" / "w.safetensors"
    save_weights(torch.compile(model), path)  # wrapped, not compiled: nothing runs
    load(other := thin("preact_resnet18", head="cosine", seed=1), path)
    assert same(weights(model), weights(other))
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    save_weights(thin("small_cnn"), path := tmp_path / "w.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr(
        "pathlib.Path.replace", Mock(side_effect=OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        save_weights(thin("small_cnn", seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def bad_file(kind, path):
    content = weights(thin("small_cnn", 100 if kind == "classes" else 10))
    if kind == "names":
        content["body.conv9.weight"] = content.pop("body.conv1.weight")
    torch.save({"code": copy.copy, "prose": "no weights"}.get(kind, content), path)


BAD_FILES = {
    "code": r"holds more than tensors, such as a whole pickled model, .*: where it was made, "
    r"write torch\.save\(model",
    "prose": "holds no state_dict",
    "classes": r"2 of another shape \(head.weight \(100, 1024\), here \(10, 1024\); head.bias",
    "names": r"1 missing \(body.conv1.weight\), 1 unexpected \(body.conv9.weight\)(;|$)",
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("load", [load_weights, load_checkpoint])
def test_a_bad_file_is_told_in_one_line_and_changes_nothing(load, kind, tmp_path):
    bad_file(kind, tmp_path / "bad.pt")
    before = weights(model := thin("small_cnn", seed=3))
    with pytest.raises(CheckpointError, match=BAD_FILES[kind]) as error:
        load(model, tmp_path / "bad.pt")
    assert "\n" not in str(error.value)
    assert same(before, weights(model))


def test_a_damaged_or_absent_safetensors_file_is_told(tmp_path):
    model, path = thin("small_cnn"), tmp_path / "w.safetensors"
    with pytest.raises(CheckpointError, match="there is no weights file"):
        load_weights(model, path)
    save_weights(model, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot be read: it is damaged"):
        load_weights(model, path)


def test_frl_weights_in_a_net_with_final_bn_are_refused_with_a_hint(tmp_path):
    torch.save(formula_weights(preact_resnet18_names(False)), tmp_path / "frl.pt")
    with pytest.raises(
        CheckpointError, match=r"4 missing \(body.bn.weight.* final_bn of build decides"
    ):
        load_checkpoint(build("preact_resnet18", 10), tmp_path / "frl.pt")


def test_of_several_weights_in_a_file_one_is_chosen_and_told(tmp_path):
    plain, mean = (weights(thin("small_cnn", seed=seed)) for seed in (1, 2))
    path = tmp_path / "run.pt"
    torch.save(
        {"model": plain, "ema": mean, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
        path,
    )
    model = thin("small_cnn")
    assert load_checkpoint(model, path) == (
        "run.pt holds the weights model, ema: model is taken; --key chooses another"
    )
    assert same(weights(model), plain)
    assert load_checkpoint(model, path, "ema") == ""
    assert same(weights(model), mean)
    with pytest.raises(CheckpointError, match=r"no weights named 'swa'; there are: model, ema$"):
        load_checkpoint(model, path, "swa")
    torch.save({"student": plain, "teacher": mean}, path)
    with pytest.raises(CheckpointError, match=r"holds several: student, teacher; --key chooses$"):
        load_checkpoint(model, path)
    torch.save({"nets": {"student": plain}, "epoch": 3}, path)
    assert load_checkpoint(model, path) == ""
    assert same(weights(model), plain)


def test_a_pickled_model_is_told_in_a_sentence_of_ours(tmp_path):
    path = tmp_path / "whole.pt"
    for held in (thin("small_cnn"), {"model": thin("small_cnn")}):
        torch.save(held, path)
        with pytest.raises(
            CheckpointError, match="more than tensors, such as a whole pickled model"
        ) as error:
            load_checkpoint(thin("small_cnn"), path)
        assert str(error.value).isprintable()
    for damaged in (b"", b"hello", path.read_bytes()[:-200]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read: it is damaged") as error:
            load_checkpoint(thin("small_cnn"), path)
        assert str(error.value).isprintable()
