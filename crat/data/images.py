"""The images of a data set, split per class as in the papers, and batches of them.

    data = load(DataConfig("cifar10", split="first")).to(device)
    for x, y in Batches(data.x_train, data.y_train, 128, generator, augment="crop_flip"): ...

Module `sources` finds the files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crat.config import ConfigError, DataConfig, images_of
from crat.data.augment import IN_MEMORY, OF_FILES, random_crop, random_flip
from crat.data.files import DataError, data_home
from crat.data.folder import listed
from crat.data.registry import DATASETS, DatasetSpec
from crat.data.sources import read
from crat.data.streamed import Streamed
from crat.device import moved, precise, sent

if TYPE_CHECKING:
    import pandas as pd


Images = Tensor | Streamed  # uint8 (N, C, H, W), in memory or in files


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits: images uint8 (N, C, H, W) in 0..255, labels int64 (N,) in 0..K-1.

    Images that do not fit in memory are files, decoded when they are asked for.
    """

    x_train: Images
    y_train: Tensor
    x_valid: Images
    y_valid: Tensor
    x_test: Images
    y_test: Tensor
    classes: tuple[str, ...]  # names in the order of the labels
    name: str
    original_labels: tuple[int, ...]  # of each class in the whole data set, before class removal

    @property
    def n_classes(self) -> int:
        """The number of classes K."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        _, *shape = self.x_train.shape
        return tuple(shape)  # type: ignore[return-value]

    def to(self, device: torch.device | str) -> Dataset:
        """The data set with every tensor on the device: one move, before the first epoch."""
        tensors: dict[str, Any] = {
            key: value.to(device)
            for key, value in vars(self).items()
            if isinstance(value, (Tensor, Streamed))
        }
        return replace(self, **tensors)

    def counts(self) -> pd.DataFrame:
        """The number of images by split and class: columns split, label, class, n."""
        import pandas as pd

        rows = []
        parts = {"train": self.y_train, "valid": self.y_valid, "test": self.y_test}
        for split, y in parts.items():
            n = y.bincount(minlength=self.n_classes).tolist()
            rows += [(split, k, name, n[k]) for k, name in enumerate(self.classes)]
        return pd.DataFrame(rows, columns=["split", "label", "class", "n"])


def load(config: DataConfig | str = "fashion_mnist_mini") -> Dataset:
    """The images of a configuration, or of a data set by its name.

    Each class is drawn on its own (first: in file order; stratified: in an order seeded by
    split_seed and the class), validation before training. So a class has the same validation images
    whatever else is asked, and a smaller subset is part of a larger one. Class removal renumbers
    the labels. A long tail thins the training images only. Raises DataError where files or images
    are missing, ConfigError on an unknown name or class.
    """
    if isinstance(config, str):
        config = images_of(config)
    spec = DATASETS[config.name]
    kept = config.kept_classes()
    arrays = read(config.name)
    names = spec.classes or tuple(arrays["classes"].tolist())
    train, valid = _split(arrays["y_train"], kept, names, config)
    test = np.flatnonzero(np.isin(arrays["y_test"], kept))
    renumber = np.full(len(names), -1, np.int64)
    renumber[list(kept)] = np.arange(len(kept))
    tensors: dict[str, Any] = {}
    chosen = (("train", "train", train), ("valid", "train", valid), ("test", "test", test))
    for split, source, index in chosen:
        tensors[f"x_{split}"] = _images(spec, arrays[f"x_{source}"], index)
        tensors[f"y_{split}"] = torch.from_numpy(renumber[arrays[f"y_{source}"][index]])
    classes = tuple(names[k] for k in kept)
    return Dataset(**tensors, classes=classes, name=config.name, original_labels=kept)


def _images(spec: DatasetSpec, x: np.ndarray, index: np.ndarray) -> Images:
    """The images at some places of a data set's arrays; of its files, where it is not decoded."""
    if not spec.fits_memory:
        return Streamed(data_home() / spec.landmark, x[index], spec.image_shape[1])
    images = torch.from_numpy(x).index_select(0, torch.from_numpy(index))
    return images.permute(0, 3, 1, 2).contiguous()


def imagenet_validation(images: int = 1000, folder: Path | None = None, size: int = 224) -> Dataset:
    """ImageNet's validation images for judging a model: a number of them over all classes.

    They are the test set; as many others, next to them in the files, are the validation set; none
    is for training. 0 means all. folder: with val/<class>/ (None: `data_home()/imagenet`).
    Raises DataError where the images are missing.
    """
    top = folder or data_home() / "imagenet"
    files = listed(top, ("test",))
    x, y = files["x_test"], files["y_test"].astype(np.int64)
    n = min(images or len(x), len(x))
    chosen = np.arange(n) * len(x) // max(n, 1)
    tensors: dict[str, Any] = {}
    parts = {"test": chosen, "valid": (chosen + 1) % len(x), "train": chosen[:0]}
    for split, index in parts.items():
        tensors[f"x_{split}"] = Streamed(top, x[index], size)
        tensors[f"y_{split}"] = torch.from_numpy(y[index])
    classes = tuple(files["classes"].tolist())
    labels = tuple(range(len(classes)))
    return Dataset(**tensors, classes=classes, name="imagenet", original_labels=labels)


def _split(
    y: np.ndarray, kept: Sequence[int], names: tuple[str, ...], config: DataConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the training and of the validation images, in file order."""
    n_valid = config.valid_per_class
    drawn = {k: _drawn(y, k, config) for k in kept}
    spare = {k: len(index) - n_valid for k, index in drawn.items()}
    _require(dict.fromkeys(kept, 1), spare, names, config)
    sizes = spare
    if config.train_per_class is not None or config.imbalance_ratio > 1:
        n_max = min(spare.values()) if config.train_per_class is None else config.train_per_class
        sizes = dict(zip(kept, long_tail(n_max, len(kept), config.imbalance_ratio), strict=True))
        _require(sizes, spare, names, config)
    valid = [index[:n_valid] for index in drawn.values()]
    train = [index[n_valid : n_valid + sizes[k]] for k, index in drawn.items()]
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(valid))


def _require(
    sizes: dict[int, int], spare: dict[int, int], names: tuple[str, ...], config: DataConfig
) -> None:
    """Raises DataError unless each class has enough images beside those for validation."""
    n_valid = config.valid_per_class
    for k, size in sizes.items():
        if spare[k] < size:
            raise DataError(
                f"class {k} ({names[k]}) of {config.name} has {spare[k] + n_valid} training "
                f"images, not the {n_valid} for validation and {size} for training that are asked"
            )


def _drawn(y: np.ndarray, label: int, config: DataConfig) -> np.ndarray:
    """The images of one class in the order of their use: validation first, then training."""
    index = np.flatnonzero(y == label)
    if config.split == "stratified":
        # Sorted by uniform numbers, which numpy has less reason to change than permutation().
        numbers = np.random.default_rng([config.split_seed, label]).random(len(index))
        index = index[numbers.argsort()]
    return index


def long_tail(n_max: int, n_classes: int, imbalance_ratio: float) -> list[int]:
    """The images of each class on a long tail: n_k = n_max * IR^(-k / (K - 1)), rounded down.

    IR = n_max / n_min. Raises ConfigError where the last class would have none. Source: Cui et al.
    2019, section 5.1.
    """
    steps = max(n_classes - 1, 1)
    sizes = [int(n_max * imbalance_ratio ** (-k / steps) + 1e-9) for k in range(n_classes)]
    if sizes[-1] < 1:
        raise ConfigError(
            f"{n_max} images in the largest class and imbalance ratio {imbalance_ratio:g} "
            "leave the last empty"
        )
    return sizes


class Batches:
    """An epoch of batches: x float32 (B, C, H, W) in [0, 1], y int64 (B,), on the device of x.

    x: images in memory, or files that workers decode ahead (crat.data.streamed).
    augment: none | crop | crop_flip; crops pad by an eighth of the image's height (4 pixels of 32).
    Of files: none (their centres) | resized_crop (a random crop, scaled and flipped).
    With class_probs (K,) each image's class is drawn from these probabilities, then the image
    uniformly within it, with replacement. Only the generator is random (its device may differ from
    that of x); between batches nothing waits for the device. Raises ConfigError where a generator
    is needed and missing, or on sizes that do not fit.
    """

    def __init__(
        self,
        x: Images,
        y: Tensor,
        batch_size: int,
        generator: torch.Generator | None = None,
        augment: str = "none",
        padding: str = "reflect",
        drop_last: bool = False,
        shuffle: bool = True,
        class_probs: Tensor | None = None,
    ) -> None:
        known = OF_FILES if isinstance(x, Streamed) else IN_MEMORY
        if augment not in known:
            raise ConfigError(
                f"unknown augmentation {augment!r}; known: {', '.join(known)} (see resolve_augment)"
            )
        if generator is None and (shuffle or augment != "none" or class_probs is not None):
            fixed = "a fixed order is shuffle=False, augment='none'"
            raise ConfigError(f"random batches need a torch.Generator; {fixed}")
        if len(x) != len(y) or batch_size < 1 or x.dtype != torch.uint8:
            given = f"{len(x)} {x.dtype} images (uint8) and {len(y)} labels"
            raise ConfigError(f"cannot batch {given} by {batch_size}")
        self.x = x
        self.y = y
        self.batch_size = batch_size
        self.generator = generator or torch.Generator()  # a fixed order draws nothing from it
        self.augment = augment
        self.padding = padding
        self.drop_last = drop_last
        self.shuffle = shuffle
        self.class_probs = class_probs

    def __len__(self) -> int:
        if self.drop_last:
            return len(self.x) // self.batch_size
        return math.ceil(len(self.x) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order()
        begins = range(0, len(self) * self.batch_size, self.batch_size)
        batches: list[Any] = [slice(begin, begin + self.batch_size) for begin in begins]
        if order is not None:
            batches = [order[batch] for batch in batches]
        images = self._decoded(order) if isinstance(self.x, Streamed) else map(self._cut, batches)
        for batch, x in zip(batches, images, strict=True):
            yield x.to(torch.float32).div_(255), self.y[batch]

    def _cut(self, batch: Any) -> Tensor:
        """The augmented images of a batch, where all images are in memory."""
        return self._augmented(self.x[batch])

    def _decoded(self, order: Tensor | None) -> Iterator[Tensor]:
        """The images of each batch, decoded ahead from their files."""
        assert isinstance(self.x, Streamed)
        # the host is asked for once an epoch: its workers need the places
        places = torch.arange(len(self.x)) if order is None else order.cpu()
        kept = places[: len(self) * self.batch_size]
        seeds = None
        if self.augment != "none":
            draws = self.generator
            seeds = torch.randint(2**62, kept.shape, generator=draws, device=draws.device).cpu()
        return self.x.ahead(kept.split(self.batch_size), seeds)

    def _order(self) -> Tensor | None:
        """The indices of one epoch (N,), drawn on the generator's device; in order without one."""
        generator = self.generator
        if self.class_probs is not None:
            y = self.y.to(generator.device)
            probs = precise(moved(self.class_probs, generator.device))
            weights = (probs / y.bincount(minlength=len(probs)))[y]
            order = torch.multinomial(weights, len(y), replacement=True, generator=generator)
        elif self.shuffle:
            order = torch.randperm(len(self.x), generator=generator, device=generator.device)
        else:
            return None
        return sent(order, self.x.device)

    def _augmented(self, x: Tensor) -> Tensor:
        if self.augment != "none":
            x = random_crop(x, x.shape[-2] // 8, self.padding, self.generator)
        if self.augment == "crop_flip":
            x = random_flip(x, self.generator)
        return x


def chosen_of(x: Images, index: Tensor | slice) -> Images:
    """The images that an index means; those in files stay undecoded."""
    return x.chosen(index) if isinstance(x, Streamed) else x[index]


def first_per_class(y: Tensor, n: int) -> Tensor:
    """The indices of the first n images of each class, in file order: (N,) -> (n K,)."""
    return torch.cat([(y == k).nonzero()[:n, 0] for k in y.unique()]).sort().values


def classes_in_turn(y: Tensor) -> Tensor:
    """The indices of all images: the first of each class, then the second of each: (N,) -> (N,).

    A prefix is spread evenly over the classes and is contained in every longer prefix.
    """
    by_class = y.argsort(stable=True)
    counts = y.bincount()
    class_begins = counts.cumsum(0) - counts
    turn = torch.empty_like(y)
    turn[by_class] = torch.arange(len(y), device=y.device) - class_begins[y[by_class]]
    return (turn * len(counts) + y).argsort()
