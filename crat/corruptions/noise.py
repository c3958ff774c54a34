"""Gaussian, shot, impulse and speckle noise of every channel.

x (N, C, H, W) float64 in [0, 1] -> the same, unclipped.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from scipy.special import pdtr
from torch import Tensor

from crat.corruptions.tools import Draws


def gaussian_noise(x: Tensor, draws: Draws, scale: float) -> Tensor:
    """Adds normal noise of standard deviation `scale`."""
    return x + scale * draws.normal(*x.shape[1:])


def speckle_noise(x: Tensor, draws: Draws, scale: float) -> Tensor:
    """Adds normal noise of standard deviation `scale` times the pixel."""
    return x + x * (scale * draws.normal(*x.shape[1:]))


def shot_noise(x: Tensor, draws: Draws, photons: float) -> Tensor:
    """Replaces each value by a Poisson count of mean x * photons, divided by photons.

    The count is the quantile of one uniform number.
    """
    table = _poisson(photons).to(x.device)
    value = (x * 255).round().long()
    # the 256 distribution functions lie one above the other, function v in [v, v + 1]: one search
    # serves all pixels
    place = torch.searchsorted(table.flatten(), value + draws.uniform(*x.shape[1:]), right=True)
    return (place - value * table.shape[1]) / photons


@lru_cache(maxsize=8)
def _poisson(photons: float) -> Tensor:
    """The table (256, counts) of v + P(count <= k) for a mean of v / 255 * photons.

    k goes up to 12 standard deviations above a mean of `photons`.
    """
    mean = torch.arange(256, dtype=torch.float64)[:, None] / 255 * photons
    count = torch.arange(int(photons + 12 * photons**0.5), dtype=torch.float64)
    return torch.arange(256)[:, None] + torch.from_numpy(pdtr(count.numpy(), mean.numpy()))


def impulse_noise(x: Tensor, draws: Draws, amount: float) -> Tensor:
    """Sets a share `amount` of the values to 0 or 1, each as likely (salt and pepper)."""
    hit = draws.uniform(*x.shape[1:]) < amount
    return torch.where(hit, (draws.uniform(*x.shape[1:]) < 0.5).to(x), x)
