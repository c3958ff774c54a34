"""A training that starts from a weights file: its hash in name and card, its head where it fits."""

import pytest
import torch
from safetensors.torch import load_file

from crat import store
from crat.cli import main
from crat.config import ConfigError, DataConfig, ModelConfig, RunConfig
from crat.nets import models
from crat.nets.models import CheckpointError
from crat.training import keep_file
from crat.training.run import Run
from crat.training.trainer import Trainer, train

TINY = RunConfig(DataConfig(train_per_class=8, valid_per_class=4)).but(
    width=2, epochs=1, batch_size=40, steps=1
)


@pytest.fixture(autouse=True)
def _own(own_store):
    """A store for each test."""


def foreign(classes=10, **changes):
    """A network as torchvision names its parts: no normalisation, and the head is `fc`."""
    net = models.build(ModelConfig("small_cnn", width=2, **changes), classes, (1, 28, 28), seed=7)
    weights = net.state_dict().items()
    inner = {name: value for name, value in weights if not name.startswith("normalize.")}
    return {
        name.removeprefix("body.").replace("head.", "fc."): value for name, value in inner.items()
    }


def begun(config):
    return Trainer(Run.of(config), torch.device("cpu"), tell=lambda line: None)


def test_the_weights_are_there_before_the_first_step(tmp_path):
    weights = foreign()
    torch.save({"state_dict": weights}, tmp_path / "my net.pth")
    name = keep_file(tmp_path / "my net.pth")
    assert name == f"my-net-{store.fingerprint(weights)}"
    assert keep_file(tmp_path / "my net.pth") == name
    trainer = begun(TINY.but(start_from=name))
    net = trainer.model
    assert torch.equal(net.body.conv1.weight, weights["conv1.weight"])
    assert torch.equal(net.head.weight, weights["fc.weight"])
    assert trainer.state.start == {"file": name, "weights": store.fingerprint(weights)}
    other = Run.of(TINY.but(start_from=keep_file(tmp_path / "my net.pth", "state_dict")))
    assert other.name == trainer.run.name != Run.of(TINY).name


def test_the_card_has_the_hash_and_a_resumed_run_needs_the_same_file(tmp_path):
    torch.save(foreign(), tmp_path / "net.pt")
    config = TINY.but(start_from=keep_file(tmp_path / "net.pt"), epochs=2)
    part = train(config, progress="none", max_minutes=0)
    assert not part.finished
    whole = train(config, progress="none")
    assert whole.finished
    assert whole.card()["start_from"] == {
        "file": config.train.start_from,
        "weights": store.fingerprint(foreign()),
    }
    kept = whole.folder.parent / "starts" / f"{config.train.start_from}.safetensors"
    store.write_tensors(kept, load_file(kept) | {"fc.bias": torch.ones(10)})
    with pytest.raises(store.StoreError, match="has other weights than its name says"):
        begun(config)
    kept.unlink()
    with pytest.raises(store.StoreError, match=r"the weights of net-\w+ are not in "):
        begun(config)


def test_a_head_of_other_classes_is_drawn_anew(tmp_path):
    torch.save(foreign(classes=7), tmp_path / "seven.pth")
    trainer = begun(TINY.but(start_from=keep_file(tmp_path / "seven.pth")))
    drawn = begun(TINY).model
    assert trainer.state.start["head"] == "drawn"
    assert torch.equal(trainer.model.head.weight, drawn.head.weight)
    assert torch.equal(trainer.model.body.conv1.weight, foreign(7)["conv1.weight"])


def test_more_outputs_stay_as_they_were_drawn(tmp_path):
    weights = foreign()
    torch.save(weights, tmp_path / "net.pth")
    config = TINY.but(defense="label_augmentation")
    trainer = begun(config.but(start_from=keep_file(tmp_path / "net.pth")))
    drawn = begun(config).model
    assert torch.equal(trainer.model.head.weight[:10], weights["fc.weight"])
    assert torch.equal(trainer.model.head.weight[10:], drawn.head.weight[10:])
    assert "head" not in trainer.state.start


def test_another_network_is_refused_in_one_line(tmp_path):
    torch.save(foreign(), tmp_path / "net.pth")
    name = keep_file(tmp_path / "net.pth")
    for config in (TINY.but(width=3), TINY.but(model="lenet5", width=None)):
        with pytest.raises(CheckpointError, match="does not fit this") as caught:
            begun(config.but(start_from=name))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"crat\.training\.keep_file"):
        TINY.but(start_from=str(tmp_path / "net.pth"))


def test_the_command_takes_a_file(tmp_path, capsys):
    torch.save({"ema": foreign(), "raw": foreign(7)}, tmp_path / "net.pth")
    words = ["train", "--width", "2", "--epochs", "1", "--steps", "1", "--train-per-class", "8"]
    words += ["--valid-per-class", "4", "--start-from", str(tmp_path / "net.pth")]
    assert main(words) == 1
    assert "--key chooses" in capsys.readouterr().err
    assert main([*words, "--key", "ema"]) == 0
    assert f"starts from net-{store.fingerprint(foreign())}, weights" in capsys.readouterr().out
    assert main([*words[:-1], str(tmp_path / "absent.pth")]) == 1
    assert "there is no weights file" in capsys.readouterr().err
