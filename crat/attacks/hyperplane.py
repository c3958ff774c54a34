"""The point of a hyperplane that is nearest to an image, within the box [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def to_hyperplane(x: Tensor, w: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The smallest delta (N, D) with w . (x + delta) = w . x + gap and x + delta in [0, 1].

    Where the hyperplane misses the box, delta leads to the corner that is nearest to it. Where w is
    0, delta is 0.

    x: (N, D) in [0, 1].
    w: (N, D).
    gap: (N,), how much w . x has to rise.
    norm: of delta, "Linf", "L2" or "L1".

    Source: Croce and Hein 2020 (FAB), section 2.2. Their code takes each w below 1e-8 for 0; here
    only the ratios between a sample's w count, so a model may scale its logits.
    """
    # In direction s, moving coordinate i by at most room_i closes gain_i of the gap per unit.
    scale = w.abs().amax(1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    gap, w = gap[:, None] / scale, w / scale
    s = torch.where(gap < 0, -w.sign(), w.sign())
    gain = w.abs()
    gap = gap.abs()
    room = torch.where(s > 0, 1 - x, x).clamp_min(0)
    if norm == "Linf":
        return s * room.minimum(_level(gain, room, gain * room, gap))
    if norm == "L2":
        kinks = room / gain.clamp_min(torch.finfo(w.dtype).tiny)
        return s * room.minimum(_level(gain.square(), kinks, gain * room, gap) * gain)
    return s * _fill(gain, room, gap)


def _level(slope: Tensor, kinks: Tensor, full: Tensor, gap: Tensor) -> Tensor:
    """The level t (N, 1), at most the largest kink, at which sum_i slope_i min(kink_i, t) = gap.

    full = slope * kinks. The sum is concave in t, so each of its linear pieces, prolonged, lies
    above it and reaches the gap too early: t is the largest of the pieces' answers.
    """
    kinks, order = kinks.sort(1)
    full = full.gather(1, order)
    before = full.cumsum(1) - full
    rest = slope.gather(1, order).flip(1).cumsum(1).flip(1)
    answers = (gap - before) / rest.clamp_min(torch.finfo(rest.dtype).tiny)
    return answers.minimum(kinks).amax(1, keepdim=True).clamp_min(0)


def _fill(gain: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """The way of each coordinate (N, D): largest gain first, each in full, the last less."""
    gain, order = gain.sort(1, descending=True)
    room = room.gather(1, order)
    before = (gain * room).cumsum(1) - gain * room
    way = (gap - before) / gain.clamp_min(torch.finfo(gain.dtype).tiny)
    filled = way.clamp_min(0).minimum(room)
    return torch.zeros_like(filled).scatter_(1, order, filled)
