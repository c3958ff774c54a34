"""Attacks in runs, each on the images still unbroken, and the float32 verdict that ends an image.

A kernel (APGD, FAB, Square) says what one of its runs does, a restart or a target; here the runs
follow one another, each on the images that no run before has broken. A battery also lets images
leave in the middle of a run: the batch is then compacted, so that its cost falls with the model's
weakness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from crat.attacks.door import Attack, Made, checked
from crat.attacks.frozen import frozen
from crat.attacks.logits import finite_logits
from crat.attacks.noise import PerImage, Source, source
from crat.attacks.threat import Budget, budget

# run(model, x, y, eps, noise, hunt, target=None) -> x_adv of those that did not leave
Run = Callable[..., Tensor]


class State:
    """The state of the images still hunted: of every tensor in it the first index is the image."""

    def take(self, keep: Tensor) -> None:
        """Goes on with the images at `keep` (m,)."""
        for name, part in list(vars(self).items()):
            if isinstance(part, Tensor):
                setattr(self, name, part[keep])
            elif isinstance(part, PerImage):
                setattr(self, name, part.take(keep))


class Hunt:
    """A batch under attack: the broken images, what broke them, and the images still hunted.

    judge: the model whose float32 prediction decides; broken means misclassified, or with `target`
        (N,) taken for it.
    every: iterations between looks for images that may leave; 0: no look within a run.

    Afterwards:
    x_adv: (N, C, H, W), what broke each image, else the last run's best point.
    broken: (N,) bool.
    logits: (N, K), those of the judge's verdict: of what broke an image, else of the clean image.
    """

    def __init__(
        self, judge: nn.Module, x: Tensor, y: Tensor, target: Tensor | None = None, every: int = 0
    ) -> None:
        self.judge = judge
        self.y = y
        self.target = target
        self.every = every
        self.x_adv = x.clone()
        self.logits = finite_logits(judge, x)
        self.n_classes = self.logits.shape[1]
        self.broken = self._reached(self.logits, torch.arange(len(x), device=x.device))
        self.index = (~self.broken).nonzero().flatten()

    def __len__(self) -> int:
        """How many images are still hunted."""
        return len(self.index)

    def hit(self, logits: Tensor) -> Tensor:
        """(n,) bool: whether these logits (n, K) of the images still hunted reach the goal."""
        return self._reached(logits, self.index)

    def leave(self, step: int, found: Tensor, x_adv: Tensor, rarer: int = 1) -> Tensor | None:
        """The positions (m,) of those that stay among the n hunted; None while none leaves.

        Called once an iteration with the claims `found` (n,) and the images (n, C, H, W). The
        caller indexes every per-sample state by the positions.
        rarer: how many times rarer an attack with cheap iterations looks, where not each is looked
            at; an image that stays longer is no less broken.
        """
        every = self.every if self.every <= 1 else self.every * rarer
        if not every or (step + 1) % every:
            return None
        claimed = found.nonzero().flatten()
        return self._settle(claimed, x_adv[claimed]) if len(claimed) else None

    @contextmanager
    def only(self, chosen: Tensor) -> Iterator[None]:
        """Within, of the images still hunted only those at the positions `chosen` (m,) are.

        The others wait, and are hunted again afterwards.
        """
        waits = torch.ones(len(self), dtype=torch.bool, device=self.index.device)
        waits[chosen] = False
        waiting = self.index[waits]
        self.index = self.index[chosen]
        yield
        self.index = torch.cat([waiting, self.index]).sort().values

    def settle(self, x_adv: Tensor) -> None:
        """Ends a run with the verdict on the best points (n, C, H, W) of all images hunted."""
        if not len(self):  # a model need not take an empty batch
            return
        self.x_adv[self.index] = x_adv
        self._settle(torch.arange(len(self), device=x_adv.device), x_adv)

    def _settle(self, at: Tensor, x_adv: Tensor) -> Tensor | None:
        logits = finite_logits(self.judge, x_adv)
        reached = self._reached(logits, self.index[at])
        if not reached.any():
            return None
        right = at[reached]
        gone = self.index[right]
        self.x_adv[gone] = x_adv[reached]
        self.broken[gone] = True
        self.logits[gone] = logits[reached]
        stay = torch.ones(len(self), dtype=torch.bool, device=at.device)
        stay[right] = False
        keep = stay.nonzero().flatten()
        self.index = self.index[keep]
        return keep

    def _reached(self, logits: Tensor, index: Tensor) -> Tensor:
        answer = logits.argmax(1)
        return answer != self.y[index] if self.target is None else answer == self.target[index]


class Hunted(Attack):
    """An attack in runs, restarts or targets, each on the images that no run before has broken.

    Whether an image is broken is decided in float32, by `judge` where `model` is a faster copy to
    search with. A call makes that copy by itself, unless it has a judge or search="exact"
    (crat.attacks.door.checked).
    """

    eps: float

    def runs(self, n_classes: int) -> Iterator[Run]:
        """The runs for a model of so many classes, in their order."""
        raise NotImplementedError(f"{type(self).__name__} must define its runs")

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Budget | None = None,
        generator: Source = None,
        target: Tensor | None = None,
        judge: nn.Module | None = None,
    ) -> Tensor:
        """Adversarial images (N, C, H, W); an image wrong from the start is returned as it is.

        Where no adversarial image was found, the last run's best point is returned.

        eps: a number or (N,), instead of the attack's own.
        target: (N,), the classes to end in.
        judge: the model whose float32 prediction decides (None: `model`).
        """
        judge = judge or model
        with frozen(model), frozen(judge):
            hunt = Hunt(judge, x, y, target)
            radius = budget(self.eps if eps is None else eps, x)
            pursue(self, model, hunt, x, y, radius, source(generator, x))
        return hunt.x_adv

    __call__ = checked(perturb)

    def make(
        self, model: nn.Module, x: Tensor, y: Tensor, *, generator: Source, judge: nn.Module
    ) -> Made:
        """One call with `judge` as the model that decides; the result is checked."""
        return self._made(self(model, x, y, generator=generator, judge=judge), x)


def pursue(
    kernel: Hunted, model: nn.Module, hunt: Hunt, x: Tensor, y: Tensor, eps: Tensor, noise: PerImage
) -> None:
    """All runs of a kernel, each on the images that are still unbroken.

    x (N, C, H, W), y (N,), eps (N, 1, 1, 1).
    """
    for number, run in enumerate(kernel.runs(hunt.n_classes)):
        left = hunt.index
        if not len(left):
            return
        target = None if hunt.target is None else hunt.target[left]
        streams = noise.fork(number).take(left)
        hunt.settle(run(model, x[left], y[left], eps[left], streams, hunt, target))
