"""Contrast, elastic transform, pixelation, JPEG and saturation.

x (N, C, H, W) float64 in [0, 1] -> the same.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from crat.corruptions.tools import Draws, gaussian, mirror, reflect, sample
from crat.corruptions.weather import CorruptionError

if TYPE_CHECKING:
    from PIL.Image import Image


def contrast(x: Tensor, draws: Draws, keep: float) -> Tensor:
    """Draws every channel towards its mean over the image."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * keep + mean


def saturate(x: Tensor, draws: Draws, times: float, add: float) -> Tensor:
    """Scales and shifts the saturation of (hue, saturation, value).

    A grey pixel counts as red, as elsewhere. Raises CorruptionError for images without colours.
    """
    if x.shape[1] != 3:
        raise CorruptionError(f"saturate needs 3 channels, not {x.shape[1]}")
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - least
    saturation = torch.where(value > 0, chroma / value, 0.0)
    changed = (saturation * times + add).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0], dtype=x.dtype, device=x.device)[:, None, None]
    return value * (1 - changed * torch.where(chroma > 0, (value - x) / chroma, red))


def elastic_transform(
    x: Tensor, draws: Draws, strength: float, sigma: float, affine: float
) -> Tensor:
    """Applies a random affine map, then a smooth random displacement.

    All three numbers are shares of the image's size. The affine map moves three points by up to
    `affine` in each direction; it looks up places to a 32nd of a pixel, as OpenCV does for the
    authors, and mirrors outside. The displacement is uniform noise blurred with `sigma`, times
    `strength`. (The authors' severity 1 has strength 0.)
    """
    height, width = x.shape[-2:]
    size = min(height, width)
    rows, columns = _affine_places(draws, height, width, affine * size)
    x = sample(x, rows, columns, mirror)
    noise = [draws.between(-1, 1, height, width) for _ in range(2)]
    right, down = (strength * size * gaussian(n, sigma * size, "reflect", 3.0) for n in noise)
    own_rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None]
    own_columns = torch.arange(width, device=x.device, dtype=x.dtype)
    return sample(x, own_rows + down, own_columns + right, reflect)


def _affine_places(draws: Draws, height: int, width: int, reach: float) -> tuple[Tensor, Tensor]:
    """The rows and columns (N, H, W) at which a random affine map looks up each pixel.

    The map moves three points by up to `reach`.
    """
    x, y = width // 2, height // 2
    arm = min(height, width) // 3
    moved = draws.between(-reach, reach, 3, 2)
    points = moved.new_tensor([[x + arm, y + arm], [x + arm, y - arm], [x - arm, y - arm]])
    moved = points + moved.float()
    ones = torch.ones_like(moved[..., :1])
    # (N, 3, 2): [x, y, 1] -> (x, y)
    back = torch.linalg.solve(torch.cat([moved, ones], -1), points.expand_as(moved))
    grid_x = torch.arange(width, device=moved.device, dtype=moved.dtype)
    grid_y = torch.arange(height, device=moved.device, dtype=moved.dtype)[:, None]
    # in 1024ths of a pixel: along x, along y, and what is added; (N, 2, 1, 1) each
    parts = 1024 * back[..., None, None]
    place = (parts[:, 0] * grid_x).round() + (parts[:, 1] * grid_y + parts[:, 2]).round()
    place = ((place + 16) / 32).floor() / 32
    return place[:, 1], place[:, 0]


def pixelate(x: Tensor, draws: Draws, keep: float) -> Tensor:
    """Shrinks each side to a share, rounded down, and enlarges it, by Pillow's box filter."""

    def change(image: Image) -> Image:
        from PIL.Image import Resampling

        width, height = image.size
        small = image.resize((int(width * keep), int(height * keep)), Resampling.BOX)
        return small.resize((width, height), Resampling.BOX)

    return _each(x, change)


def jpeg_compression(x: Tensor, draws: Draws, quality: int) -> Tensor:
    """Writes each image as JPEG of a given quality and reads it again.

    Pillow keeps colours at half resolution.
    """

    def change(image: Image) -> Image:
        from PIL import Image as images

        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return images.open(file)

    return _each(x, change)


def _each(x: Tensor, change: Callable[[Image], Image]) -> Tensor:
    """Changes each image by a function of 8-bit Pillow images; without 3 channels, each channel."""
    from PIL import Image as images

    pixels = (x * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    done = np.empty_like(pixels)
    for before, after in zip(pixels, done, strict=True):
        if before.shape[2] == 3:
            after[:] = np.asarray(change(images.fromarray(before)))
        else:
            for c in range(before.shape[2]):
                channel = images.fromarray(np.ascontiguousarray(before[:, :, c]))
                after[:, :, c] = np.asarray(change(channel))
    return torch.from_numpy(done).to(x.device).permute(0, 3, 1, 2).double() / 255
