"""Snow, frost, fog and brightness of x (N, C, H, W) float64 in [0, 1]; unclipped."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crat.config import ConfigError
from crat.corruptions.tools import Draws, separable, smear, zoom_matrix
from crat.data.files import DataError
from crat.data.folder import decoded

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, of red, green and blue
FROST_FILES = (".png", ".jpg", ".jpeg")


class CorruptionError(ConfigError):
    """An impossible corruption: one line that says what is wrong and what is needed."""


def grey(x: Tensor) -> Tensor:
    """The luma of (N, 3, H, W), or the mean of other channels: (N, 1, H, W)."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def snow(
    x: Tensor,
    draws: Draws,
    noise: tuple[float, float],
    zoom: float,
    least: float,
    blur: tuple[int, float],
    keep: float,
) -> Tensor:
    """Pales the image and adds flakes.

    Flakes are normal noise (mean, spread), zoomed, without what is below `least`, smeared by `blur`
    (radius, sigma) along an angle of -135 to -45 degrees; once as it is and once turned by 180
    degrees.
    """
    flakes = noise[0] + noise[1] * draws.normal(*x.shape[2:])[:, None]
    flakes = separable(flakes, lambda size: zoom_matrix(size, zoom))
    flakes = torch.where(flakes < least, 0.0, flakes.clamp(0, 1))
    flakes = smear((flakes * 255).floor() / 255, *blur, draws.between(-135, -45))
    pale = torch.maximum(x, grey(x) * 1.5 + 0.5)
    return keep * x + (1 - keep) * pale + flakes + flakes.flip(-2, -1)


def frost(x: Tensor, draws: Draws, keep: float, add: float, folder: str) -> Tensor:
    """Returns keep * x + add * (window of a frosted pane), both drawn for each image.

    folder: where the panes are, files .png and .jpg of any size, of which every fifth row and
    column is taken (the authors' bilinear reduction to a fifth is just that). Theirs are frost1 to
    frost6, and the last one is never drawn there: give a folder of the first five to do as they
    did. Raises CorruptionError where one is too small for x.
    """
    panes = frost_panes(folder)
    height, width = x.shape[-2:]
    if any(min(p.shape[0] - height, p.shape[1] - width) < 1 for p in panes):
        raise CorruptionError(
            f"a frost image in {folder} is too small for {height} x {width}: 5 times that is needed"
        )
    chosen = (draws.uniform() * len(panes)).long().tolist()
    down, right = draws.uniform().tolist(), draws.uniform().tolist()
    layers = []
    for i, pane in enumerate(panes[c] for c in chosen):
        top = int(down[i] * (pane.shape[0] - height))
        left = int(right[i] * (pane.shape[1] - width))
        layers.append(pane[top : top + height, left : left + width].permute(2, 0, 1))
    layer = torch.stack(layers).to(x.device) if layers else x.new_zeros(0, 3, height, width)
    layer = layer if x.shape[1] == 3 else grey(layer)
    # added up in 255ths: whole sums stay whole
    return (keep * (x * 255).round() + add * layer) / 255


@lru_cache(maxsize=4)
def frost_panes(folder: str) -> list[Tensor]:
    """The images of a folder in order of name, every fifth pixel: (H, W, 3) float64, 0 to 255.

    Raises CorruptionError where there are none or one cannot be read.
    """
    try:
        files = sorted(
            p for p in Path(folder).expanduser().iterdir() if p.suffix.lower() in FROST_FILES
        )
        images = [np.asarray(decoded(file), np.float64) for file in files]
    except (OSError, DataError) as error:
        raise CorruptionError(f"the frost images cannot be read: {error}") from None
    if not images:
        raise CorruptionError(f"no frost images ({', '.join(FROST_FILES)}) in {folder}")
    return [torch.from_numpy(image[2::5, 2::5].copy()) for image in images]


def fog(x: Tensor, draws: Draws, thickness: float, decay: float) -> Tensor:
    """Adds a plasma fractal times `thickness`, rescaled so that the brightest value stays."""
    height, width = x.shape[-2:]
    haze = plasma(draws, 1 << (max(height, width) - 1).bit_length(), decay)[
        :, None, :height, :width
    ]
    most = x.amax((1, 2, 3), keepdim=True)
    return (x + thickness * haze) * most / (most + thickness)


def plasma(draws: Draws, size: int, decay: float) -> Tensor:
    """The heights (N, size, size) in [0, 1] of the diamond-square algorithm on a torus.

    size is a power of two. Roughness w starts at 100 and is divided by `decay` at each halving;
    what is added to a mean is uniform within w^2, as in the authors' code, which multiplies by w
    twice.
    """
    heights = torch.zeros(draws.n, size, size, dtype=torch.float64, device=draws.device)
    step, rough = size, 100.0

    def displaced(total: Tensor) -> Tensor:
        return total / 4 + rough * draws.between(-rough, rough, *total.shape[1:])

    while step >= 2:
        half = step // 2
        corner = heights[:, ::step, ::step]
        pairs = corner + corner.roll(-1, 1)
        heights[:, half::step, half::step] = displaced(pairs + pairs.roll(-1, 2))
        centre = heights[:, half::step, half::step]
        heights[:, ::step, half::step] = displaced(
            centre + centre.roll(1, 1) + corner + corner.roll(-1, 2)
        )
        heights[:, half::step, ::step] = displaced(
            centre + centre.roll(1, 2) + corner + corner.roll(-1, 1)
        )
        step, rough = half, rough / decay
    heights = heights - heights.amin((1, 2), keepdim=True)
    return heights / heights.amax((1, 2), keepdim=True)


def brightness(x: Tensor, draws: Draws, add: float) -> Tensor:
    """Adds to the value of (hue, saturation, value), the largest channel; ratios stay."""
    value = x.amax(1, keepdim=True)
    brighter = (value + add).clamp(0, 1)
    return brighter * torch.where(value > 0, 1 - (value - x) / value, 1.0)
