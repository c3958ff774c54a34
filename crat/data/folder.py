"""Images in class folders: a user's own, those of Tiny-ImageNet, and those of ImageNet.

ImageNet's are decoded batch by batch, the others at once into arrays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crat.data.files import Arrays, DataError, data_home, one_line
from crat.data.registry import DatasetSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
Labelled = list[tuple[Path, int]]  # an image file and the number of its class


def read_class_folders(spec: DatasetSpec, root: Path) -> Arrays:
    """Decodes <landmark>/train/<class>/* and test/<class>/* (or val/), classes numbered by name.

    Every image has the shape of the row; there is no rescaling. The arrays of a row without names
    of classes hold those of the folders. Raises DataError, one line, on other classes in the test
    folder, another size or a damaged image.
    """
    top = root / spec.landmark
    test_folder = top / "test" if (top / "test").is_dir() else top / "val"
    with one_line(f"{top} cannot be used", "it has train/<class>/ and test/<class>/ with images"):
        classes = _folders(top / "train")
        others = sorted(set(classes) ^ set(_folders(test_folder)))
        if others:
            places = f"train and {test_folder.name}"
            raise DataError(f"{top}: class {others[0]} is in one of {places} only")
    x_train, y_train = _decode(_labelled(top / "train", classes), spec)
    x_test, y_test = _decode(_labelled(test_folder, classes), spec)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return arrays if spec.classes else arrays | {"classes": np.array(classes)}


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _labelled(folder: Path, classes: list[str]) -> Labelled:
    return [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in IMAGES
    ]


def read_tiny_imagenet(spec: DatasetSpec, root: Path) -> Arrays:
    """Decodes Tiny-ImageNet; its validation images are the test set, whose labels are secret."""
    top = root / spec.landmark
    labels = {name: label for label, name in enumerate(_folders(top / "train"))}
    train = [
        (file, label)
        for name, label in labels.items()
        for file in sorted((top / "train" / name).glob("images/*.JPEG"))
    ]
    annotations = top / "val" / "val_annotations.txt"
    with one_line(f"{annotations} cannot be used", "its lines are: file, tab, folder of the class"):
        lines = [line.split("\t") for line in _lines(annotations)]
        test = [(top / "val" / "images" / file, labels[name]) for file, name, *_ in lines]
    with one_line(
        f"{top / 'words.txt'} cannot be used", "it has a line for each class: folder, tab, name"
    ):
        words = dict(line.split("\t")[:2] for line in _lines(top / "words.txt"))
        classes = [words[name].split(",")[0] for name in labels]
    if len(set(classes)) < len(classes):
        classes = list(labels)
    x_train, y_train = _decode(train, spec)
    x_test, y_test = _decode(test, spec)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return arrays | {"classes": np.array(classes)}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _decode(files: Labelled, spec: DatasetSpec) -> tuple[np.ndarray, np.ndarray]:
    """Decodes images uint8 (N, H, W, C) and labels uint8 (N,), each image of the row's size."""
    from tqdm import tqdm

    channels = spec.image_shape[0]
    height, width = spec.image_shape[1:]
    x = np.empty((len(files), height, width, channels), np.uint8)
    for i, (file, _) in enumerate(tqdm(files, "decoding", unit=" images", disable=None)):
        image = decoded(file)
        if image.size != (width, height):
            raise DataError(f"{file} has a wrong shape: {image.size}, not {(width, height)}")
        x[i] = np.asarray(image.convert("L"))[..., None] if channels == 1 else np.asarray(image)
    return x, np.array([label for _, label in files], np.uint8)


def decoded(path: str | Path) -> Image.Image:
    """The image of a file, in RGB; raises DataError with its name where it is damaged."""
    from PIL import Image

    with one_line(f"{path} is truncated or no image", "get it anew, or remove it"):
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except Image.DecompressionBombError as error:
            raise ValueError(error) from None


def imagenet_loader(
    split: str,
    batch_size: int,
    generator: torch.Generator,
    folder: Path | None = None,
    workers: int = min(8, os.cpu_count() or 1),
    size: int = 224,
) -> DataLoader:
    """Batches decoded one by one: x float32 (B, 3, size, size) in [0, 1], y int64 (B,).

    The images are folder/split/<class>/*. split "train": shuffled, a random resized crop, flips;
    "val": in order, the centre of the image scaled to size * 256 / 224. folder: None is
    `data_home()/imagenet`. The generator seeds the order and the workers, which alone draw random
    numbers. Raises DataError where the images or, for training, the workers are missing; while
    iterated, with the name of an image that cannot be decoded.
    """
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    class Images(DataLoader):
        def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
            try:
                yield from super().__iter__()
            # a worker's comes with its traceback, of which it is the last line
            except DataError as error:
                lines = str(error).strip().splitlines()
                raise DataError(
                    lines[0] if len(lines) == 1 else lines[-1].partition(": ")[2]
                ) from None

    train = split == "train"
    folder = folder or data_home() / "imagenet"
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
