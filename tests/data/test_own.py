"""Images of one's own: a folder or an npz becomes a row, known by its content to later commands."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from crat import data
from crat.cli import main
from crat.config import ConfigError, DataConfig, RunConfig, Selection, images_of, profile
from crat.data import own, sources
from crat.data.registry import DATASETS
from crat.training.run import Run
from crat.training.trainer import train

RNG = np.random.default_rng(3)
SIZES = {"ash": 12, "beech": 9, "cherry": 7}  # unequal classes


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAT_DATA", str(tmp_path / "home"))
    known = dict(DATASETS)
    yield tmp_path
    DATASETS.clear()
    DATASETS.update(known)


def put_folder(top, size=(10, 10), test="test", mode="RGB"):
    for part, share in (("train", 1), (test, 2)):
        for label, (name, n) in enumerate(SIZES.items()):
            folder = top / part / name
            folder.mkdir(parents=True)
            for i in range(-(-n // share)):
                pixels = RNG.integers(0, 60, (*size, 3), dtype=np.uint8)
                pixels[..., label] += 150
                Image.fromarray(pixels).convert(mode).save(folder / f"{i}.png")
    return top


def put_npz(file, **changes):
    y = np.arange(30) % 3
    arrays = {"x_train": RNG.integers(0, 256, (30, 8, 8), dtype=np.uint8), "y_train": y}
    arrays |= {"x_test": RNG.integers(0, 256, (9, 8, 8), dtype=np.uint8), "y_test": y[:9]}
    np.savez(file, **arrays | changes)
    return file


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_folder_is_a_data_set(home, test):
    name = own.register(put_folder(home / "My Trees", test=test), eps="4/255")
    spec = DATASETS[name]
    assert name.startswith("my_trees-")
    assert (spec.image_shape, spec.n_classes, spec.classes) == ((3, 10, 10), 3, tuple(SIZES))
    assert (spec.train_images, spec.test_images, spec.smallest_class) == (28, 15, 7)
    assert (spec.protocol.eps, spec.protocol.step_size) == ("4/255", "1/255")
    images = data.load(name)  # a fifth of the smallest class is for validation
    assert images.y_train.bincount().tolist() == [11, 8, 6]
    assert images.y_valid.bincount().tolist() == [1, 1, 1]
    assert images.y_test.bincount().tolist() == [6, 5, 4]
    brightest = images.x_test.float().mean((2, 3)).argmax(1)
    assert (brightest == images.y_test).all()
    expected = images.x_train.float().mean((0, 2, 3)) / 255
    assert np.allclose(spec.mean, expected, atol=0.02)


def test_a_name_is_of_the_content(home):
    trees = put_folder(home / "trees")
    first = own.register(trees)
    assert own.register(trees) == first
    assert own.register(f"{trees}/") == first
    assert own.register(trees, eps="2/255") != first
    assert own.register(trees, size=8) not in (first, own.register(trees, eps="2/255"))
    moved = trees.rename(home / "moved")
    assert own.register(moved).rpartition("-")[2] == first.rpartition("-")[2]
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(moved / "train/ash/0.png")
    assert own.register(moved).rpartition("-")[2] != first.rpartition("-")[2]


def test_another_process_knows_a_name(home):
    name = own.register(put_folder(home / "trees"), size=6)
    asked = f"from crat import data; print(data.load({name!r}).x_test.shape)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([15, 3, 6, 6])", done.stderr
    assert sources.registered() == [name]
    DATASETS.pop(name)
    assert name in DATASETS
    assert "trees-00000000" not in DATASETS
    (home / "home" / "own" / f"{name}.json").write_text("{")
    DATASETS.pop(name)
    with pytest.raises(data.DataError, match="is damaged"):
        DATASETS[name]


def test_decoded_images_that_are_lost_are_decoded_again(home):
    name = own.register(put_folder(home / "trees"), size=6)
    (home / "home" / f"{name}.npz").unlink()
    assert len(data.load(name).x_test) == 15
    (home / "home" / f"{name}.npz").unlink()
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(home / "trees/train/ash/0.png")
    with pytest.raises(data.DataError, match="is altered"):
        data.load(name)


def test_grey_images_have_one_channel(home):
    assert DATASETS[own.register(put_folder(home / "trees", mode="L"))].image_shape == (1, 10, 10)


def test_hidden_files_and_folders_are_no_images(home):
    trees = put_folder(home / "trees")
    (trees / "train" / ".ipynb_checkpoints").mkdir()
    (trees / "test" / "ash" / ".DS_Store").write_text("?")
    assert DATASETS[own.register(trees)].classes == tuple(SIZES)


def test_an_npz_is_a_data_set(home):
    colour = RNG.integers(0, 256, (9, 3, 8, 8), dtype=np.uint8)
    grey = DATASETS[own.register(put_npz(home / "a.npz"))]
    assert (grey.image_shape, grey.classes) == ((1, 8, 8), ("0", "1", "2"))
    both = {"x_train": RNG.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8), "x_test": colour}
    named = own.register(put_npz(home / "b.npz", **both, classes=np.array(["a", "b", "c"])))
    assert DATASETS[named].image_shape == (3, 8, 8)
    assert DATASETS[named].classes == ("a", "b", "c")
    shown = data.load(DataConfig(named, valid_per_class=1)).x_test
    assert np.array_equal(shown.numpy(), colour)


def other_class(top):
    (top / "test/cherry").rename(top / "test/elm")
    return "class cherry is in one of train and test only"


def empty_class(top):
    for file in (top / "train/beech").iterdir():
        file.unlink()
    return "train/beech has no image: a class needs one at least"


def a_text(top):
    (top / "train/ash/notes.txt").write_text("?")
    return "train/ash/notes.txt is no image"


def a_page(top):
    (top / "train/ash/0.png").write_text("<html>404</html>")
    return "train/ash/0.png is truncated or no image"


def another_size(top):
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(top / "test/ash/0.png")
    return r"12 x 10, not 10 x 10; a size \(--size N\) scales all"


def one_class(top):
    import shutil

    for part in ("train", "test"):
        for name in ("beech", "cherry"):
            shutil.rmtree(top / part / name)
    return "has 1 folders of classes: two or more"


def no_test(top):
    (top / "test").rename(top / "later")
    return r"trees cannot be used: it has no test/ or val/; needed are train/<class>/ and test/"


def no_train(top):
    (top / "train").rename(top / "later")
    return r"trees cannot be used: it has no train/; needed are train/<class>/ and test/<class>/"


@pytest.mark.parametrize(
    "fault", [other_class, empty_class, a_text, a_page, another_size, one_class, no_test, no_train]
)
def test_a_fault_of_a_folder_is_one_line(home, fault):
    message = fault(put_folder(home / "trees"))
    with pytest.raises(data.DataError, match=message) as caught:
        own.register(home / "trees")
    assert "\n" not in str(caught.value)
    assert sources.registered() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((30, 8, 8))}, "x_train of .* is float64 .* not uint8 images"),
        ({"y_train": np.full(30, 0.5)}, "y_train of .* is float64 .*, not whole numbers"),
        ({"y_train": np.arange(30) % 3 - 1}, "not whole numbers from 0"),
        ({"y_test": np.arange(9)}, "label 8 in y_test is out of range"),
        ({"y_test": np.zeros(9, int)}, "no image of class 1 in y_test"),
        ({"x_test": np.zeros((9, 8, 7), np.uint8)}, "wrong shape: x_test"),
        ({"classes": np.array(["a", "b"])}, "no image|out of range|not the names"),
    ],
)
def test_a_fault_of_an_npz_is_one_line(home, changes, message):
    with pytest.raises(data.DataError, match=message) as caught:
        own.register(put_npz(home / "a.npz", **changes))
    assert "\n" not in str(caught.value)


def test_a_pickle_is_not_opened(home):
    np.savez(home / "a.npz", x_train=np.array([{}], object), allow_pickle=True)
    with pytest.raises(data.DataError, match="cannot be used"):
        own.register(home / "a.npz")
    with pytest.raises(ConfigError, match="size scales images in folders"):
        own.register(put_npz(home / "b.npz"), size=8)
    with pytest.raises(data.DataError, match=r"no images in .*nowhere"):
        own.register(home / "nowhere")


def test_a_path_in_a_config_is_registered(home, monkeypatch):
    trees = put_folder(home / "trees")
    config = RunConfig(images_of(str(trees)))
    assert config.data.name == own.register(trees)
    assert (config.data.train_per_class, config.data.valid_per_class) == (None, 1)
    assert config.resolved().train.eps == "8/255"
    monkeypatch.chdir(home)
    assert DataConfig("trees").name == config.data.name
    on = Selection("trees").on_data(profile("laptop"))
    assert (on.data, on.train.epochs) == (config.data, 12)
    with pytest.raises(ConfigError, match="unknown data set 'tree'"):
        DataConfig("tree")


def test_a_run_on_images_of_ones_own(home, own_store):
    config = RunConfig(images_of(str(put_folder(home / "trees"))))
    config = config.but(width=2, epochs=1, batch_size=8, steps=1, dtype="float32")
    run = train(config, device="cpu", progress="none")
    assert run.name.startswith(f"{config.data.name}-small_cnn-pgd_at-s0-")
    assert run.card()["classes"] == list(SIZES)
    assert Run.of(config).finished
    again = json.loads((run.folder / "card.json").read_text())
    assert again["config"]["data"]["name"] == config.data.name


def test_a_run_is_judged_on_other_images_of_yours(home, own_store, capsys):
    trees = put_folder(home / "trees")
    others = put_folder(home / "others", size=(14, 12))
    words = ["--epochs", "1", "--steps", "1", "--width", "2", "--batch-size", "8"]
    assert main(["train", "--data", str(trees), "--size", "8", *words]) == 0
    run = next((home / "runs").glob("trees-*")).name
    capsys.readouterr()
    judged = ["evaluate", run, "--attacks", "FGSM", "--data", str(others)]
    assert main([*judged, "--size", "8"]) == 0
    shown = capsys.readouterr().out
    assert f"test images of {own.register(others, size=8)}, best epoch" in shown
    assert "cherry" in shown
    assert main([*judged, "--size", "9"]) == 2
    assert "has other classes or shapes than trees-" in capsys.readouterr().err


def test_a_plan_takes_a_folder(home, own_store, capsys):
    trees = put_folder(home / "trees", size=(12, 14))
    assert main(["reproduce", "01", "--data", str(trees), "--size", "8", "--dry-run"]) == 0
    assert f"{own.register(trees, size=8)}-small_cnn-pgd_at-s0" in capsys.readouterr().out
