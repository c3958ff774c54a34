"""Attacks: small frozen dataclasses that are called, `attack(model, x, y) -> x_adv`."""

from crat.attacks.apgd import APGD
from crat.attacks.autoattack import AutoAttack
from crat.attacks.bounds import CROWN, interval_margins
from crat.attacks.decision import Decision, LogitBias
from crat.attacks.door import Attack, Broken
from crat.attacks.fab import FAB
from crat.attacks.frozen import frozen
from crat.attacks.gradient import (
    FGSM,
    MIFGSM,
    PGD,
    FallingTemperature,
    cw,
    falling_temperature,
    temperature_pgd,
)
from crat.attacks.hunter import Hunter
from crat.attacks.minimal import CWL2, DeepFool, minimal_radius
from crat.attacks.noise import PerImage
from crat.attacks.objectives import (
    DLR,
    CrossEntropy,
    KLFrom,
    Margin,
    Objective,
    PlainCrossEntropy,
    TargetedDLR,
    Toward,
)
from crat.attacks.square import Square
from crat.attacks.transfer import transfer
from crat.attacks.universal import Universal, apply_universal, fit_universal, fooling_rates
from crat.attacks.watched import RobustnessWarning

__all__ = [
    "APGD",
    "CROWN",
    "CWL2",
    "DLR",
    "FAB",
    "FGSM",
    "MIFGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "Broken",
    "CrossEntropy",
    "Decision",
    "DeepFool",
    "FallingTemperature",
    "Hunter",
    "KLFrom",
    "LogitBias",
    "Margin",
    "Objective",
    "PerImage",
    "PlainCrossEntropy",
    "RobustnessWarning",
    "Square",
    "TargetedDLR",
    "Toward",
    "Universal",
    "apgd",
    "apply_universal",
    "batches",
    "bounds",
    "cw",
    "door",
    "falling_temperature",
    "fit_universal",
    "fooling_rates",
    "frozen",
    "gradient",
    "interval_margins",
    "judge",
    "logits",
    "looked",
    "minimal_radius",
    "noise",
    "objectives",
    "precision",
    "recorded",
    "search",
    "temperature_pgd",
    "threat",
    "transfer",
    "universal",
    "watched",
]
