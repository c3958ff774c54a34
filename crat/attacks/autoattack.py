"""AutoAttack (Croce and Hein 2020; L1: 2021): attacks in turn, each on the unbroken images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crat.attacks.apgd import APGD
from crat.attacks.door import (
    Attack,
    Broken,
    Made,
    check_radius,
    checked,
)
from crat.attacks.fab import FAB
from crat.attacks.frozen import frozen
from crat.attacks.hunt import Hunt, Hunted, pursue
from crat.attacks.hunter import Hunter
from crat.attacks.logits import forward_backward
from crat.attacks.noise import Source, source
from crat.attacks.objectives import DLR, CrossEntropy
from crat.attacks.square import Square
from crat.attacks.threat import NORMS, Budget, budget, one_of, over_images
from crat.attacks.watched import check_gradients, check_outputs, check_square, warn

ORDER = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
# iterations between looks for images that may leave; a look waits for the device
LOOK_EVERY = {"cpu": 1, "cuda": 10}
CHECKED = 64  # images of a batch on which the model is checked


@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack, called as every attack; returns `Broken`, the images and what broke each.

    All parameters, the order and what is passed on are the reference's (fra31/auto-attack). Where
    it fails for want of classes, here the attack that needs them is replaced or left out, with a
    warning. An image leaves as soon as it is broken: an evaluation costs less the weaker the model
    is.

    eps: radius in units of [0, 1]; at call time also (N,).
    norm: "Linf", "L2" or "L1".
    version: "standard" (APGD-CE, APGD-T, FAB-T, Square), "plus" (all, five restarts of the
        untargeted ones) or "rand" (APGD-CE and -DLR on gradients averaged over 20 passes).
    hunter: whether `crat.attacks.hunter.Hunter` goes before the battery, which then meets, with the
        same random numbers, what the hunter leaves: an image may break that the battery misses,
        and none the other way round, up to rounding by the size of a batch. Not part of the
        reference's battery, and no saving (benchmarks/hunter.md); in L1 it tries nothing.
    judge: at call time, the model that decides in float32 where `model` is a faster copy to search
        with.
    """

    eps: float
    norm: str = "Linf"
    version: str = "standard"
    hunter: bool = False

    def __post_init__(self) -> None:
        one_of("norm", self.norm, NORMS)
        one_of("version", self.version, tuple(ORDER))
        check_radius(self.eps, self.norm)

    def __repr__(self) -> str:
        """Without a hunter as it was before there was one: it names outcomes that are kept."""
        more = ", hunter=True" if self.hunter else ""
        settings = f"eps={self.eps!r}, norm={self.norm!r}, version={self.version!r}"
        return f"{type(self).__qualname__}({settings}{more})"

    def attacks(self, n_classes: int) -> dict[str, Hunted]:
        """Name -> attack, in the order in which they run."""
        eps, norm = self.eps, self.norm
        few = norm == "L1" and self.version == "standard"
        again = 5 if few or self.version == "plus" else 1
        known: dict[str, Hunted] = {
            "apgd-ce": APGD(eps, norm, restarts=again, larger_radii=few),
            "apgd-dlr": APGD(eps, norm, "dlr", restarts=again),
            "fab": FAB(eps, norm, targets=0, restarts=again),
            "apgd-t": APGD(
                eps,
                norm,
                "dlr" if n_classes > 3 else "ce",
                targets=5 if few else 9,
                larger_radii=few,
            ),
            "fab-t": FAB(eps, norm),
            "square": Square(eps, norm),
        }
        if self.version == "rand":
            known = {name: APGD(eps, norm, name[5:], eot=20) for name in ("apgd-ce", "apgd-dlr")}
        before = {"hunter": Hunter(eps, norm)} if self.hunter else {}
        return before | {
            name: known[name] for name in ORDER[self.version] if n_classes > 2 or name != "apgd-dlr"
        }

    @property
    def passes(self) -> int:
        """Those of its parts, at the most: an image leaves when it is broken."""
        return sum(attack.passes for attack in self.attacks(10).values())

    @property
    def names(self) -> tuple[str, ...]:
        """What the numbers of `broken_by` stand for."""
        return ("clean", *(["hunter"] if self.hunter else []), *ORDER[self.version])

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
    ) -> tuple[Broken, Tensor]:
        """`Broken`, and the judge's logits (N, K) of each verdict.

        x: (N, C, H, W) in [0, 1].
        y: (N,).
        """
        judge, noise = judge or model, source(generator, x)
        radius = budget(self.eps if eps is None else eps, x)
        broken_by = torch.full((len(x),), -1, dtype=torch.int8, device=x.device)
        with frozen(model), frozen(judge):
            hunt = Hunt(judge, x, y, target, every=LOOK_EVERY.get(x.device.type, 1))
            broken_by[hunt.broken] = 0
            # the DLR loss of a wrong image may well have a zero gradient
            some = hunt.index[:CHECKED]
            if len(some):
                self._check(judge, x[some], y[some], hunt.n_classes)
            for name, attack in self.attacks(hunt.n_classes).items():
                pursue(attack, model, hunt, x, y, radius, noise.fork(name))
                broken_by[hunt.broken & (broken_by < 0)] = self.names.index(name)
        if "square" in self.names and self.version == "standard":
            check_square(int((broken_by == self.names.index("square")).sum()), len(x))
        x_adv = torch.where(over_images(hunt.broken, x), hunt.x_adv, x)
        return Broken(x_adv, broken_by, self.names), hunt.logits

    def _nothing(self, x: Tensor) -> tuple[Broken, Tensor]:
        broken_by = torch.empty(0, dtype=torch.int8, device=x.device)
        return Broken(x.clone(), broken_by, self.names), x.new_empty(0, 2)

    judged = checked(perturb, _nothing)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, search: str = "fast", **settings: Any
    ) -> Broken:
        """Images and what broke each; eps, generator, target and judge as `perturb` takes them.

        search: "fast" or "exact" (crat.attacks.door.checked).

        Raises AttackError (crat.attacks.door) on what cannot be attacked.
        """
        judged: Any = self.judged
        return judged(model, x, y, search=search, **settings)[0]

    def make(
        self, model: nn.Module, x: Tensor, y: Tensor, *, generator: Source, judge: nn.Module
    ) -> Made:
        """A call in which `judge` passes the verdicts, with the logits by which it did."""
        broken, logits = self.judged(model, x, y, generator=generator, judge=judge)
        return Made(broken.x_adv, broken.broken_by, logits)

    def _check(self, judge: nn.Module, x: Tensor, y: Tensor, n_classes: int) -> None:
        check_outputs(judge, x, randomised=self.version == "rand")
        loss = DLR() if n_classes > 2 else CrossEntropy()
        check_gradients(forward_backward(judge, x, y, loss)[0])
        if n_classes < 3:
            warn("with 2 classes there is no DLR loss: APGD-T ascends the targeted cross-entropy")
        elif n_classes == 3:
            warn(
                "with 3 classes there is no targeted DLR loss: "
                "APGD-T ascends the targeted cross-entropy"
            )
