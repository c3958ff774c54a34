"""A model from elsewhere: what is found under a name, and what is said of it before any attack."""

import re
from dataclasses import replace

import odd_nets
import pytest
import torch
from tiny_runs import TINY, same

from crat import data, store
from crat.attacks.logits import AttackError
from crat.audit import foreign
from crat.config import ConfigError
from crat.nets import models
from crat.outcomes.evaluation import MissingWeights
from crat.training.run import Run
from crat.training.trainer import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images():
    return data.load("fashion_mnist_mini")


@pytest.fixture(scope="module")
def model_of(images, tmp_path_factory):
    folder = odd_nets.put(tmp_path_factory.mktemp("nets"), images)
    return lambda name: foreign.find_model(f"{folder / 'nets.py'}:{name}", None, images, CPU)


@pytest.fixture
def examined(model_of, images):
    """name -> what `examine` says of the model on n images."""

    def examine(name, n=300):
        x, y = images.x_test[:n], images.y_test[:n]
        model = foreign.decision(model_of(name)[0], x[:64] / 255, 10)
        return foreign.examine(model, x, y, images.classes)

    return examine


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("linear", None),
        ("MODEL", None),
        (
            "probabilities",
            "the outputs look like probabilities: attacks need the logits before the softmax",
        ),
        (
            "cosines",
            "all logits lie in [-1, 1]: if they are cosines, attacks need the scale of training "
            "(--scale)",
        ),
        ("noisy", 'the outputs are random: AutoAttack version="rand" averages gradients over them'),
        (
            "batchwise",
            "an image's logits depend on the others of its batch, and so will its verdict",
        ),
        (
            "saturated",
            "some images have a zero gradient: gradient-based attacks may overrate the robustness",
        ),
    ],
)
def test_what_makes_a_number_doubtful_is_a_line(examined, name, line):
    assert examined(name)[1][:1] == ([line] if line else [])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "pixels",
            r"with inputs in \[0, 255\] it would be (\d\d\.\d) %: put that inside the model",
        ),
        (
            "twice",
            r"with inputs whose normalisation is undone beforehand it would be (\d\d\.\d) %: "
            r".* once too often",
        ),
        (
            "swapped",
            r"chance is (10\.0) %: is a normalisation missing or doubled, "
            r"or are the classes in disorder\?",
        ),
    ],
)
def test_wrong_inputs_are_diagnosed(examined, images, name, told):
    clean = (examined("linear")[0].argmax(1) == images.y_test[:300]).double().mean().item()
    found = re.fullmatch(
        rf"\d+\.\d % of the clean images are right[;,] {told}", examined(name)[1][-1]
    )
    assert float(found[1]) == pytest.approx(10 if name == "swapped" else 100 * clean, abs=3)


def test_inputs_that_a_model_refuses_are_no_answer(model_of, images):
    class Strict(torch.nn.Module):
        def forward(self, x):
            assert x.max() > 1, "pixels, please"
            return linear(x / 255)

    linear = model_of("linear")[0]
    x, y = images.x_test[:300], images.y_test[:300]
    right = foreign.accuracy(linear, x / 255, y)
    assert foreign.accuracy(Strict(), x / 255, y) == 0
    assert foreign.diagnosis(Strict(), x, y, 10) == [
        f"0.0 % of the clean images are right; with inputs in [0, 255] it would be "
        f"{100 * right:.1f} %: "
        "put that inside the model"
    ]


def test_classes_without_an_image_are_named(examined):
    assert (
        examined("linear", n=3)[1][0]
        == "no image of T-shirt/top, Dress, Coat ... is among the first 3"
    )


def test_a_model_is_left_as_found(model_of, images):
    model, lines = model_of("normed")
    assert lines == ["BatchNorm came in train mode; the model is judged in eval mode"]
    model[1].eval()
    model[2].linear.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    x = images.x_test[:50]
    logits, _ = foreign.examine(
        foreign.decision(model, x / 255, 10), x, images.y_test[:50], images.classes
    )
    assert [part.training for part in model] == [True, False, True]
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.allclose(logits, model.eval()(x / 255), atol=1e-4)


def test_a_model_without_a_verdict_is_an_error_of_its_own(examined):
    with pytest.raises(AttackError, match="logits for 300 of 300 images"):
        examined("nan")


@pytest.mark.parametrize("chosen", ["with it", "without"])
def test_a_checkpoint_that_carries_no_normalisation_is_tried_both_ways(images, tmp_path, chosen):
    spec = data.DATASETS["cifar10"]
    mean, std = (spec.mean, spec.std) if chosen == "with it" else ((0.0,), (1.0,))
    model = models.build("small_cnn", 10, (3, 28, 28), mean=mean, std=std).eval()
    weights = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("normalize")
    }
    torch.save(weights, tmp_path / "w.pt")
    x = images.x_valid.expand(-1, 3, -1, -1)
    answers = model(x[:64] / 255).argmax(1)
    colour = replace(images, name="cifar10", x_train=x, x_valid=x, y_valid=answers)
    found, (line,) = foreign.find_model(str(tmp_path / "w.pt"), "small_cnn", colour, CPU)
    assert torch.equal(found(x[:9] / 255), model(x[:9] / 255))
    assert line.startswith("w.pt says nothing of normalisation: ")
    assert line.endswith(f"; it is judged {chosen}")
    models.save_weights(model, tmp_path / "w.safetensors")
    assert foreign.find_model(str(tmp_path / "w.safetensors"), "small_cnn", colour, CPU)[1] == []


def test_a_run_is_found_by_a_part_of_its_name(images, own_store):
    """Its network comes in eval mode, and of an augmented head the classes answer."""
    config = TINY.but(epochs=1, seed=81)
    run = train(config, progress="none", device="cpu")
    model, doubts = foreign.find_model("pgd_at-s81", None, images, CPU)
    assert doubts == []
    assert not model.training
    assert same(model.state_dict(), run.model("best", "cpu").state_dict())
    train(config.but(defense="label_augmentation", seed=82), progress="none", device="cpu")
    model, _ = foreign.find_model("label_augmentation-s82", None, images, CPU)
    assert model(images.x_test[:2] / 255).shape == (2, 10)


def test_what_is_no_run_or_has_no_network_is_a_line(images, own_store):
    with pytest.raises(ConfigError, match=r"neither module:function nor .*; no run 'nothing'"):
        foreign.find_model("nothing", None, images, CPU)
    with pytest.raises(ConfigError, match=r"; \d+ runs have 'small_cnn' in their name"):
        foreign.find_model("small_cnn", None, images, CPU)
    with pytest.raises(ConfigError, match="--key chooses among the weights of a file"):
        foreign.find_model("small_cnn", None, images, CPU, "ema")
    run = Run.of(TINY.but(seed=83))
    store.write_json(run.folder / "card.json", {"config": run.config.as_dict(), "finished": False})
    with pytest.raises(MissingWeights, match="is not trained here"):
        foreign.find_model(run.name, None, images, CPU)
