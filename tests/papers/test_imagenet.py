"""The papers' ImageNet: one command from a folder and a network's weights, on made images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet50

from crat.attacks import PGD
from crat.cli import main
from crat.config import Selection
from crat.data.registry import DATASETS
from crat.outcomes.evaluation import evaluate
from crat.papers import label_augmentation, tian2021
from crat.training import keep_file
from crat.training.trainer import train

CLASSES = ("n01", "n02", "n03")


@pytest.fixture
def weights(tmp_path, own_store, monkeypatch):
    """A folder in ImageNet's shape with three classes, and a file of torchvision's network."""
    monkeypatch.setenv("CRAT_DATA", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    for part, n in (("train", 10), ("val", 4)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "home/imagenet" / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 60, (50 + i, 44, 3), dtype=np.uint8)
                pixels[..., label] += 150
                Image.fromarray(pixels).save(folder / f"{i}.JPEG")
    sizes = {"n_classes": 3, "train_images": 30, "test_images": 12, "smallest_class": 10}
    row = replace(DATASETS["imagenet"], image_shape=(3, 32, 32), **sizes)
    monkeypatch.setitem(DATASETS, "imagenet", row)
    torch.manual_seed(0)
    torch.save(resnet50(num_classes=3).state_dict(), tmp_path / "resnet50.pth")
    return tmp_path / "resnet50.pth"


def test_fine_tuning_as_the_paper_does(weights):
    selection = Selection("imagenet", (0,), start_from=keep_file(weights))
    runs = label_augmentation.evidence_runs("paper", selection)
    for config in runs.values():
        assert (config.model.name, config.data.name) == ("resnet50", "imagenet")
        assert (config.train.epochs, config.train.schedule) == (10, "cosine")
        assert config.train.start_from == selection.start_from
    tuned = runs["tuned Adv+-s0"].but(epochs=1, steps=1, batch_size=12)
    assert tuned.train.defense == "label_augmentation"
    run = train(tuned, progress="none")
    assert run.card()["start_from"]["file"] == selection.start_from
    found = evaluate(run, {"PGD": PGD(4 / 255, 1 / 255, 1)}, tell=None)
    assert found.classes == CLASSES
    assert found.logits["PGD"].shape == (12, 3)


def test_the_row_of_tian_et_al(weights):
    runs = tian2021.evidence_runs("paper", Selection("imagenet", (0, 1)))
    assert {config.train.epochs for config in runs.values()} == {90}
    assert {config.train.start_from for config in runs.values()} == {""}
    tuned = tian2021.evidence_runs("paper", Selection("imagenet", (0, 1), start_from="some-0123"))
    assert {config.train.start_from for config in tuned.values()} == {"some-0123"}


def test_one_command_plans_it(weights, capsys):
    words = ["reproduce", "05", "--profile", "paper", "--data", "imagenet", "--seeds", "0"]
    assert main([*words, "--start-from", str(weights), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "imagenet-resnet50-label_augmentation-s0" in shown
    assert main(["reproduce", "03", "--start-from", str(weights), "--dry-run"]) == 2
    assert "--start-from: 03_hou2022_spat has no parameter start_from" in capsys.readouterr().err
