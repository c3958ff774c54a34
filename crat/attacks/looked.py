"""What a network gives for a few images, and by how much another may differ that stands for it."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from torch import Tensor

# what folding may change: of the largest logit, of the gradient's length (a ReLU may tip over)
FOLDED = (1e-3, 0.05)
# the same for bfloat16, whose numbers have 8 bits: a ResNet-50 changes by .01 and .35
ROUNDED = (0.1, 0.7)


class SearchWarning(UserWarning):
    """A search that is slower than was asked for: one line with the reason."""


class Looked(NamedTuple):
    """A network's logits (N, K) for images, and its answer's log-odds gradient (N, C, H, W)."""

    logits: Tensor
    gradient: Tensor


def difference(expected: Looked, found: Looked, allowed: tuple[float, float]) -> str:
    """How `found` differs from `expected` by more than is allowed; "" where it does not.

    What is not finite differs, and so does an image without a gradient that has one elsewhere.
    """
    largest = expected.logits.abs().max()
    logits = (expected.logits - found.logits).abs().max() / largest.clamp_min(1e-12)
    if not logits <= allowed[0]:
        return f"changed the logits by {logits:.1%} of the largest"
    length = expected.gradient.norm()
    gradient = (expected.gradient - found.gradient).norm()
    if not gradient <= allowed[1] * length < inf:
        return f"changed the gradient by {gradient / length.clamp_min(1e-12):.0%} of its length"
    # the door tells of images without a gradient
    if (_without_gradient(expected) != _without_gradient(found)).any():
        return "gives other images a gradient of zero"
    return ""


def _without_gradient(looked: Looked) -> Tensor:
    """(N,) bool."""
    return looked.gradient.flatten(1).abs().amax(1) == 0
