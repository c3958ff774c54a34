"""Images that do not fit in memory: listed, decoded by workers, trained on, judged, resumed."""

import os

import numpy as np
import pytest
import torch
from data_files import cut_short
from PIL import Image
from torchvision import datasets, transforms

from crat import data
from crat.attacks import PGD
from crat.config import ConfigError, DataConfig, RunConfig
from crat.data import own
from crat.data.registry import DATASETS
from crat.data.streamed import Streamed
from crat.outcomes.evaluation import evaluate
from crat.training.run import Run
from crat.training.trainer import train

SIZES = {"ash": 12, "beech": 9, "cherry": 7}  # unequal classes
SIZE = 32


@pytest.fixture(autouse=True)
def trees(tmp_path, monkeypatch):
    """A folder of JPEGs of several shapes; each class is bright in a channel of its own."""
    monkeypatch.setenv("CRAT_DATA", str(tmp_path / "home"))
    known = dict(DATASETS)
    rng = np.random.default_rng(3)
    for part, share in (("train", 1), ("val", 2)):
        for label, (name, n) in enumerate(SIZES.items()):
            folder = tmp_path / "trees" / part / name
            folder.mkdir(parents=True)
            for i in range(-(-n // share)):
                pixels = rng.integers(0, 60, (40 + i, 60 - i, 3), dtype=np.uint8)
                pixels[..., label] += 150
                Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=95)
    yield tmp_path / "trees"
    DATASETS.clear()
    DATASETS.update(known)


@pytest.fixture
def name(trees):
    return own.register(trees, size=SIZE, streamed=True)


def config_of(name, **changes):
    of = RunConfig(DataConfig(name, valid_per_class=2)).but(width=2, epochs=2, batch_size=8)
    return of.but(steps=1, lr=0.01, **changes)


def parts_of(n, size):
    return list(torch.arange(n).split(size))


def test_its_row_and_its_split(name):
    spec = DATASETS[name]
    assert not spec.fits_memory
    assert (spec.image_shape, spec.classes) == ((3, SIZE, SIZE), tuple(SIZES))
    assert (spec.train_images, spec.test_images, spec.smallest_class) == (28, 15, 7)
    images = data.load(DataConfig(name, valid_per_class=2))
    assert isinstance(images.x_train, Streamed)
    assert images.x_train.shape == (22, 3, SIZE, SIZE)
    assert images.image_shape == (3, SIZE, SIZE)
    assert images.y_train.bincount().tolist() == [10, 7, 5]
    assert images.y_valid.bincount().tolist() == [2, 2, 2]
    assert not {*images.x_train.names} & {*images.x_valid.names}
    for split in ("train", "valid", "test"):
        x, y = getattr(images, f"x_{split}"), getattr(images, f"y_{split}")
        assert (x[:].float().mean((2, 3)).argmax(1) == y).all()
    expected = images.x_train[:].float().mean((0, 2, 3)) / 255
    assert np.allclose(spec.mean, expected, atol=0.03)


def test_large_folders_are_streamed_by_themselves(trees, monkeypatch):
    few = own.register(trees, size=SIZE)
    assert DATASETS[few].fits_memory
    monkeypatch.setattr(own, "FITS", 40 * SIZE**2 * 3)
    assert DATASETS[own.register(trees, size=SIZE, eps="2/255")].fits_memory is False


def test_a_centre_is_torchvisions(name, trees):
    images = data.load(DataConfig(name, valid_per_class=2)).x_test
    steps = [transforms.Resize(SIZE * 256 // 224), transforms.CenterCrop(SIZE)]
    plain = datasets.ImageFolder(
        str(trees / "val"), transforms.Compose([*steps, transforms.PILToTensor()])
    )
    assert torch.equal(images[:], torch.stack([image for image, _ in plain]))
    assert torch.equal(images[torch.tensor([14, 3])], images[:][[14, 3]])
    assert torch.equal(images.chosen(torch.arange(15) > 11)[:2], images[12:14])
    assert images[15:].shape == (0, 3, SIZE, SIZE)


def test_a_crop_is_the_seeds_whatever_the_workers(name):
    x = data.load(DataConfig(name, valid_per_class=2)).x_train
    seeds = torch.arange(22) * 7
    made = {}
    for workers in (0, 1, 2):
        x.workers = workers
        made[workers] = torch.cat(list(x.ahead(parts_of(22, 5), seeds)))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    backwards = torch.cat(list(x.ahead([torch.arange(21, -1, -1)], seeds.flip(0)))).flip(0)
    assert torch.equal(backwards, made[0])
    others = torch.cat(list(x.ahead(parts_of(22, 5), seeds + 1)))
    assert not (others == made[0]).all((1, 2, 3)).any()
    twice = torch.cat(list(x.ahead([torch.zeros(40, dtype=torch.long)], torch.arange(40))))
    assert len(twice.unique(dim=0)) == 40  # one image, forty crops
    state = torch.random.get_rng_state()
    list(x.ahead(parts_of(22, 5), seeds))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_batches_are_those_of_images_in_memory(name):
    images = data.load(DataConfig(name, valid_per_class=2))
    seeded = [torch.Generator().manual_seed(4) for _ in range(2)]
    decoded = images.x_train[:]
    for streamed, held in zip(
        data.Batches(images.x_train, images.y_train, 8, seeded[0]),
        data.Batches(decoded, images.y_train, 8, seeded[1]),
        strict=True,
    ):
        assert torch.equal(streamed[0], held[0])
        assert torch.equal(streamed[1], held[1])
    drawn = data.Batches(
        images.x_train,
        images.y_train,
        8,
        torch.Generator().manual_seed(0),
        augment="resized_crop",
        class_probs=torch.tensor([0.0, 1.0, 0.0]),
    )
    x, y = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    assert (y == 1).all()
    assert (x.mean((2, 3)).argmax(1) == 1).all()
    with pytest.raises(ConfigError, match="known: none, resized_crop"):
        data.Batches(images.x_train, images.y_train, 8, torch.Generator(), augment="crop")
    with pytest.raises(ConfigError, match=r"augment of trees-\w+ is auto, none, resized_crop"):
        train(config_of(name, augment="crop_flip"), progress="none")


def test_a_training_that_stops_goes_on_bit_for_bit(name, own_store, tmp_path):
    config = config_of(name)
    whole = train(config, progress="none")
    weights = whole.model("last").state_dict()
    whole.folder.rename(tmp_path / "aside")
    part = train(config, progress="none", max_minutes=0)
    assert not part.finished
    again = train(config, progress="none")
    assert again.finished
    for key, value in again.model("last").state_dict().items():
        assert torch.equal(value, weights[key])
    assert again.history().equals(Run(whole.config, tmp_path / "aside").history())


def test_a_run_on_files_is_judged_as_on_images_in_memory(name, own_store):
    run = train(config_of(name, epochs=1), progress="none")
    found = evaluate(run, {"PGD": PGD(4 / 255, 1 / 255, 2)}, tell=None)
    assert found.y.tolist() == [0] * 6 + [1] * 5 + [2] * 4
    logits = run.model("best", "cpu")(data.load(name).x_test[:].float() / 255)
    assert np.allclose(found.logits["clean"], logits.detach(), rtol=2e-3, atol=2e-3)
    first = evaluate(run, {}, first=4, spread=True, tell=None)
    assert first.y.tolist() == [0, 1, 2, 0]
    kept = evaluate(run, {}, keep_classes=(0, 2), tell=None)
    assert kept.y.tolist() == [0] * 6 + [1] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(name, trees, own_store, monkeypatch, workers):
    monkeypatch.setattr("crat.data.streamed.usual_workers", lambda: workers)
    images = data.load(DataConfig(name, valid_per_class=2))
    damaged = trees / images.x_train.names[4].decode()
    cut_short(damaged)
    with pytest.raises(data.DataError) as caught:
        list(data.Batches(images.x_train, images.y_train, 8, shuffle=False))
    assert "\n" not in str(caught.value)
    assert f"{damaged} is truncated or no image" in str(caught.value)
    with pytest.raises(data.DataError, match=f"{damaged} is truncated"):
        images.x_train[:6]


def test_a_worker_that_is_killed_is_one_line(name, monkeypatch):
    monkeypatch.setattr("crat.data.streamed.decoded", lambda path: os._exit(9))
    images = data.load(DataConfig(name, valid_per_class=2))
    images.x_train.workers = 1
    with pytest.raises(data.DataError, match=r"decoding .* is there memory enough") as got:
        list(data.Batches(images.x_train, images.y_train, 8, shuffle=False))
    assert "\n" not in str(got.value)


def test_other_files_than_were_registered_are_refused(name, trees):
    (trees / "train/ash/0.jpg").unlink()
    with pytest.raises(data.DataError, match=f"have changed since {name} got its name"):
        data.load(name)
    assert own.register(trees, size=SIZE, streamed=True) != name


def test_imagenet_is_all_of_imagenet(trees, tmp_path):
    with pytest.raises(data.DataError, match="imagenet is not in"):
        data.load("imagenet")
    (tmp_path / "home").mkdir(exist_ok=True)
    trees.rename(tmp_path / "home/imagenet")
    with pytest.raises(data.DataError, match=r"3 classes, 28 training .*--data PATH"):
        data.load("imagenet")
