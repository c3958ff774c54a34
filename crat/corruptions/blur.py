"""Defocus, glass, motion, zoom and Gaussian blur of x (N, C, H, W) float64 in [0, 1].

Lengths are in pixels.
"""

from __future__ import annotations

from functools import partial
from math import exp
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crat.corruptions.tools import Draws, at, edge, gaussian, separable, smear, zoom_matrix


def defocus_blur(x: Tensor, draws: Draws, radius: float, alias: float) -> Tensor:
    """Blurs by a disk of `radius`, its edge softened by a 3 x 3 Gaussian of sigma `alias`.

    Outside, the image is mirrored. The kernel is float32, as OpenCV's: it sums to 1 only nearly,
    which decides where a flat patch is cut off to.
    """
    reach = int(radius) + 1  # the disk and one pixel of soft edge
    place = torch.arange(-reach, reach + 1)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).float()
    side = exp(-1 / (2 * alias**2))
    soft = torch.tensor([side, 1.0, side], dtype=torch.float64)
    soft = (soft / soft.sum()).float()
    kernel = (disk / disk.sum())[None, None]
    for along in (soft[None, None, None], soft[None, None, :, None]):
        kernel = F.conv2d(kernel, along, padding="same")
    padded = F.pad(x, (reach,) * 4, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(padded, kernel.to(x)).view_as(x)


def gaussian_blur(x: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Blurs by a Gaussian of `sigma`."""
    return gaussian(x, sigma)


def glass_blur(x: Tensor, draws: Draws, sigma: float, times: int) -> Tensor:
    """Blurs, moves pixels about a number of times, and blurs again.

    A move gives each pixel its own value or that of a neighbour above or to the left.
    The authors' code is a loop that means to swap neighbours up to one pixel away on any side. It
    draws offsets of -1 and 0 only, and its swap copies (numpy's right-hand side is a view); going
    from the last pixel to the first it reads what it has not written yet. The published images are
    made so, and so are ours, all pixels at once; the first two rows and columns stay as they are.
    """
    x = (gaussian(x, sigma) * 255).floor() / 255
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device)[:, None]
    columns = torch.arange(width, device=x.device)
    inside = (rows > 1) & (columns > 1)
    for _ in range(times):
        right = ((draws.uniform(height, width) * 2).floor().long() - 1) * inside
        down = ((draws.uniform(height, width) * 2).floor().long() - 1) * inside
        x = at(x, rows + down, columns + right, edge)
    return gaussian(x, sigma)


def motion_blur(x: Tensor, draws: Draws, radius: int, sigma: float) -> Tensor:
    """Blurs along an angle of -45 to 45 degrees by ImageMagick's motion blur."""
    return smear(x, radius, sigma, draws.between(-45, 45))


def zoom_blur(x: Tensor, draws: Draws, most: float) -> Tensor:
    """Averages the image and its zooms by 1, 1.01, 1.02 ... up to `most`."""
    factors = np.arange(1, most, 0.01).tolist()  # as numpy counts them
    zoomed: Any = sum(separable(x, partial(zoom_matrix, factor=factor)) for factor in factors)
    return (x + zoomed) / (len(factors) + 1)
