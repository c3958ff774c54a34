"""Attacks: small frozen dataclasses that are called, `attack(model, x, y) -> x_adv`."""

from crat.attacks.frozen import frozen
from crat.attacks.gradient import FGSM, PGD, Attack, cw, temperature_pgd
from crat.attacks.objectives import CrossEntropy, KLFrom, Margin, Objective

__all__ = ["FGSM", "PGD", "Attack", "CrossEntropy", "KLFrom", "Margin", "Objective", "cw", "frozen", "temperature_pgd"]
