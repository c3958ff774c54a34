"""The threat model: the norm ball around an image, cut with the box [0, 1], and steps inside."""

from __future__ import annotations

import torch
from torch import Tensor

from crat.attacks.noise import Drawing, normal, uniform

NORMS = ("Linf", "L2", "L1")
Budget = float | Tensor  # one number, or one per sample (N,)


def one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError, one line, where a setting is not among those known."""
    if value not in known:
        raise ValueError(f"{what} is one of {', '.join(known)}, not {value!r}")


def per_sample(value: Budget, x: Tensor) -> Tensor | float:
    """A budget that broadcasts against x (N, ...): floats as they are, (N,) tensors as (N, 1, ...).

    Raises ValueError where a tensor is neither a scalar nor of length N.
    """
    if not isinstance(value, Tensor):
        return float(value)
    if value.ndim == 0:
        return value.to(x)
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"eps and step_size take a number or a tensor of shape ({len(x)},), "
            f"not {tuple(value.shape)}"
        )
    return over_images(value.to(x), x)


def over_images(values: Tensor, x: Tensor) -> Tensor:
    """(N,) as (N, 1, ...), which broadcasts against x."""
    return values.view(-1, *[1] * (x.ndim - 1))


def budget(value: Budget, x: Tensor) -> Tensor:
    """As `per_sample`, but always a tensor (N, 1, ...): a number is repeated for every sample."""
    value = as_budget(per_sample(value, x), x)
    return value if value.ndim else over_images(value.expand(len(x)), x)


def as_budget(value: Budget, x: Tensor) -> Tensor:
    """A number or tensor on the device of x and in its dtype, without a wait for the device."""
    if isinstance(value, Tensor):
        return value.to(x)
    return torch.full((), value, device=x.device, dtype=x.dtype)


def size(delta: Tensor, norm: str) -> Tensor:
    """The norm of each sample, (N,)."""
    flat = delta.flatten(1)
    if norm == "Linf":
        return flat.abs().amax(1)
    return flat.norm(dim=1) if norm == "L2" else flat.abs().sum(1)


def length(delta: Tensor) -> Tensor:
    """L2 length of each sample, (N, 1, ...)."""
    return over_images(size(delta, "L2"), delta)


def ascent_direction(gradient: Tensor, norm: str) -> Tensor:
    """The unit step of steepest ascent; a zero gradient stays zero.

    L-inf: the sign. L2: the normalised gradient. L1: all in the coordinate that counts most (ties
    share it).
    """
    if norm == "Linf":
        return gradient.sign()
    if norm == "L2":
        return gradient / length(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
    largest = over_images(size(gradient, "Linf"), gradient)
    chosen = gradient.sign() * (gradient.abs() >= largest)
    return chosen / over_images(size(chosen, "L1").clamp_min(1), gradient)


def project(x_adv: Tensor, x: Tensor, eps: Tensor | float, norm: str) -> Tensor:
    """A point of both the ball of radius eps around x and the box [0, 1].

    L-inf and L1: the nearest such point. L2: the nearest of the ball, then clipped; clipping moves
    each pixel towards x, so it stays in the ball.
    """
    if norm == "L1":
        return x + project_l1(x_adv - x, x, eps)
    delta = x_adv - x
    if norm == "Linf":
        delta = (
            torch.clamp(delta, -eps, eps)
            if isinstance(eps, float)
            else torch.minimum(delta.maximum(-eps), eps)
        )
    else:
        delta = delta * (eps / length(delta).clamp_min(1e-12)).clamp_max(1.0)
    return (x + delta).clamp(0.0, 1.0)


def project_l1(delta: Tensor, x: Tensor, eps: Tensor | float) -> Tensor:
    """The delta' nearest to delta (in L2) with |delta'|_1 <= eps and x + delta' in [0, 1].

    With the box, delta' = sign(delta) * clamp(|delta| - t, 0, room) for one t >= 0 per sample, at
    which the L1 norm is eps. The norm falls in t, piecewise linear with kinks at |delta| and at
    |delta| - room; sorting the kinks finds the piece. Computed in float32 at least: half precision
    cannot count them. The result has delta's shape.
    Source: Croce and Hein 2021, Proposition 2.1.
    """
    d = delta.flatten(1).to(torch.promote_types(delta.dtype, torch.float32))
    a = d.abs()
    room = torch.where(d > 0, 1 - x.flatten(1), x.flatten(1)).clamp_min(0)
    radius = as_budget(eps, d).expand(len(d), *[1] * (delta.ndim - 1)).flatten(1)
    # going up in t, a coordinate starts to shrink at |delta| - room (or at once) and is gone at
    # |delta|
    kinks, order = torch.cat([(a - room).clamp_min(0), a], 1).sort(1)
    # how many shrink behind each kink
    slope = torch.where(order < a.shape[1], 1.0, -1.0).to(d.dtype).cumsum(1)
    widths = kinks.diff(dim=1, prepend=torch.zeros_like(kinks[:, :1]))
    shrunk = (torch.cat([torch.zeros_like(slope[:, :1]), slope[:, :-1]], 1) * widths).cumsum(1)
    excess = a.minimum(room).sum(1, keepdim=True) - radius
    # the last kink at which not enough has gone; from it on, linear
    piece = (shrunk <= excess).sum(1, keepdim=True).sub_(1).clamp_min_(0)
    left = excess - shrunk.gather(1, piece)
    t = kinks.gather(1, piece) + left / slope.gather(1, piece).clamp_min(1)
    t = torch.where(excess > 0, t, torch.zeros_like(t))
    sizes = (a - t).clamp_min(0).minimum(room)
    # what rounding left above eps: a radius of 0 must give x itself
    total = sizes.sum(1, keepdim=True).clamp_min(torch.finfo(d.dtype).tiny)
    sizes *= (radius / total).clamp_max(1)
    return (d.sign() * sizes).view_as(delta).to(delta.dtype)


def uniform_start(x: Tensor, eps: Tensor | float, norm: str, generator: Drawing) -> Tensor:
    """A point drawn uniformly from the ball around x, cut to [0, 1]; L1 projects a normal draw."""
    if norm == "Linf":
        return (x + eps * (uniform(tuple(x.shape), x, generator) * 2 - 1)).clamp(0.0, 1.0)
    noise = normal(tuple(x.shape), x, generator)
    if norm == "L1":
        return project(x + noise, x, eps, norm)
    radius = over_images(uniform((len(x),), x, generator), x)
    return (x + eps * radius ** (1 / x[0].numel()) * noise / length(noise)).clamp(0.0, 1.0)


def gaussian_start(x: Tensor, scale: float, generator: Drawing) -> Tensor:
    """x + scale N(0, 1), the start of TRADES (scale 0.001): its KL has no gradient at x itself."""
    return x + scale * normal(tuple(x.shape), x, generator)
