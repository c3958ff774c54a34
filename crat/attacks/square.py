"""Square Attack: random search over square windows, which asks the model for logits only.

A query changes each image inside one window (L-inf) or two (L2, L1), the same ones for all images
of the batch, and leaves the change where it helped. So a query costs a forward pass and a little
work on the windows.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crat.attacks.door import check_radius
from crat.attacks.hunt import Hunt, Hunted, Run, State
from crat.attacks.noise import PerImage
from crat.attacks.objectives import CrossEntropy, Margin, Objective, Toward, full
from crat.attacks.threat import NORMS, length, one_of, over_images, project
from crat.device import sent

# after these queries of 10,000 the windows' area is halved
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
LOSSES: dict[str, Objective] = {"margin": Margin(), "ce": CrossEntropy()}
BLOCK = 100  # queries whose signs are drawn at a time
RARER = 10  # looks for images that may leave, where a look waits for a device

Changes = list[tuple[Tensor, Tensor]]  # what a query wrote, as views, and what was there before


@dataclass(frozen=True)
class Square(Hunted):
    """Square Attack (Andriushchenko et al. 2020; L1: Croce and Hein 2021).

    `Square(eps)(model, x, y) -> x_adv`.

    eps: radius in units of [0, 1]; at call time also an (N,) tensor, one per sample.
    norm: "Linf", "L2" or "L1".
    queries: forward passes after that of the start.
    restarts: runs, each from the beginning on the images still unbroken.
    p_init: share of the image that the first windows cover, in (0, 1].
    loss: what must grow for a change to stay, "margin" or "ce".
    rescale_schedule: shrink the windows as if `queries` were 10,000; False is AutoAttack's setting.

    Raises ValueError on an unknown norm or loss, and on queries, restarts or p_init out of range.

    As in the authors' code: the schedule, the windows and the signs of L-inf are shared by the
    batch. Differences: windows also reach the last row and column (there only in the paper's text);
    found images stay adversarial but still go on to larger margins, so that a search in bfloat16
    passes the float32 verdict; for L2 and L1 see `Hills`.
    """

    eps: float
    norm: str = "Linf"
    queries: int = 5000
    restarts: int = 1
    p_init: float = 0.8
    loss: str = "margin"
    rescale_schedule: bool = False

    def __post_init__(self) -> None:
        one_of("norm", self.norm, NORMS)
        check_radius(self.eps, self.norm)
        one_of("loss", self.loss, tuple(LOSSES))
        if self.queries < 1 or self.restarts < 1:
            raise ValueError(
                f"queries and restarts are at least 1, not {self.queries} and {self.restarts}"
            )
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init is a share of the image in (0, 1], not {self.p_init!r}")

    def runs(self, n_classes: int) -> Iterator[Run]:
        """As many runs as restarts."""
        return iter([self._search] * self.restarts)

    def side(self, query: int, height: int, width: int) -> int:
        """The side of a query's windows, in pixels.

        In L2 and L1 odd and at least 3 where the image has room.
        """
        if self.rescale_schedule:
            query = int(query / self.queries * 10_000)
        area = self.p_init / 2 ** bisect_left(HALVINGS, query) * height * width
        side = max(round(math.sqrt(area)), 1)
        if self.norm != "Linf":
            side = max(side, 3) // 2 * 2 + 1
        return min(side, height, width)

    @torch.no_grad()
    def _search(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: Tensor,
        noise: PerImage,
        hunt: Hunt,
        target: Tensor | None = None,
    ) -> Tensor:
        """One run, see `hunt`: the best points of the images that did not leave."""
        sides = [self.side(query, *x.shape[2:]) for query in range(self.queries)]
        tried: Corners | Hills
        if self.norm == "Linf":
            tried = Corners(x, eps, noise, sides)
        else:
            tried = Hills(x, eps, noise, sides, self.norm)
        tried.y, tried.target = y, target
        tried.value, tried.found = self._judged(model, tried, hunt)
        for query in range(self.queries):
            changes = tried.move(query)
            value, hit = self._judged(model, tried, hunt)
            # a hit first, then the larger value
            better = torch.where(hit == tried.found, value > tried.value, hit)
            tried.value = torch.where(better, value, tried.value)
            tried.found = tried.found | hit
            better = over_images(better, x)
            for view, before in changes:
                torch.where(better, view, before, out=view)
            keep = hunt.leave(query, tried.found, tried.image, rarer=RARER)
            if keep is not None:
                tried.take(keep)
                if not len(keep):
                    break
        return tried.image

    def _judged(self, model: nn.Module, tried: Tried, hunt: Hunt) -> tuple[Tensor, Tensor]:
        """The objective of the images tried, (n,), and whether they reach the goal, (n,) bool."""
        logits = full(model(tried.image))
        objective = LOSSES[self.loss]
        if tried.target is not None:
            objective = Toward(tried.target, objective)
        return objective(logits, tried.y), hunt.hit(logits)


class Tried(State):
    """The images that are tried, (n, C, H, W), and how far the search has come with them."""

    image: Tensor
    y: Tensor
    target: Tensor | None
    value: Tensor  # the objective at the best point so far, (n,)
    found: Tensor  # whether it reached the goal, (n,) bool


class Corners(Tried):
    """The L-inf search: every pixel at an end of its range in ball and box; a query moves a window.

    The authors add 2 eps times the channel's sign and clip: from an end that is the other end, or
    where it was.
    """

    def __init__(self, x: Tensor, eps: Tensor, noise: PerImage, sides: list[int]) -> None:
        channels, *image = x.shape[1:]
        draws = noise.shared_numbers(len(sides), 2 + channels)
        places = draws[:, :2].tolist()
        self.windows = [
            window(side, image, place) for side, place in zip(sides, places, strict=True)
        ]
        up = sent((draws[:, 2:] < 0.5)[..., None, None], x.device)
        self.up = up.unbind()  # one a query
        self.low = (x - eps).clamp_min(0)
        self.high = (x + eps).clamp_max(1)
        stripes = noise.uniform(channels, 1, image[1]) < 0.5
        self.image = torch.where(stripes, self.high, self.low)

    def move(self, query: int) -> Changes:
        """Writes the query's window into the images."""
        place = self.windows[query]
        view = self.image[place]
        before = view.clone()
        torch.where(self.up[query], self.high[place], self.low[place], out=view)
        return [(view, before)]


class Hills(Tried):
    """The L2 and L1 search: a query empties a window and spends its mass on hills in another.

    The spending of each image is tracked, so that only the windows are touched. The authors scale
    the whole image to the radius after each query, which changes nothing: a window is made to spend
    all that is left. Only in L1 with several channels do they make it spend more, and let the
    projection thin out the whole image.
    """

    def __init__(
        self, x: Tensor, eps: Tensor, noise: PerImage, sides: list[int], norm: str
    ) -> None:
        # so that all differences and sums are float32
        self.x = x.to(torch.promote_types(x.dtype, torch.float32))
        self.eps = eps.to(self.x) * (1 - 1e-6)  # which still round
        self.noise = noise
        self.power = 2 if norm == "L2" else 1
        self.thins = norm == "L1" and x.shape[1] > 1
        draws = noise.shared_numbers(len(sides), 5).tolist()
        self.filled = [
            window(side, x.shape[2:], draw[:2]) for side, draw in zip(sides, draws, strict=True)
        ]
        self.emptied = [
            window(side, x.shape[2:], draw[2:4]) for side, draw in zip(sides, draws, strict=True)
        ]
        pairs = {side: hill_pairs(side, self.power, x.device) for side in set(sides)}
        self.pairs = [pairs[side][draw[4] < 0.5] for side, draw in zip(sides, draws, strict=True)]
        tiles = self._tiles()
        if norm == "L2":
            tiles = tiles * (self.eps / length(tiles))
        self.image = project(self.x + tiles, self.x, self.eps, norm).to(x.dtype)
        self.spent = self._spent()

    def move(self, query: int) -> Changes:
        """Writes the query's windows into the images."""
        if query % BLOCK == 0:
            self.signs = random_signs(self.noise, BLOCK, self.x.shape[1])
            self.spent = self._spent()
        filled = self.image[self.filled[query]]
        emptied = self.image[self.emptied[query]]
        x_filled = self.x[self.filled[query]]
        x_emptied = self.x[self.emptied[query]]
        touched = [self.image, self.spent] if self.thins else [filled, emptied, self.spent]
        changes = [(view, view.clone()) for view in touched]

        hills = self.pairs[query] * self.signs[:, query % BLOCK] + self._unit(filled - x_filled)
        freed = self._mass(emptied - x_emptied)
        emptied.copy_(x_emptied)
        # after the other is empty: what they share counts once
        freed += self._mass(filled - x_filled)
        channels = self.x.shape[1]
        spend = (self.eps**self.power - self.spent).clamp_min_(0) / channels + freed
        if self.thins:
            filled.copy_(x_filled + self._unit(hills) * spend * channels)
            self.image.copy_(project(self.image, self.x, self.eps, "L1"))
            self.spent.copy_(self._spent())
        else:
            filled.copy_((x_filled + self._unit(hills) * spend ** (1 / self.power)).clamp_(0, 1))
            self.spent += (self._mass(filled - x_filled) - freed).sum(1, keepdim=True)
        return changes

    def _mass(self, delta: Tensor) -> Tensor:
        """The power of the norm that adds up, of each channel of a change: (N, C, 1, 1)."""
        return (delta.square() if self.power == 2 else delta.abs()).sum((2, 3), keepdim=True)

    def _spent(self) -> Tensor:
        return self._mass(self.image - self.x).sum(1, keepdim=True)

    def _unit(self, delta: Tensor) -> Tensor:
        return delta / (self._mass(delta) ** (1 / self.power)).clamp_min_(1e-12)

    def _tiles(self) -> Tensor:
        """The start: tiles of hill pairs, five to a side, a random sign per tile and channel."""
        channels, height, width = self.x.shape[1:]
        side = max(min(height, width) // 5, 1)
        places = [(top, left) for top in tiled(height, side) for left in tiled(width, side)]
        turned = (self.noise.shared_numbers(len(places)) < 0.5).tolist()
        signs = random_signs(self.noise, len(places), channels)
        pairs = hill_pairs(side, self.power, self.x.device)
        tiles = torch.zeros_like(self.x)
        for number, (top, left) in enumerate(places):
            tiles[:, :, top : top + side, left : left + side] = (
                pairs[turned[number]] * signs[:, number]
            )
        return tiles


def window(side: int, image: Sequence[int], place: Sequence[float]) -> tuple[slice, ...]:
    """The square at a place in [0, 1)^2 of an image (height, width): an index of (N, C, H, W)."""
    height, width = image
    top = int(place[0] * (height - side + 1))
    left = int(place[1] * (width - side + 1))
    return slice(None), slice(None), slice(top, top + side), slice(left, left + side)


def tiled(extent: int, side: int) -> range:
    """Where tiles of that side begin, the rest shared between both ends."""
    return range(extent % side // 2, extent - side + 1, side)


def random_signs(noise: PerImage, count: int, channels: int) -> Tensor:
    """-1 or 1, (N, count, channels, 1, 1)."""
    return (noise.uniform(count, channels, 1, 1) < 0.5).float().mul_(2).sub_(1)


def hill_pairs(side: int, power: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two (side, side) shapes of norm 1: a hill above a hollow, half each, and its transpose."""
    upper = hill(side // 2, side, power)
    lower = hill(side - side // 2, side, power)
    pair = torch.cat([upper, -lower])
    pair = sent(pair / torch.linalg.vector_norm(pair, power), device)
    return pair, pair.mT


def hill(height: int, width: int, power: int) -> Tensor:
    """(height, width) of norm 1: a pyramid, ring k 1 / k^q above the next (L2: q = 2, L1: 4)."""
    rows, columns = torch.arange(height), torch.arange(width)
    ring = torch.maximum((rows - height // 2).abs()[:, None], (columns - width // 2).abs()[None])
    steps = torch.arange(max(height, width) // 2 + 1, 0, -1) ** (-2.0 * (3 - power))
    pyramid = steps.cumsum(0).flip(0)[ring]
    return pyramid / torch.linalg.vector_norm(pyramid, power) if pyramid.numel() else pyramid
