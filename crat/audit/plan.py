"""The images and attacks by which an audit judges a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

from crat.attacks.autoattack import AutoAttack
from crat.attacks.gradient import FGSM, Attack, cw
from crat.attacks.hunter import Hunter
from crat.attacks.square import Square
from crat.attacks.threat import NORMS
from crat.config import DATASETS, DTYPES, ConfigError, as_written, dataset_named, number
from crat.names import one_of
from crat.outcomes.batteries import (
    HUNTER,
    SAMPLED,
    Battery,
    hunting_battery,
    protocol_pgd,
    usual_battery,
)


@dataclass(frozen=True)
class Plan:
    """The images, the threat and the attacks of an audit.

    data: name of the data set.
    eps: radius as it is written, such as "8/255" (None: that of the data set's protocol, L-inf).
    images: the number of test images, spread over the classes (0: all).
    attacks: names in `known` (empty: FGSM, PGD, CW and, on some images, AA, on all AA-sampled; in
    L1 only AA).
    logit_slice: the number of first logits that count as classes (None: all).
    scale: a factor for the logits, for models that return cosines.
    resize: the side to which the model's images are scaled first (None: as they are).
    dtype: precision of the search for adversarial examples; outcomes are judged in float32.
    seed: of random starts.
    certify: bound the margins from below, too (crat.attacks.bounds): certified.csv has the bracket.
    Raises ConfigError on a setting that is unknown or out of range.
    """

    data: str
    eps: str | None = None
    norm: str = "Linf"
    images: int = 1000
    attacks: tuple[str, ...] = ()
    logit_slice: int | None = None
    scale: float = 1.0
    resize: int | None = None
    dtype: str = "auto"
    seed: int = 0
    certify: bool = False

    def __post_init__(self) -> None:
        self._set("data", dataset_named(self.data))
        self._set("norm", one_of("norm", self.norm, NORMS))
        self._set("dtype", one_of("dtype", self.dtype, DTYPES))
        if self.eps is None and self.norm != "Linf":
            raise ConfigError(
                f"{self.norm} needs an eps: the protocol of {self.data} has one for Linf only"
            )
        protocol = DATASETS[self.data].protocol
        self._set("eps", as_written(protocol.eps if self.eps is None else self.eps))
        self._check_radius()
        if not 0 < self.scale < inf or self.images < 0 or (self.logit_slice or 2) < 2:
            given = f"{self.scale:g}, {self.images} and {self.logit_slice}"
            raise ConfigError(
                f"scale is above 0, images at least 0 and logit_slice at least 2, not {given}"
            )
        if self.resize is not None and self.resize < 1:
            raise ConfigError(f"resize is a number of pixels, at least 1, not {self.resize}")
        if self.certify and (self.norm != "Linf" or self.logit_slice or self.resize):
            raise ConfigError("bounds are those of all logits, in Linf, at the images' own size")
        self._set("attacks", tuple(one_of("attack", name, self.known) for name in self.attacks))

    def _set(self, setting: str, value: Any) -> None:
        object.__setattr__(self, setting, value)

    def _check_radius(self) -> None:
        if self.norm == "Linf":
            inside = 0 < self.radius < 1
            allowed = "between 0 and 1, such as 8/255"
        else:
            inside = 0 < self.radius < inf
            allowed = "above 0 and finite"
        if not inside:
            raise ConfigError(f"eps in {self.norm} is {allowed}, not {self.eps}")

    @property
    def radius(self) -> float:
        """The radius eps as a number."""
        return number(self.eps or 0)

    @property
    def known(self) -> Battery:
        """Name -> attack, for every name that `attacks` may hold.

        PGD's step_size keeps the protocol's ratio to eps.
        """
        eps = self.radius
        norm = self.norm
        pgd = protocol_pgd(self.data)
        pgd = replace(pgd, eps=eps, step_size=pgd.step_size * (eps / pgd.eps), norm=norm)
        attacks: dict[str, Attack | AutoAttack] = {}
        if norm != "L1":  # in L1 a step of these attacks moves one pixel
            attacks["FGSM"] = FGSM(eps, norm)
            attacks[f"PGD-{pgd.steps}"] = pgd
            attacks[f"CW-{pgd.steps}"] = cw(pgd)
        attacks["Square"] = Square(eps, norm)
        attacks["AA"] = AutoAttack(eps, norm, "standard")
        attacks["AA-plus"] = AutoAttack(eps, norm, "plus")
        attacks["AA-rand"] = AutoAttack(eps, norm, "rand")
        if norm != "L1":
            attacks[HUNTER] = Hunter(eps, norm)
            attacks[SAMPLED] = AutoAttack(eps, norm)
        return attacks

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the attacks, in the order in which they run."""
        if self.attacks:
            return self.attacks
        strong = "AA" if self.images or self.norm == "L1" else SAMPLED
        names = ("FGSM", *usual_battery(self.data), strong)
        return tuple(name for name in names if name in self.known)

    @property
    def phase_one(self) -> tuple[str, ...]:
        """The attacks whose survivors AutoAttack meets where it attacks a sample."""
        return tuple(hunting_battery(self.data))

    @property
    def battery(self) -> Battery:
        """Name -> attack, of those that attack all images, in the order in which they run."""
        names = [name for name in self.names if name != SAMPLED]
        if self.on_sample:
            names += [name for name in self.phase_one if name not in names]
        return {name: self.known[name] for name in names}

    @property
    def on_sample(self) -> Battery:
        """The attack on a sample of the images, by its name; empty where there is none."""
        return {SAMPLED: self.known[SAMPLED]} if SAMPLED in self.names else {}
