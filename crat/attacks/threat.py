"""The threat model: the norm ball around an image, cut with the box [0, 1], and the steps that live in it."""

from __future__ import annotations

import torch
from torch import Tensor

NORMS = ("Linf", "L2")
Budget = float | Tensor  # one number, or one per sample (N,)


def per_sample(value: Budget, x: Tensor) -> Tensor | float:
    """A budget that broadcasts against x (N, ...): floats as they are, (N,) tensors as (N, 1, ...).

    Raises ValueError where a tensor is neither a scalar nor of length N.
    """
    if not isinstance(value, Tensor):
        return float(value)
    if value.ndim == 0:
        return value.to(x)
    if value.shape != x.shape[:1]:
        raise ValueError(f"eps and step_size take a number or a tensor of shape ({len(x)},), not {tuple(value.shape)}")
    return value.to(x).view(-1, *[1] * (x.ndim - 1))


def length(delta: Tensor) -> Tensor:
    """L2 length of each sample, (N, 1, ...)."""
    return delta.flatten(1).norm(dim=1).view(-1, *[1] * (delta.ndim - 1))


def ascent_direction(gradient: Tensor, norm: str) -> Tensor:
    """The unit step of steepest ascent: the sign (L-inf) or the normalised gradient (L2; zero stays zero)."""
    if norm == "Linf":
        return gradient.sign()
    return gradient / length(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)


def project(x_adv: Tensor, x: Tensor, eps: Tensor | float, norm: str) -> Tensor:
    """The point of the ball of radius eps around x nearest to x_adv, then clipped to [0, 1].

    Clipping moves each pixel towards x, which lies in the box, so it never leaves the ball again.
    """
    delta = x_adv - x
    if norm == "Linf":
        delta = torch.clamp(delta, -eps, eps) if isinstance(eps, float) else torch.minimum(delta.maximum(-eps), eps)
    else:
        delta = delta * (eps / length(delta).clamp_min(1e-12)).clamp_max(1.0)
    return (x + delta).clamp(0.0, 1.0)


def uniform_start(x: Tensor, eps: Tensor | float, norm: str, generator: torch.Generator | None) -> Tensor:
    """A point drawn uniformly from the ball around x, clipped to [0, 1]."""
    if norm == "Linf":
        noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) * 2 - 1
        return (x + eps * noise).clamp(0.0, 1.0)
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    radius = torch.rand((len(x), *[1] * (x.ndim - 1)), generator=generator, device=x.device, dtype=x.dtype)
    return (x + eps * radius ** (1 / x[0].numel()) * noise / length(noise)).clamp(0.0, 1.0)


def gaussian_start(x: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """x + scale N(0, 1): the start of TRADES (scale 0.001), which needs a first gradient where KL has none at x."""
    return x + scale * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
