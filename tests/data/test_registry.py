"""The table of data sets: rows are whole, a new data set is one row, a config needs no torch."""

import subprocess
import sys
from dataclasses import fields
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from data_files import write
from PIL import Image

from crat import data
from crat.attacks import FGSM
from crat.config import ConfigError, DataConfig, RunConfig
from crat.data import images
from crat.data.augment import IN_MEMORY, OF_FILES
from crat.data.registry import DATASETS, DatasetSpec, Protocol
from crat.outcomes import batteries
from crat.outcomes import evaluation as evaluate
from crat.training.trainer import train

RNG = np.random.default_rng(0)
INVENTED = DatasetSpec(
    "leaves",
    image_shape=(3, 16, 16),
    n_classes=3,
    train_images=36,
    test_images=12,
    smallest_class=12,
    protocol=Protocol("6/255", "2/255", 2, "1/255", 3, "a test"),
    classes=("ash", "beech", "cherry"),
    other_names=("foliage",),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    augment="crop",
    may_flip=False,
)
TINY = {"epochs": 1, "batch_size": 16, "valid_per_class": 2, "width": 4, "dtype": "float32"}


@pytest.fixture
def home(tmp_path, monkeypatch, own_store):
    monkeypatch.setenv("CRAT_DATA", str(tmp_path))
    return tmp_path


def put_npz(home):
    """leaves.npz, as anyone may write it."""
    arrays = {}
    for part, n in (("train", 36), ("test", 12)):
        arrays[f"x_{part}"] = RNG.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(n, dtype=np.uint8) % 3
    np.savez(home / "leaves.npz", **arrays)


def put_folders(home, size=(16, 16)):
    for part, n in (("train", 12), ("test", 4)):
        for name in INVENTED.classes:
            folder = home / "leaves" / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def row(**changes):
    return DatasetSpec(**{f.name: getattr(INVENTED, f.name) for f in fields(INVENTED)} | changes)


def folder_row(**changes):
    reader = "crat.data.folder:read_class_folders"
    return row(classes=(), landmark="leaves", reader=reader, **changes)


@pytest.mark.parametrize("kind", ["npz", "folders"])
def test_a_new_data_set_is_one_row(kind, home, monkeypatch):
    if kind == "npz":
        put_npz(home)
        monkeypatch.setitem(DATASETS, "leaves", INVENTED)
    else:
        put_folders(home)
        monkeypatch.setitem(DATASETS, "leaves", folder_row())
    config = RunConfig().but(data="Leaves", **TINY)
    assert config.resolved().train.eps == DATASETS["leaves"].protocol.eps == "6/255"
    assert batteries.protocol_pgd("leaves").steps == 3
    assert DataConfig("foliage").name == "leaves"
    assert data.resolve_augment(config.data) == "crop"
    with pytest.raises(ConfigError, match="leaves has no flips"):
        data.resolve_augment(DataConfig("leaves", augment="crop_flip"))
    run = train(config, progress="none", device="cpu")
    assert run.name.startswith("leaves-small_cnn-pgd_at")
    assert run.card()["classes"] == ["ash", "beech", "cherry"]
    model = run.model(device="cpu")
    assert model.normalize.mean.flatten().tolist() == pytest.approx(INVENTED.mean)
    outcomes = evaluate.evaluate(run, batteries.standard_battery("leaves"), device="cpu")
    assert outcomes.logits["PGD-3"].shape == (12, 3)
    shown = {line["name"]: line for line in data.listing()}["leaves"]
    assert (shown["train"], shown["train_per_class"], shown["test"]) == (36, "12", 12)


def test_an_evaluation_loads_its_images_once(home, monkeypatch):
    put_npz(home)
    monkeypatch.setitem(DATASETS, "leaves", INVENTED)
    config = RunConfig().but(data="leaves", steps=1, **TINY)
    run = train(config, progress="none", device="cpu")
    other = train(config.but(seed=1), progress="none", device="cpu")
    loads = []
    monkeypatch.setattr(
        images, "read", lambda name, read=images.read: loads.append(name) or read(name)
    )
    run.model(device="cpu")
    assert loads == []
    evaluate.evaluate(run, {"FGSM": FGSM(0.1)}, crafted_on=other, device="cpu")
    assert loads == ["leaves"]
    evaluate.evaluate(run, {"FGSM": FGSM(0.1)}, crafted_on=other, device="cpu", tell=None)
    assert loads == ["leaves"]  # kept outcomes need no images


def class_of_another_name(home):
    put_folders(home)
    (home / "leaves/test/cherry").rename(home / "leaves/test/elm")
    return "class cherry is in one of train and test only"


def image_of_another_size(home):
    put_folders(home, size=(16, 17))
    return r"0.png has a wrong shape: 17 x 16, not 16 x 16"


def no_image(home):
    put_folders(home)
    write(home / "leaves/train/ash", {"0.png": b"<html>404</html>"})
    return "ash/0.png is truncated or no image"


def class_without_images(home):
    put_folders(home)
    for file in (home / "leaves/test/ash").iterdir():
        file.unlink()
    return "test/ash has no image: a class needs one at least"


def no_test_folder(home):
    put_folders(home)
    (home / "leaves/test").rename(home / "leaves/tests")
    return "leaves cannot be used: it has no test/ or val/; needed are train/<class>/ and "


def nothing(home):
    return r"leaves is not in .* \(looked for leaves.npz, leaves\): put leaves into "


@pytest.mark.parametrize(
    "situation",
    [
        class_of_another_name,
        image_of_another_size,
        no_image,
        class_without_images,
        no_test_folder,
        nothing,
    ],
)
def test_what_is_wrong_with_class_folders_is_one_line(situation, home, monkeypatch):
    monkeypatch.setitem(DATASETS, "leaves", folder_row())
    message = situation(home)
    with pytest.raises(data.DataError, match=message) as caught:
        data.load("leaves")
    assert "\n" not in str(caught.value)
    assert not list(home.glob("*.npz"))


def test_grey_images_of_class_folders_have_one_channel(home, monkeypatch):
    put_folders(home)
    monkeypatch.setitem(DATASETS, "leaves", folder_row(image_shape=(1, 16, 16)))
    loaded = data.load(DataConfig("leaves", valid_per_class=2))
    assert (loaded.image_shape, len(loaded.x_train), len(loaded.x_valid)) == ((1, 16, 16), 30, 6)


@pytest.mark.parametrize("name", DATASETS)
def test_every_row_is_whole(name):
    spec = DATASETS[name]
    assert spec.name == name
    assert spec.augment in (IN_MEMORY if spec.fits_memory else OF_FILES)
    assert len(spec.classes) in (0, spec.n_classes)
    assert spec.smallest_class <= spec.train_images // spec.n_classes
    assert {len(spec.mean), len(spec.std)} <= {1, spec.image_shape[0]}
    assert len(spec.sha256) in (0, 4)
    assert all(0 <= label < spec.n_classes for label in spec.removed_classes)
    RunConfig().but(data=name, **spec.paper_settings)  # raises on a setting that there is not
    for function in filter(None, (spec.reader, *spec.mirrors.values())):
        assert callable(resolve_name(function))
    assert spec.shipped or spec.reader or not spec.fits_memory


def test_a_config_is_made_without_torch_and_numpy():
    asked = "import sys; from crat.config import RunConfig\n"
    asked += "RunConfig().but(data='CIFAR-10').resolved()\n"
    asked += "assert not {'torch', 'numpy'} & sys.modules.keys(), 'config imports too much'"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_face_of_the_room_is_all_there():
    assert {name for name in data.__all__ if getattr(data, name, None) is None} == set()
    with pytest.raises(AttributeError, match="has no 'nothing'"):
        data.nothing  # noqa: B018


def test_the_network_of_a_config_fits_its_images():
    from crat.training.run import build_model

    config = RunConfig().but(drop_classes=(3, 4))
    loaded = data.load(config.data)
    with torch.no_grad():
        logits = build_model(config).eval()(loaded.x_test[:2].float() / 255)
    assert logits.shape == (2, loaded.n_classes)
