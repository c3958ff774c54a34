"""On which images and by which attacks an audit judges a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

from crat.attacks.autoattack import AutoAttack
from crat.attacks.gradient import FGSM, Attack, cw
from crat.attacks.square import Square
from crat.attacks.threat import NORMS
from crat.config import DATASETS, DTYPES, PROTOCOLS, ConfigError, as_written, number
from crat.names import one_of
from crat.outcomes.batteries import Battery, protocol_pgd


@dataclass(frozen=True)
class Plan:
    """On what a model is judged, and how; raises ConfigError on what cannot be.

    eps: radius as it is written, "8/255" (None: that of the data set's protocol, L-inf). images: so
    many test images, spread over the classes (0: all). attacks: names out of `known` (none: FGSM,
    PGD, CW and AA; in L1 AA alone).
    logit_slice: so many logits answer, the first. scale: of cosine logits. dtype: of the search
    (the verdict: float32).
    """

    data: str
    eps: str | None = None
    norm: str = "Linf"
    images: int = 1000
    attacks: tuple[str, ...] = ()
    logit_slice: int | None = None
    scale: float = 1.0
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        self._set("data", one_of("data set", self.data, DATASETS))
        self._set("norm", one_of("norm", self.norm, NORMS))
        self._set("dtype", one_of("dtype", self.dtype, DTYPES))
        if self.eps is None and self.norm != "Linf":
            raise ConfigError(
                f"{self.norm} needs an eps: the protocol of {self.data} has one for Linf only"
            )
        self._set("eps", as_written(PROTOCOLS[self.data].eps if self.eps is None else self.eps))
        self._check_radius()
        if not 0 < self.scale < inf or self.images < 0 or (self.logit_slice or 2) < 2:
            told = f"{self.scale:g}, {self.images} and {self.logit_slice}"
            raise ConfigError(
                f"scale is above 0, images at least 0 and logit_slice at least 2, not {told}"
            )
        self._set("attacks", tuple(one_of("attack", name, self.known) for name in self.attacks))

    def _set(self, setting: str, value: Any) -> None:
        object.__setattr__(self, setting, value)

    def _check_radius(self) -> None:
        linf = self.norm == "Linf"
        if not 0 < self.radius < (1 if linf else inf):
            allowed = "between 0 and 1, such as 8/255" if linf else "above 0 and finite"
            raise ConfigError(f"eps in {self.norm} is {allowed}, not {self.eps}")

    @property
    def radius(self) -> float:
        """eps as a number."""
        return number(self.eps or 0)

    @property
    def known(self) -> Battery:
        """Name -> attack, all that may be asked for; PGD's step keeps its ratio to eps in the
        protocol.
        """
        eps, norm = self.radius, self.norm
        pgd = protocol_pgd(self.data)
        pgd = replace(pgd, eps=eps, step_size=pgd.step_size * (eps / pgd.eps), norm=norm)
        attacks: dict[str, Attack | AutoAttack] = {}
        if norm != "L1":  # there a step of these moves one pixel
            attacks = {"FGSM": FGSM(eps, norm), f"PGD-{pgd.steps}": pgd, f"CW-{pgd.steps}": cw(pgd)}
        versions = {"AA": "standard", "AA-plus": "plus", "AA-rand": "rand"}
        return (
            attacks
            | {"Square": Square(eps, norm)}
            | {k: AutoAttack(eps, norm, v) for k, v in versions.items()}
        )

    @property
    def battery(self) -> Battery:
        """Name -> attack, in the order in which they run."""
        usual = [name for name in self.known if name not in ("Square", "AA-plus", "AA-rand")]
        return {name: self.known[name] for name in self.attacks or usual}
