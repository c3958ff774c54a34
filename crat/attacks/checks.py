"""What makes a robust accuracy unbelievable, seen before or after an evaluation: one warning line
each.

The checks are those of the reference AutoAttack (Croce and Hein 2020; fra31/auto-attack,
flags_doc.md), with its thresholds.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from crat.attacks.logits import finite_logits

REPEATS, MOVED = 5, 1e-4  # forward passes, and how far normalised logits may differ between them
PROBABILITY = 1e-5
SQUARE_SHARE = 0.002  # of all images
ZERO_GRADIENT = (
    "some images have a zero gradient: gradient-based attacks may overrate the robustness"
)


class RobustnessWarning(UserWarning):
    """An evaluation whose robust accuracy may be too high."""


def warn(text: str) -> None:
    """One line; the same line is shown once."""
    warnings.warn(text, RobustnessWarning, stacklevel=3)


def check_outputs(model: nn.Module, x: Tensor, randomised: bool = False) -> None:
    """Before: outputs that differ from pass to pass (unless `randomised` is expected),
    probabilities for logits.

    x: (N, C, H, W), a few images; the model is frozen.
    """
    logits = finite_logits(model, x)
    unit = torch.nn.functional.normalize(logits, dim=1)
    again = (
        torch.nn.functional.normalize(finite_logits(model, x), dim=1) for _ in range(REPEATS - 1)
    )
    if not randomised and any((unit - other).norm(dim=1).max() > MOVED for other in again):
        warn('the outputs are random: AutoAttack version="rand" averages gradients over them')
    inside = logits.min() > -PROBABILITY and logits.max() < 1 + PROBABILITY
    if inside and ((logits.sum(1) - 1).abs() < PROBABILITY).all():
        warn("the outputs look like probabilities: attacks need the logits before the softmax")


def check_gradients(gradient: Tensor) -> None:
    """Before: images whose gradient is zero everywhere; gradient-based attacks cannot move them."""
    if (gradient.flatten(1).abs().amax(1) == 0).any():
        warn(ZERO_GRADIENT)


def check_square(by_square: int, images: int) -> None:
    """After: black-box queries broke what gradients did not, which points at masked gradients."""
    if by_square > SQUARE_SHARE * images:
        warn(
            f"Square broke {by_square} of {images} images that gradient-based attacks left: "
            f"gradients may be masked; "
            "run Square with more queries, or an adaptive attack"
        )
