"""Images in class folders: a user's own, those of Tiny-ImageNet, and those of ImageNet.

They are decoded at once into arrays; where they do not fit in memory, only their files are listed
(crat.data.streamed decodes them).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crat.data.files import Arrays, DataError, one_line
from crat.data.registry import DatasetSpec

if TYPE_CHECKING:
    from PIL import Image

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
Labelled = list[tuple[Path, int]]  # an image file and the number of its class


def read_class_folders(spec: DatasetSpec, root: Path) -> Arrays:
    """The arrays of a row whose landmark is a folder of class folders, in the row's shape.

    Those of a row without names of classes hold the folders' names. Raises as `class_arrays`.
    """
    channels, height, width = spec.image_shape
    arrays = class_arrays(root / spec.landmark, (height, width), channels=channels)
    if spec.classes:
        del arrays["classes"]
    return arrays


def class_arrays(
    top: Path, shape: tuple[int, int] | None, *, scale: bool = False, channels: int | None = None
) -> Arrays:
    """Decodes top/train/<class>/* and top/test/<class>/* (or val/), classes numbered by name.

    shape, scale, channels: as in `_decode`. None: that of the first image; 1 where all are grey.
    Raises DataError, one line, on other classes in the test folder, on a class without images, and
    on a file that is no image, or has another size.
    """
    test = top / "test" if (top / "test").is_dir() else top / "val"
    classes = _classes(top / "train", test)
    folders = {"train": top / "train", "test": test}
    files = {part: _labelled(folder, classes) for part, folder in folders.items()}
    if shape is None:
        first = decoded(files["train"][0][0])
        shape = (first.height, first.width)
    if channels is None:
        channels = 1 if all(_is_grey(file) for of in files.values() for file, _ in of) else 3
    arrays: Arrays = {"classes": np.array(classes)}
    for part, of in files.items():
        arrays[f"x_{part}"], arrays[f"y_{part}"] = _decode(of, shape, channels, scale=scale)
    return arrays


def _classes(train: Path, test: Path) -> list[str]:
    """The names of the classes: the folders in `train`, which `test` must have, too; sorted.

    Raises DataError where a folder is missing, or a class in one of them.
    """
    needs = "needed are train/<class>/ and test/<class>/ (or val/<class>/) with images"
    for part, name in ((train, "train/"), (test, "test/ or val/")):
        if not part.is_dir():
            raise DataError(f"{train.parent} cannot be used: it has no {name}; {needs}")
    with one_line(f"{train.parent} cannot be used", needs):
        classes = _folders(train)
        others = sorted(set(classes) ^ set(_folders(test)))
    if others:
        raise DataError(
            f"{train.parent}: class {others[0]} is in one of train and {test.name} only"
        )
    if len(classes) < 2:
        raise DataError(f"{train} has {len(classes)} folders of classes: two or more are needed")
    return classes


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted; hidden ones, as editors make, are left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _labelled(folder: Path, classes: Sequence[str]) -> Labelled:
    """The image files of the class folders, each with the number of its class; as `_images_in`."""
    return [
        (folder / name / file, label)
        for label, name in enumerate(classes)
        for file in _images_in(folder / name)
    ]


def _images_in(folder: Path) -> list[str]:
    """The names of the image files in the folder of a class, sorted; hidden files are left out.

    Raises DataError on another file that is no image, and where there is none.
    """
    files = sorted(file for file in os.listdir(folder) if file[0] != ".")
    if not files:
        raise DataError(f"{folder} has no image: a class needs one at least")
    for file in files:
        if not file.lower().endswith(IMAGES):
            raise DataError(f"{folder / file} is no image ({', '.join(IMAGES)}): remove it")
    return files


def listed(top: Path, parts: Sequence[str] = ("train", "test")) -> Arrays:
    """The image files of top/train/<class>/ and top/test/<class>/ (or val/); none is decoded.

    x_train, x_test: their paths in `top`, (N,) bytes. y_train, y_test: (N,), as of `_decode`.
    classes: the names. parts: only these.
    Raises DataError as `class_arrays`, except on what a file holds.
    """
    tests = "test" if (top / "test").is_dir() else "val"
    folders = {"train": "train", "test": tests}
    if len(parts) == 2:
        classes = _classes(top / "train", top / tests)
    else:
        only = top / folders[parts[0]]
        with one_line(f"no images in {only}", f"they are looked for in {only}/<class>/"):
            classes = _folders(only)
    arrays: Arrays = {"classes": np.array(classes)}
    for part in parts:
        names: list[bytes] = []
        counts = []
        for name in classes:
            files = _images_in(top / folders[part] / name)
            names += [os.fsencode(f"{folders[part]}/{name}/{file}") for file in files]
            counts.append(len(files))
        arrays[f"x_{part}"] = np.array(names)
        arrays[f"y_{part}"] = _smallest_uint(np.repeat(np.arange(len(classes)), counts))
    return arrays


def read_listed(spec: DatasetSpec, root: Path) -> Arrays:
    """The files of a row whose images do not fit in memory: as `listed`."""
    return listed(root / spec.landmark)


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
    x_train, y_train = _decode(train, spec.image_shape[1:])
    x_test, y_test = _decode(test, spec.image_shape[1:])
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return arrays | {"classes": np.array(classes)}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _decode(
    files: Labelled, shape: tuple[int, int], channels: int = 3, *, scale: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes images uint8 (N, H, W, channels), and their labels (N,), uint8 up to 256 classes.

    shape: (H, W) of all images. scale: whether images of another size are scaled until their short
    side fits, and their centre is cut out; else they raise DataError. channels: 3, or 1 for grey.
    """
    from tqdm import tqdm

    height, width = shape
    x = np.empty((len(files), height, width, channels), np.uint8)
    for i, (file, _) in enumerate(tqdm(files, "decoding", unit=" images", disable=None)):
        image = decoded(file)
        if scale:
            image = _fitted(image, width, height)
        if image.size != (width, height):
            found = " x ".join(map(str, image.size))
            raise DataError(
                f"{file} has a wrong shape: {found}, not {width} x {height}; "
                "a size (--size N) scales all"
            )
        x[i] = np.asarray(image.convert("L"))[..., None] if channels == 1 else np.asarray(image)
    return x, _smallest_uint(np.array([label for _, label in files]))


def _smallest_uint(labels: np.ndarray) -> np.ndarray:
    """The labels as uint8 up to 256 classes, else as uint16."""
    return labels.astype(np.uint8 if labels.max() < 256 else np.uint16)


def _fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image scaled until it covers the size, and its centre of that size."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)


def decoded(path: str | Path) -> Image.Image:
    """The image of a file, in RGB; raises DataError with its name where it is damaged."""
    from PIL import Image

    with one_line(f"{path} is truncated or no image", "get it anew, or remove it"):
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except Image.DecompressionBombError as error:
            raise ValueError(error) from None


def _is_grey(path: Path) -> bool:
    """Whether a file's image is stored with one channel; raises DataError where it is damaged."""
    from PIL import Image

    damaged = one_line(f"{path} is truncated or no image", "get it anew, or remove it")
    with damaged, Image.open(path) as image:
        return image.mode in ("1", "L", "I", "I;16", "F")
