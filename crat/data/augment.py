"""Random crops and flips of a whole batch: tensor functions without a loop over images.

They work on uint8 and float, on any device. The random numbers are drawn where the generator lives
and then moved, so a CPU generator gives the same augmentation on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crat.config import ConfigError, DataConfig
from crat.data.registry import DATASETS
from crat.device import sent

MODES = ("reflect", "zero")
# of images in memory; of those that are decoded from their files (crat.data.streamed)
IN_MEMORY = ("none", "crop", "crop_flip")
OF_FILES = ("none", "resized_crop")


def resolve_augment(config: DataConfig) -> str:
    """The augmentation none, crop, crop_flip or resized_crop; "auto" is that of the data set's row.

    Grey 28-pixel images get none, as in the MNIST protocols; street numbers are cropped; pictures
    also mirrored; images in files (ImageNet) are cropped at random sizes and mirrored. Raises
    ConfigError on flipped digits, and on an augmentation that the images do not have.
    """
    spec = DATASETS[config.name]
    known = IN_MEMORY if spec.fits_memory else OF_FILES
    if config.augment not in ("auto", *known):
        allowed = ", ".join(("auto", *known))
        raise ConfigError(f"augment of {config.name} is {allowed}; not {config.augment}")
    if config.augment == "crop_flip" and not spec.may_flip:
        why = "a mirrored digit is another sign"
        raise ConfigError(f"{config.name} has no flips, {why}: use augment none or crop")
    return spec.augment if config.augment == "auto" else config.augment


def random_crop(x: Tensor, padding_pixels: int, mode: str, generator: torch.Generator) -> Tensor:
    """Pads each image (N, C, H, W) on all sides and cuts out a random window of the old size.

    mode: "reflect" (without the edge, as torch pads) or "zero". Raises ConfigError on another mode,
    or on reflection by as much as the image is wide.
    """
    if mode not in MODES:
        raise ConfigError(f"unknown padding {mode!r}; known: {', '.join(MODES)}")
    n = len(x)
    height, width = x.shape[-2:]
    if mode == "reflect" and padding_pixels >= min(height, width):
        size = f"{height} x {width}"
        raise ConfigError(
            f"an image of {size} cannot be padded by reflection with {padding_pixels} pixels"
        )
    low, high = -padding_pixels, padding_pixels + 1
    shift = torch.randint(low, high, (2, n, 1), generator=generator, device=generator.device)
    shift = sent(shift, x.device)
    rows = torch.arange(height, device=x.device) + shift[0]  # (N, H)
    columns = torch.arange(width, device=x.device) + shift[1]
    if mode == "reflect":
        return _gather(x, _reflect(rows, height), _reflect(columns, width))
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return _gather(x, rows.clamp(0, height - 1), columns.clamp(0, width - 1)) * inside


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image (N, C, H, W) left to right with probability 1/2."""
    flags = torch.randint(2, (len(x), 1, 1, 1), generator=generator, device=generator.device)
    return torch.where(sent(flags, x.device).bool(), x.flip(-1), x)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Mirrors positions outside [0, size) at the first and last pixel."""
    return (size - 1 - (size - 1 - position).abs()).abs()


def _gather(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gathers rows (N, H) and columns (N, W) of each image, the same for all channels."""
    index = rows[:, :, None] * x.shape[-1] + columns[:, None, :]
    flat = x.flatten(2)
    return flat.gather(2, index.flatten(1)[:, None].expand_as(flat)).view_as(x)
