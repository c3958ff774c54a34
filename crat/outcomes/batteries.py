"""Batteries: the named attacks that judge a network on a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crat.attacks.autoattack import AutoAttack
from crat.attacks.gradient import FGSM, PGD, Attack, cw, temperature_pgd
from crat.attacks.hunter import Hunter
from crat.attacks.square import Square
from crat.config import DATASETS, number

SAMPLED = "AA-sampled"  # the name of AutoAttack where it attacks a sample of the images
HUNTER = "Hunter"
# name -> attack, or whatever is called like one, such as a corruption
Battery = Mapping[str, Any]
TEMPERATURES = (1 / 50, 1 / 20, 1 / 10, 1 / 5, 1 / 2, 1.0, 2.0, 5.0, 10.0)


def protocol_pgd(dataset: str, restarts: int = 1) -> PGD:
    """The test attack of a data set's protocol; for CIFAR-10 PGD-20 at 8/255."""
    p = DATASETS[dataset].protocol
    return PGD(number(p.eps), number(p.test_step_size), p.test_steps, restarts=restarts)


def standard_battery(dataset: str) -> dict[str, Attack]:
    """FGSM, PGD and CW by the data set's test protocol, with names such as "PGD-20"."""
    pgd = protocol_pgd(dataset)
    return {"FGSM": FGSM(pgd.eps), f"PGD-{pgd.steps}": pgd, f"CW-{pgd.steps}": cw(pgd)}


def usual_battery(dataset: str) -> dict[str, Attack]:
    """The attacks that judge in every notebook: PGD and CW at the data set's test protocol."""
    return {name: a for name, a in standard_battery(dataset).items() if name != "FGSM"}


def hunting_battery(dataset: str) -> dict[str, Attack]:
    """The usual battery and a hunter (crat.attacks.hunter), at the data set's eps.

    The hunter takes half as many passes again, and leaves few images that AutoAttack breaks: so
    AutoAttack on a sample of the survivors needs fewer of them.
    """
    return usual_battery(dataset) | {HUNTER: Hunter(protocol_pgd(dataset).eps)}


def strong_battery(dataset: str) -> dict[str, Attack]:
    """Square and AutoAttack at the data set's eps.

    On a CPU they take hours for 10,000 images; `first` of `evaluate` asks for fewer.
    """
    eps = number(DATASETS[dataset].protocol.eps)
    return {"Square": Square(eps), "AA": AutoAttack(eps)}


def temperature_battery(
    dataset: str, temperatures: Sequence[float] = TEMPERATURES
) -> dict[str, Attack]:
    """Temperature-PGD at every temperature, with names such as "T=0.02"; T = 1 is PGD."""
    return {f"T={t:g}": temperature_pgd(protocol_pgd(dataset), t) for t in temperatures}
