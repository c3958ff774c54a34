"""Tools for corruptions: random numbers by image, linear maps of rows and columns, sampling.

Images are float64 (N, C, H, W) here. A separable linear filter of a small image is two small
matrices, so a blur or a zoom of a whole batch is two matrix products; the matrices are what scipy
does to the unit vectors, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from crat.device import finest

# positions outside an axis of so many pixels -> positions inside
Place = Callable[[Tensor, int], Tensor]


class Draws:
    """The float64 random numbers of the N images of x: per image, of a generator, or of seed 0.

    generator: any object whose uniform(*shape) and normal(*shape) give (N, *shape), such as
    crat.attacks.PerImage (each image then has its own numbers, whatever the batch), or a
    torch.Generator.
    """

    def __init__(self, x: Tensor, generator: Any = None) -> None:
        self.device, self.n = x.device, len(x)
        self.streams = generator if hasattr(generator, "uniform") else None
        self.generator = (
            generator
            if isinstance(generator, torch.Generator)
            else torch.Generator().manual_seed(0)
        )

    def uniform(self, *shape: int) -> Tensor:
        """(N, *shape), uniform in [0, 1)."""
        if self.streams is not None:
            return self.streams.uniform(*shape).to(self.device).double()
        return self._drawn(torch.rand, shape)

    def normal(self, *shape: int) -> Tensor:
        """(N, *shape), standard normal."""
        if self.streams is not None:
            return self.streams.normal(*shape).to(self.device).double()
        return self._drawn(torch.randn, shape)

    def _drawn(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        """Numbers of the generator, on its device and as fine as it draws them there."""
        place = self.generator.device
        dtype = finest(place)
        numbers = draw(self.n, *shape, generator=self.generator, device=place, dtype=dtype)
        return numbers.to(self.device).double()

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """(N, *shape), uniform in [low, high)."""
        return low + (high - low) * self.uniform(*shape)


@lru_cache(maxsize=256)
def zoom_matrix(size: int, factor: float) -> Tensor:
    """The matrix (size, size) that stretches the middle ceil(size / factor) pixels over an axis."""
    crop = ceil(size / factor)
    top = (size - crop) // 2
    stretched = ndimage.zoom(np.eye(crop), (factor, 1), order=1)
    trim = (len(stretched) - size) // 2
    matrix = np.zeros((size, size))
    matrix[:, top : top + crop] = stretched[trim : trim + size]
    return torch.from_numpy(matrix)


@lru_cache(maxsize=256)
def gaussian_matrix(
    size: int, sigma: float, mode: str = "nearest", truncate: float = 4.0
) -> Tensor:
    """The matrix (size, size) of a Gaussian filter cut off at `truncate` sigma; mode as scipy's."""
    eye = np.eye(size)
    return torch.from_numpy(
        ndimage.gaussian_filter1d(eye, sigma, axis=0, mode=mode, truncate=truncate)
    )  # type: ignore


def separable(x: Tensor, matrix: Callable[[int], Tensor]) -> Tensor:
    """Applies a map (size -> matrix) to the columns and the rows of (..., H, W)."""
    rows, columns = (matrix(size).to(x.device) for size in x.shape[-2:])
    return rows @ x @ columns.mT


def gaussian(x: Tensor, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> Tensor:
    """Blurs (..., H, W) by a Gaussian; sigma in pixels, 0 changes nothing."""
    return (
        separable(x, lambda size: gaussian_matrix(size, sigma, mode, truncate)) if sigma > 0 else x
    )


def edge(place: Tensor, size: int) -> Tensor:
    """Extends an axis by its border pixel: a a | a b c | c c."""
    return place.clamp(0, size - 1)


def mirror(place: Tensor, size: int) -> Tensor:
    """Extends an axis by mirroring at the border pixel's middle: c b | a b c | b a."""
    around = place.remainder(2 * (size - 1))
    return torch.minimum(around, 2 * (size - 1) - around)


def reflect(place: Tensor, size: int) -> Tensor:
    """Extends an axis by mirroring at its edge: b a | a b c | c b."""
    around = place.remainder(2 * size)
    return torch.minimum(around, 2 * size - 1 - around)


def at(x: Tensor, rows: Tensor, columns: Tensor, outside: Place) -> Tensor:
    """The pixels of (N, C, H, W) at whole rows and columns, each broadcastable to (N, H, W)."""
    height, width = x.shape[-2:]
    places = outside(rows, height) * width + outside(columns, width)
    places = places.expand(len(x), height, width).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, places).view_as(x)


def sample(x: Tensor, rows: Tensor, columns: Tensor, outside: Place) -> Tensor:
    """The values of (N, C, H, W) at real rows and columns (N, H, W), bilinear in four pixels."""
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    top, left = top.long(), left.long()

    def between(row: Tensor) -> Tensor:
        """The value between two pixels of a row."""
        return at(x, row, left, outside) * (1 - right) + at(x, row, left + 1, outside) * right

    return between(top) * (1 - down) + between(top + 1) * down


def smear(x: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
    """Blurs along an angle (N,) in degrees by ImageMagick's motion blur, to 8 bits.

    There are 2 radius + 1 steps, weighted by a half Gaussian. Each step is rounded to whole pixels;
    outside is the border pixel. The result is rounded to 16 bits, which are cut off to 8, as
    ImageMagick 6.9.11 does; which version made the published images is not known.
    """
    step = torch.arange(2 * radius + 1, device=x.device, dtype=torch.float64)
    weight = torch.exp(-(step**2) / (2 * sigma**2))
    weight = weight / weight.sum()
    turn = torch.deg2rad(angle)[:, None]
    down = torch.ceil(step * turn.sin() - 0.5).long()  # (N, steps)
    right = torch.ceil(step * turn.cos() - 0.5).long()
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape[-2:])
    smeared = torch.zeros_like(x)
    for i, share in enumerate(weight):
        from_rows = (rows + down[:, i : i + 1])[:, :, None]
        from_columns = (columns + right[:, i : i + 1])[:, None]
        smeared += share * at(x, from_rows, from_columns, edge)
    return ((smeared * 65535).round() / 257).floor() / 255
