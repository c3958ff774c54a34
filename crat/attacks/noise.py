"""Random numbers of attacks: one stream per image, whatever the batch is.

Neither the batch size nor the images that left the batch decide a number. It is a hash of (seed,
image, how many were drawn before, place in the image): integer arithmetic only, so CPU and GPU draw
the same. Training, where speed counts and nothing is compared image by image, draws from a
torch.Generator.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from crat.store.files import seed_for


def _signed(number: int) -> int:
    """The low 64 bits as a signed integer, which is what torch's int64 wraps to."""
    return (number + 2**63) % 2**64 - 2**63


# splitmix64 (Steele, Lea and Flood 2014)
_STEP, _MIX_1, _MIX_2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(z: Tensor) -> Tensor:
    """The splitmix64 finaliser, elementwise on int64, in place.

    `>>` is arithmetic in torch, hence the masks.
    """
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        z ^= (z >> shift) & ((1 << (64 - shift)) - 1)
        z *= factor
    z ^= (z >> 31) & ((1 << 33) - 1)
    return z


class PerImage:
    """A stream of random numbers for each image of a batch, decided by `seed` and its number.

    ids: (N,) int64, the place of each image in its set. Each call draws the next numbers of every
        image.
    """

    def __init__(self, seed: int, ids: Tensor, drawn: int = 0) -> None:
        self.seed = seed
        self.ids = ids
        self.drawn = drawn

    def __len__(self) -> int:
        return len(self.ids)

    def uniform(self, *shape: int) -> Tensor:
        """(N, *shape) float32, uniform in [0, 1) on a grid of 2^-24."""
        return self._draw(self.ids, shape)

    def normal(self, *shape: int) -> Tensor:
        """(N, *shape) float32, standard normal (Box and Muller 1958)."""
        radius = (-2 * torch.log1p(-self.uniform(*shape))).sqrt_()
        return radius * torch.cos(2 * torch.pi * self.uniform(*shape))

    def shared_uniform(self, *shape: int) -> Tensor:
        """(*shape,) float32 in [0, 1), one draw for all images."""
        return self._draw(self.ids.new_full((1,), -1), shape)[0]

    def shared_numbers(self, *shape: int) -> Tensor:
        """The numbers of `shared_uniform` on the CPU, to be read without a wait for a device."""
        return self._draw(torch.full((1,), -1), shape)[0]

    def take(self, keep: Tensor) -> PerImage:
        """The streams of some images, where they are now."""
        return PerImage(self.seed, self.ids[keep], self.drawn)

    def fork(self, *key: str | int) -> PerImage:
        """Independent streams of the same images under a key: a restart, a target, an attack."""
        return PerImage(seed_for(self.seed, *key), self.ids)

    def _draw(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        self.drawn += 1
        image = _mix(_mix(ids * _STEP + self.seed) + _signed(self.drawn * _MIX_1))
        place = torch.arange(1, prod(shape) + 1, device=ids.device) * _STEP
        bits = _mix(image[:, None] + place)
        return ((bits >> 40) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24).view(-1, *shape)


class Share:
    """The draws of one rank of several: it draws for the whole batch and takes its images' numbers.

    own: (n,), places of this rank's images in the batch of `total`.
    """

    def __init__(self, generator: torch.Generator, own: Tensor, total: int) -> None:
        self.generator = generator
        self.own = own
        self.total = total

    def draw(self, make: Callable[..., Tensor], shape: tuple[int, ...], x: Tensor) -> Tensor:
        """make (torch.rand or torch.randn) for the batch, cut to this rank's images."""
        whole = (self.total, *shape[1:])
        numbers = make(whole, generator=self.generator, device=x.device, dtype=x.dtype)
        return numbers[self.own]


Drawing = torch.Generator | PerImage | Share
Source = Drawing | None


def drawing(generator: Source, x: Tensor) -> Drawing:
    """The generator itself; for None one with seed 0, so that every call draws the same."""
    return torch.Generator(x.device).manual_seed(0) if generator is None else generator


def source(generator: Source, x: Tensor) -> PerImage:
    """Per-image streams for the batch x.

    generator: a generator (one number is drawn), streams, or None (seed 0).
    """
    if isinstance(generator, PerImage):
        if len(generator) != len(x):
            raise ValueError(f"noise for {len(generator)} images, but {len(x)} are attacked")
        return generator
    ids = torch.arange(len(x), device=x.device)
    if isinstance(generator, Share):
        ids, generator = generator.own, generator.generator
    seed = 0
    if generator is not None:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return PerImage(seed, ids)


def uniform(shape: tuple[int, ...], x: Tensor, generator: Drawing) -> Tensor:
    """Uniform in [0, 1) for the N images of x, shape (N, ...), in x's dtype."""
    if isinstance(generator, PerImage):
        return generator.uniform(*shape[1:]).to(x.dtype)
    if isinstance(generator, Share):
        return generator.draw(torch.rand, shape, x)
    return torch.rand(shape, generator=generator, device=x.device, dtype=x.dtype)


def normal(shape: tuple[int, ...], x: Tensor, generator: Drawing) -> Tensor:
    """Standard normal for the N images of x, shape (N, ...), in x's dtype."""
    if isinstance(generator, PerImage):
        return generator.normal(*shape[1:]).to(x.dtype)
    if isinstance(generator, Share):
        return generator.draw(torch.randn, shape, x)
    return torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
