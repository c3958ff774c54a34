"""Damaged files of data sets: each gives one line with the file's name; nothing is replaced."""

import io

import numpy as np
import pytest
from data_files import (
    RNG,
    changed_row,
    cut_short,
    empty_home,
    idx,
    idx_files,
    jpeg,
    kept_npz,
    made,
    put_mnist,
    put_tiny_imagenet,
    write,
)
from PIL import Image

from crat import data
from crat.corruptions.weather import CorruptionError, frost_panes
from crat.data import DataError, folder, load, sources


@pytest.fixture
def home(tmp_path, monkeypatch):
    return empty_home(tmp_path, monkeypatch)


def npy_under_the_name_of_an_npz(home, monkeypatch):
    with (home / "mnist.npz").open("wb") as file:
        np.save(file, made("mnist")["x_train"])
    return lambda: load("mnist")


def text_under_the_name_of_an_npz(home, monkeypatch):
    (home / "mnist.npz").write_text("<html>404</html>")
    return lambda: load("mnist")


def folder_under_the_name_of_an_npz(home, monkeypatch):
    (home / "mnist.npz").mkdir()
    return lambda: load("mnist")


def labels_without_an_axis(home, monkeypatch):
    kept_npz(home, y_test=np.array(3, np.uint8))
    return lambda: load("mnist")


def one_hot_labels(home, monkeypatch):
    kept_npz(home, y_train=np.eye(10, dtype=np.uint8)[made("mnist")["y_train"]])
    return lambda: load("mnist")


def class_without_images(home, monkeypatch):
    arrays = made("mnist")
    keep = arrays["y_test"] != 7
    kept_npz(home, x_test=arrays["x_test"][keep], y_test=arrays["y_test"][keep])
    return lambda: load("mnist")


def npz_without_class_names(home, monkeypatch):
    changed_row(monkeypatch, "tiny_imagenet", n_classes=2)
    np.savez(home / "tiny_imagenet.npz", **made("tiny_imagenet"))
    return lambda: load("tiny_imagenet")


def idx_of_another_type(home, monkeypatch):
    put_mnist("mnist", home, monkeypatch)
    path = home / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.write_bytes(b"\0\0\x0d" + path.read_bytes()[3:])
    return lambda: load("mnist")


def empty_idx(home, monkeypatch):
    put_mnist("mnist", home, monkeypatch)
    (home / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(b"")
    return lambda: load("mnist")


def fewer_idx_labels_than_images(home, monkeypatch):
    put_mnist("mnist", home, monkeypatch)
    (home / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(idx(np.zeros(29, np.uint8)))
    return lambda: load("mnist")


def text_for_a_jpeg(home, monkeypatch):
    put_tiny_imagenet("tiny_imagenet", home, monkeypatch)
    (home / "tiny-imagenet-200/train/n01/images/n01_1.JPEG").write_text("<html>404</html>")
    return lambda: load("tiny_imagenet")


def empty_class_folder(home, monkeypatch):
    put_tiny_imagenet("tiny_imagenet", home, monkeypatch)
    for file in (home / "tiny-imagenet-200/train/n02/images").iterdir():
        file.unlink()
    return lambda: load("tiny_imagenet")


def annotation_of_an_unknown_class(home, monkeypatch):
    put_tiny_imagenet("tiny_imagenet", home, monkeypatch)
    (home / "tiny-imagenet-200/val/val_annotations.txt").write_text("val_0.JPEG\tn99\n")
    return lambda: load("tiny_imagenet")


def words_without_a_tab(home, monkeypatch):
    put_tiny_imagenet("tiny_imagenet", home, monkeypatch)
    (home / "tiny-imagenet-200/words.txt").write_text("n01 goldfish\n")
    return lambda: load("tiny_imagenet")


def imagenet(home):
    files = {f"n0{k}/{i}.JPEG": jpeg() for k in (1, 2) for i in range(2)}
    write(home / "imagenet/val", files)
    return home / "imagenet/val"


def truncated_image_of_imagenet(home, monkeypatch):
    cut_short(imagenet(home) / "n02/1.JPEG")
    return lambda: data.imagenet_validation(0, size=32).x_test[:]


def text_for_an_image_of_imagenet(home, monkeypatch):
    (imagenet(home) / "n01/0.JPEG").write_text("<html>404</html>")
    return lambda: data.imagenet_validation(0, size=32).x_test[:]


def empty_class_of_imagenet(home, monkeypatch):
    (imagenet(home) / "n03").mkdir()
    return lambda: data.imagenet_validation(0, size=32)


WRONG = {
    npy_under_the_name_of_an_npz: "mnist.npz is truncated or damaged: it is no npz of plain "
    "arrays; nothing was",
    text_under_the_name_of_an_npz: "mnist.npz is truncated or damaged: it is no npz of plain "
    "arrays; nothing was",
    folder_under_the_name_of_an_npz: "mnist.npz is truncated or damaged: .*Is a directory",
    labels_without_an_axis: r"wrong shape: .*y_test uint8 \(\), not uint8",
    one_hot_labels: r"wrong shape: .*y_train uint8 \(30, 10\), not uint8",
    class_without_images: "mnist.npz: no image of class 7 in y_test, of 10 classes",
    npz_without_class_names: "tiny_imagenet.npz: `classes` are not the names of 2 classes",
    idx_of_another_type: "t10k-labels-idx1-ubyte is truncated or no IDX file of bytes",
    empty_idx: r"t10k-labels-idx1-ubyte is truncated or no IDX file of bytes \(0 bytes, with "
    r"another head\)",
    fewer_idx_labels_than_images: r"wrong shape: .*y_train uint8 \(29,\)",
    text_for_a_jpeg: "n01_1.JPEG is truncated or no image: cannot identify .*; nothing was "
    "replaced; get it anew",
    empty_class_folder: "no image of class 1 in y_train, of 2 classes",
    annotation_of_an_unknown_class: "val_annotations.txt cannot be used: .*n99",
    words_without_a_tab: "words.txt cannot be used: .*; it has a line for each class: folder, "
    "tab, name",
    truncated_image_of_imagenet: "val/n02/1.JPEG is truncated or no image: .*; nothing was "
    "replaced; get it anew, or",
    text_for_an_image_of_imagenet: "val/n01/0.JPEG is truncated or no image: cannot identify",
    empty_class_of_imagenet: "val/n03 has no image: a class needs one at least",
}


@pytest.mark.parametrize("situation", WRONG, ids=lambda situation: situation.__name__)
def test_damage_is_one_line_and_replaces_nothing(situation, home, monkeypatch):
    act = situation(home, monkeypatch)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=WRONG[situation]) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert "allow_pickle" not in str(caught.value)
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def altered(content, kind, rng):
    """A file cut short, with random bytes somewhere, or lengthened."""
    content, place = bytearray(content), int(rng.integers(len(content)))
    if kind == "cut":
        return bytes(content[:place])
    if kind == "longer":
        return bytes(content) + bytes(place % 50 + 1)
    content[place : place + 4] = rng.bytes(4)
    return bytes(content)


@pytest.mark.parametrize("kind", ["cut", "overwritten", "longer"])
def test_whatever_is_altered_is_a_data_error_or_harmless(kind, home, monkeypatch):
    """Sixty random alterations of an npz and of IDX files: no other exception, no other labels."""
    rng = np.random.default_rng(0)
    whole = kept_npz(home).read_bytes()
    (home / "mnist.npz").unlink()
    idxs = idx_files(made("mnist"))
    outcomes = []
    for i in range(60):
        (home / "mnist.npz").unlink(missing_ok=True)
        write(home / "MNIST/raw", idxs)
        if i % 2:
            (home / "mnist.npz").write_bytes(altered(whole, kind, rng))
        else:
            name = list(idxs)[i // 2 % 4]
            (home / "MNIST/raw" / name).write_bytes(altered(idxs[name], kind, rng))
        for act in (lambda: sources.read("mnist"), sources.listing):
            try:
                outcomes.append(act())
            except DataError as error:
                outcomes.append(error)
    errors = [outcome for outcome in outcomes if isinstance(outcome, DataError)]
    assert not any("\n" in str(error) for error in errors)
    assert len(errors) > 10 or kind != "cut"
    assert all(o["x_train"].shape == (30, 28, 28, 1) for o in outcomes if isinstance(o, dict))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP"])
def test_an_altered_image_is_a_data_error_or_an_image(format, tmp_path):
    rng, content = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(content, format)
    path, refused = tmp_path / f"0.{format}", []
    for i in range(150):
        path.write_bytes(altered(content.getvalue(), ("cut", "overwritten")[i % 2], rng))
        try:
            assert folder.decoded(path).mode == "RGB"
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert all(str(path) in line and "\n" not in line for line in refused)


def test_a_damaged_texture_of_frost_is_named(tmp_path):
    (tmp_path / "frost1.png").write_text("<html>404</html>")
    with pytest.raises(
        CorruptionError, match=r"the frost images cannot be read: .*frost1.png is truncated or no"
    ):
        frost_panes(str(tmp_path))
