"""Images that a caller holds, as a data set for an audit: checked, and known by their content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crat import store
from crat.attacks.door import check_images, check_labels
from crat.data import DataError
from crat.data.registry import DATASETS, DatasetSpec

Samples = Iterable[Any] | tuple[Any, Any]  # batches (x, y), or one pair of all images and labels


def admitted(samples: Samples, classes: Sequence[str]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """All images (N, C, H, W), uint8 or float32 in [0, 1], all labels (N,) int64, and the names.

    samples: a DataLoader or another iterable of batches (x, y), a Dataset of single images, or one
        pair (x, y) of tensors or arrays.
    classes: the names of the K classes in the order of their labels.
    Raises DataError, one line, on batches that are no pairs, on labels outside 0..K-1 and on names
    that are not different; AttackError on images outside [0, 1] and on labels that are no numbers.
    """
    names = tuple(map(str, classes)) if not isinstance(classes, str) else (classes,)
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"classes are two or more different names, not {names}")
    x, y = samples if _is_pair(samples) else _together(samples)  # type: ignore[misc]
    x = torch.as_tensor(x).cpu()
    y = torch.as_tensor(y).cpu()
    if not x.ndim or not len(x):
        raise DataError("there is no image to judge")
    if x.dtype != torch.uint8:
        x = check_images(x).float()
    elif x.ndim != 4:
        raise DataError(f"images are of shape (N, C, H, W), not {tuple(x.shape)}")
    y = check_labels(y, x)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= len(names):
        raise DataError(
            f"labels lie in [{low}, {high}]; of {len(names)} classes they are 0 to {len(names) - 1}"
        )
    return x.contiguous(), y, names


def _is_pair(samples: Any) -> bool:
    """Whether this is one pair of all images and all labels; a list of two batches is none."""
    is_two = isinstance(samples, (tuple, list)) and len(samples) == 2
    return is_two and all(hasattr(part, "shape") for part in samples)


def _together(samples: Any) -> tuple[Tensor, Tensor]:
    """All batches of a loader in one."""
    if isinstance(samples, Dataset):
        samples = DataLoader(samples, 100)
    if not isinstance(samples, Iterable):
        raise DataError(
            f"images come as a DataLoader or as a pair (x, y), not {type(samples).__name__}"
        )
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in samples:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            kind = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
            raise DataError(f"a batch of images is a pair (x, y), not a {kind}")
        images.append(torch.as_tensor(batch[0]).cpu())
        labels.append(torch.as_tensor(batch[1]).cpu())
    if not images:
        raise DataError("there is no image to judge")
    sizes = {(image.dtype, *image.shape[1:]) for image in images}
    if len(sizes) > 1:
        raise DataError(f"the batches differ in size or type: {' and '.join(map(str, sizes))}")
    return torch.cat(images), torch.cat(labels)


def named(x: Tensor, y: Tensor, classes: tuple[str, ...]) -> str:
    """The name, such as images-1a2b3c4d, of a data set of this session that has these images.

    It is a row of the table of data sets, of test images alone, so that a plan finds the steps of
    its attacks: those of CIFAR-10, a quarter of eps. It has no files.
    """
    content = [store.fingerprint({"x": x, "y": y}), str(x.dtype), list(x.shape), classes]
    name = f"images-{store.digest(content)[:8]}"
    _, channels, height, width = x.shape
    DATASETS[name] = DatasetSpec(
        name,
        image_shape=(channels, height, width),
        n_classes=len(classes),
        train_images=0,
        test_images=len(x),
        smallest_class=0,
        protocol=DATASETS["cifar10"].protocol,
        classes=classes,
    )
    return name
