"""The original file formats of the data sets, read by torchvision where it can, into uint8 arrays
(N, H, W, C).
"""

from __future__ import annotations

import errno
import gzip
import lzma
import math
import os
import pickle
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader

Arrays = dict[str, np.ndarray]
MINI = "fashion_mnist_mini"  # shipped in the package
SHAPES = {  # height, width and channels of an image; number of classes
    MINI: (28, 28, 1, 10),
    "fashion_mnist": (28, 28, 1, 10),
    "mnist": (28, 28, 1, 10),
    "cifar10": (32, 32, 3, 10),
    "cifar100": (32, 32, 3, 100),
    "svhn": (32, 32, 3, 10),
    "stl10": (96, 96, 3, 10),
    "tiny_imagenet": (64, 64, 3, 200),
}
IMAGES = {  # for training and for testing
    MINI: (8000, 2000),
    "fashion_mnist": (60_000, 10_000),
    "mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "svhn": (73_257, 26_032),
    "stl10": (5000, 8000),
    "tiny_imagenet": (100_000, 10_000),
}

_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# CIFAR-100 (Krizhevsky 2009, section 3.1); both levels are numbered alphabetically
SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
CLASSES = {  # Tiny-ImageNet's are read from its folder
    "fashion_mnist_mini": _FASHION,
    "fashion_mnist": _FASHION,
    "mnist": _DIGITS,
    "svhn": _DIGITS,
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    "cifar100": tuple(sorted(" ".join(SUPERCLASSES.values()).split())),
    "stl10": ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
}

# Below data_home(), as torchvision lays them out: what is looked for, and the archives it is
# unpacked from.
ORIGINALS = {
    "mnist": ("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/*-ubyte.gz"),
    "fashion_mnist": ("FashionMNIST/raw/train-images-idx3-ubyte", "FashionMNIST/raw/*-ubyte.gz"),
    "cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": ("cifar-100-python", "cifar-100-python.tar.gz"),
    "svhn": ("train_32x32.mat", "train_32x32.mat"),
    "stl10": ("stl10_binary", "stl10_binary.tar.gz"),
    "tiny_imagenet": ("tiny-imagenet-200", "tiny-imagenet-200.zip"),
}
DAMAGE = (  # what readers of images and archives raise on them, and downloads
    AssertionError,
    AttributeError,
    EOFError,
    HTTPException,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    pickle.UnpicklingError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
# instead of numpy's advice to load whatever code lies in the file
NO_NPZ = "it is no npz of plain arrays"


class DataError(RuntimeError):
    """Images that cannot be had or used: one line that says what is wrong, where, and how to mend
    it.
    """


def data_home() -> Path:
    """The folder of the images: CRAT_DATA, else `crat` in the user's cache folder."""
    if given := os.environ.get("CRAT_DATA"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        cache = "~/Library/Caches"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "crat"


@contextmanager
def one_line(what: str, how: str = "") -> Iterator[None]:
    """Turn what goes wrong inside with files and networks into one line of DataError."""
    try:
        yield
    except DataError:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        reason = NO_NPZ if "allow_pickle" in reason else reason
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason, how = "no space left", "free some, or set CRAT_DATA to another folder"
        raise DataError(
            f"{what}: {reason}; nothing was replaced" + (f"; {how}" if how else "")
        ) from error


def read_originals(name: str, root: Path, scratch: Path) -> Arrays:
    """Decode a data set from its original files below root; archives are unpacked into scratch,
    root stays as it is.

    Raises DataError or one of DAMAGE on missing, truncated or altered files.
    """
    landmark, packed = ORIGINALS[name]
    if not (root / landmark).exists():
        for archive in sorted(root.glob(packed)):
            # before it may write wherever its member names point to
            if archive.name.endswith(".tar.gz"):
                _check_md5(archive, _kind(name)[0].tgz_md5)
            unpack(archive, scratch / archive.parent.relative_to(root))
        root = scratch
    return (
        _tiny_imagenet(root / landmark) if name == "tiny_imagenet" else read_torchvision(name, root)
    )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .gz file, a .zip or a tar archive into a folder; raises DataError with the archive's
    name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with one_line(f"unpacking {archive}", "if it is truncated or damaged, get it anew"):
        if archive.name.endswith("-ubyte.gz"):
            with gzip.open(archive) as packed, (folder / archive.stem).open("wb") as file:
                shutil.copyfileobj(packed, file)
        else:
            shutil.unpack_archive(archive, folder)


def read_torchvision(name: str, root: Path, download: bool = False) -> Arrays:
    """Decode original files below root by torchvision's readers; raises DataError on missing or
    altered ones.

    CIFAR's original format is pickle, which runs what it holds: every file's md5 is checked before
    it is opened.
    """
    kind, splits = _kind(name)
    if not download:
        _check_files(kind, root)
    arrays: Arrays = {}
    for part, split in zip(("train", "test"), splits, strict=True):
        data = kind(root, download=download, **split)
        x, y = (
            np.asarray(data.data),
            np.asarray(data.labels if hasattr(data, "labels") else data.targets),
        )
        x = x[..., None] if x.ndim == 3 else x.transpose(0, 2, 3, 1) if x.shape[1] == 3 else x
        if y.min() < 0 or y.max() > 255:
            raise DataError(
                f"label {y.min()} or {y.max()} in the {part} files of {name} is out of range"
            )
        arrays |= {f"x_{part}": np.ascontiguousarray(x), f"y_{part}": y.astype(np.uint8)}
    return arrays


def _kind(name: str) -> tuple[Any, list[dict[str, Any]]]:
    from torchvision import datasets

    if name in ("svhn", "stl10"):
        # STL-10 without its 100,000 unlabelled images, which torchvision else wants to see in the
        # folder.
        labelled = type("STL10", (datasets.STL10,), {"train_list": datasets.STL10.train_list[:2]})
        return (datasets.SVHN if name == "svhn" else labelled), [
            {"split": "train"},
            {"split": "test"},
        ]
    kinds = {
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }
    return kinds[name], [{"train": True}, {"train": False}]


def _check_files(kind: Any, root: Path) -> None:
    """Every original file is there and, where torchvision knows its md5, unaltered."""
    if hasattr(kind, "split_list"):  # SVHN
        files = [
            (file, md5) for _, file, md5 in (kind.split_list[part] for part in ("train", "test"))
        ]
    # MNIST: md5 of the packed files only; ours of the decoded arrays follows
    elif hasattr(kind, "resources"):
        files = [(f"{kind.__name__}/raw/{Path(file).stem}", None) for file, _ in kind.resources]
    else:  # CIFAR, STL-10
        meta = [(kind.meta["filename"], kind.meta["md5"])] if hasattr(kind, "meta") else []
        files = [
            (f"{kind.base_folder}/{file}", md5)
            for file, md5 in [*kind.train_list, *kind.test_list, *meta]
        ]
    for file, md5 in files:
        if not (root / file).is_file():
            raise DataError(f"{root / file} is missing beside the other files of its data set")
        if md5:
            _check_md5(root / file, md5)
        elif "-ubyte" in file:
            _check_idx(root / file)


def _check_idx(path: Path) -> None:
    """An IDX file of bytes has the size that its head tells: 0, 0, 8, the number of axes, then
    their lengths.
    """
    with one_line(f"{path} cannot be read"), path.open("rb") as file:
        head = file.read(4)
        n = head[3] if len(head) == 4 else 0
        lengths = [int.from_bytes(file.read(4), "big") for _ in range(n)]
    size, right = path.stat().st_size, len(head) + 4 * n + math.prod(lengths)
    if head[:3] != b"\0\0\x08" or n not in (1, 3) or size != right:
        told = f"{size} bytes" + (
            f", not the {right} that its head tells" if n in (1, 3) else ", with another head"
        )
        raise DataError(
            f"{path} is truncated or no IDX file of bytes ({told}); nothing was replaced; get it "
            f"anew"
        )


def _check_md5(path: Path, md5: str) -> None:
    from torchvision.datasets.utils import calculate_md5

    if (found := calculate_md5(path)) != md5:
        raise DataError(
            f"{path} is truncated or altered: md5 {found}, not {md5}; nothing was replaced"
        )


def _tiny_imagenet(root: Path) -> Arrays:
    """Decode the original folders; its labelled validation images serve as the test set, whose
    labels are secret.
    """
    labels = {
        path.name: i
        for i, path in enumerate(sorted(p for p in (root / "train").iterdir() if p.is_dir()))
    }
    train = [
        (file, y)
        for wnid, y in labels.items()
        for file in sorted((root / "train" / wnid).glob("images/*.JPEG"))
    ]
    annotations = root / "val" / "val_annotations.txt"
    with one_line(f"{annotations} cannot be used", "its lines are: file, tab, folder of the class"):
        lines = [line.split("\t") for line in annotations.read_text(encoding="utf-8").splitlines()]
        test = [(root / "val" / "images" / file, labels[wnid]) for file, wnid, *_ in lines]
    with one_line(
        f"{root / 'words.txt'} cannot be used", "it has a line for each class: folder, tab, name"
    ):
        words = dict(
            line.split("\t")[:2]
            for line in (root / "words.txt").read_text(encoding="utf-8").splitlines()
        )
        names = [words[wnid].split(",")[0] for wnid in labels]
    names = names if len(set(names)) == len(names) else list(labels)
    (x_train, y_train), (x_test, y_test) = _decode(train), _decode(test)
    return {
        "x_train": x_train,
        "y_train": y_train,
        "x_test": x_test,
        "y_test": y_test,
        "classes": np.array(names),
    }


def imagenet_loader(
    split: str,
    batch_size: int,
    generator: torch.Generator,
    folder: Path | None = None,
    workers: int = min(8, os.cpu_count() or 1),
    size: int = 224,
) -> DataLoader:
    """Batches (x float32 (B, 3, size, size) in [0, 1], y int64 (B,)) decoded from
    folder/split/<class>/*, as needed.

    split "train": shuffled, a random resized crop, flips; "val": in order, the centre of the image
    scaled to size * 256 / 224. folder: None is `data_home()/imagenet`. The generator seeds the
    order and the workers, which alone draw random numbers. Raises DataError where the images or,
    for training, the workers are missing; while iterated, with the name of an image that cannot be
    decoded.
    """
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    class Images(DataLoader):
        def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
            try:
                yield from super().__iter__()
            # a worker's comes with its traceback, of which it is the last line
            except DataError as error:
                told = str(error).strip().splitlines()
                raise DataError(
                    told[0] if len(told) == 1 else told[-1].partition(": ")[2]
                ) from None

    train, folder = split == "train", folder or data_home() / "imagenet"
    if train and workers < 1:
        raise DataError(
            "imagenet_loader needs at least one worker for training: it draws the random crops"
        )
    if train:
        steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    else:
        steps = [transforms.Resize(size * 256 // 224), transforms.CenterCrop(size)]
    with one_line(f"imagenet in {folder}", f"images are looked for in {folder / split}/<class>/"):
        transform = transforms.Compose([*steps, transforms.ToTensor()])
        images = datasets.ImageFolder(str(folder / split), transform, loader=decoded)
    return Images(images, batch_size, shuffle=train, num_workers=workers, generator=generator)


def decoded(path: str | Path) -> Image.Image:
    """The image of a file, in RGB; raises DataError with its name where it is truncated or none."""
    from PIL import Image

    with one_line(f"{path} is truncated or no image", "get it anew, or remove it"):
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except Image.DecompressionBombError as error:
            raise ValueError(error) from None


def _decode(files: list[tuple[Path, int]]) -> tuple[np.ndarray, np.ndarray]:
    from tqdm import tqdm

    x = np.empty((len(files), *SHAPES["tiny_imagenet"][:3]), np.uint8)
    for i, (file, _) in enumerate(tqdm(files, "decoding", unit=" images", disable=None)):
        image = decoded(file)
        if image.size != (x.shape[2], x.shape[1]):
            raise DataError(
                f"{file} has a wrong shape: {image.size}, not {(x.shape[2], x.shape[1])}"
            )
        x[i] = np.asarray(image)
    return x, np.array([y for _, y in files], np.uint8)
