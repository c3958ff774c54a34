"""A model under watch: what would weaken an attack without a sound is told."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from crat.attacks.frozen import frozen
from crat.attacks.logits import (
    NO_GRADIENT,
    AttackError,
    answer_of,
    finite_logits,
    not_finite,
    spoilt,
)
from crat.attacks.precision import exact

REPEATS, MOVED = 5, 1e-4  # forward passes, and how far normalised logits may differ between them
PROBABILITY = 1e-5
SQUARE_SHARE = 0.002  # of all images
ZERO_GRADIENT = (
    "some images have a zero gradient: gradient-based attacks may overrate the robustness"
)


class Watched(nn.Module):
    """A model under watch, (N, C, H, W) -> (N, K): it notes what would weaken an attack unnoticed.

    Nothing waits for the device before `report`, so a pass costs three small kernels more.

    y: labels (N,), and target: classes to end in (N,), of the whole batch, all among the K classes.
    original: the model that `model` is a copy of: images without a gradient are reported where it
        has none for them, either, with BatchNorm in the mode `batch_norm`.
    """

    def __init__(
        self,
        model: nn.Module,
        y: Tensor,
        target: Tensor | None = None,
        original: nn.Module | None = None,
        batch_norm: str = "eval",
    ) -> None:
        super().__init__()
        self.model, self.labels = model, y
        self.training = model.training
        # in a tuple, so that it is no part of this module
        self.original = (original, batch_norm)
        self.first_pass: tuple[Tensor, Tensor] | None = None
        self.ends = [ends(labels) for labels in (y, target) if labels is not None]
        zero = torch.zeros((), dtype=torch.long, device=y.device)
        self.spoilt_logits = self.spoilt_gradients = zero
        self.spoilt_at_first: Tensor | None = None
        self.unmoved, self.looked = zero + len(y), False

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits (N, K).

        Raises AttackError where the answer is something else, or K is below a label.
        """
        asked = x.requires_grad and torch.is_grad_enabled()
        seen = x.clone() if asked else x  # whose gradient is the model's alone
        logits = answer_of(self.model, seen)
        if asked and not logits.requires_grad:
            raise AttackError(NO_GRADIENT)
        for low, high in self.ends:
            among(low, high, logits.shape[1])
        answers = logits.detach()
        bad = spoilt(answers).sum()
        self.spoilt_at_first = bad if self.spoilt_at_first is None else self.spoilt_at_first
        self.spoilt_logits = self.spoilt_logits.maximum(bad)
        if asked:
            seen.register_hook(lambda gradient: self._see(gradient, answers))
            if self.original[0] is not None and self.first_pass is None:
                logits.register_hook(lambda slope: self._keep(seen, slope))
        return logits

    def _keep(self, seen: Tensor, slope: Tensor) -> None:
        """Keeps the first images that were looked at, and the gradient by their logits."""
        if self.first_pass is None:
            self.first_pass = seen.detach(), slope.detach()

    def _see(self, gradient: Tensor, logits: Tensor) -> None:
        rows = gradient.detach().flatten(1)
        largest = rows.abs().amax(1)  # NaN and inf stay what they are
        self.spoilt_gradients = self.spoilt_gradients.maximum((~largest.isfinite()).sum())
        still = largest == 0
        if len(rows) == len(
            self.labels
        ):  # all are here; of a wrong image the DLR loss may well have no gradient
            still &= logits.argmax(1) == self.labels
        self.unmoved, self.looked = self.unmoved.minimum(still.sum()), True

    def report(self) -> None:
        """Raises AttackError where gradients or logits were not finite.

        Warns of images that no pass could move.
        """
        if self.spoilt_at_first is None:
            return  # the model itself failed
        seen = (self.spoilt_at_first, self.spoilt_gradients, self.spoilt_logits, self.unmoved)
        first, gradients, logits, unmoved = torch.stack(seen).tolist()
        if gradients and not first:  # a step along one makes the next logits NaN
            raise AttackError(
                f"the gradient by the image is NaN or infinite for {gradients} of "
                f"{len(self.labels)} images: an attack "
                "cannot move them, and they would look robust"
            )
        if logits:
            raise AttackError(not_finite(logits, len(self.labels)))
        if unmoved and self.looked and self._stand_still_in_the_original():
            warn(ZERO_GRADIENT)

    def _stand_still_in_the_original(self) -> bool:
        """Whether the original, too, has no gradient for one of the first images looked at.

        What rounds to zero in the copy need not be zero in the model.
        """
        original, batch_norm = self.original
        if original is None or self.first_pass is None:
            return True
        seen, slope = self.first_pass
        seen = seen.requires_grad_()
        with frozen(original, batch_norm), torch.enable_grad(), exact():
            logits = answer_of(original, seen)
            gradient = torch.autograd.grad(logits, seen, slope.to(logits.dtype))[0]
        still = gradient.flatten(1).abs().amax(1) == 0
        if len(seen) == len(self.labels):
            still &= logits.argmax(1) == self.labels
        return bool(still.any())


class RobustnessWarning(UserWarning):
    """An evaluation whose robust accuracy may be too high."""


def warn(text: str) -> None:
    """Warns by one line; Python shows an equal line once."""
    warnings.warn(text, RobustnessWarning, stacklevel=3)


def check_outputs(model: nn.Module, x: Tensor, randomised: bool = False) -> None:
    """Warns, before a battery, of outputs that differ between passes and of probabilities.

    x: (N, C, H, W), a few images; the model is frozen.
    randomised: whether outputs that differ are expected.
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
    """Warns, before a battery, of images with a zero gradient, which no step would move."""
    if (gradient.flatten(1).abs().amax(1) == 0).any():
        warn(ZERO_GRADIENT)


def check_square(by_square: int, images: int) -> None:
    """Warns, after a battery, where queries broke what gradients did not: masked gradients."""
    if by_square > SQUARE_SHARE * images:
        warn(
            f"Square broke {by_square} of {images} images that gradient-based attacks left: "
            "gradients may be masked; "
            "run Square with more queries, or an adaptive attack"
        )


def ends(values: Tensor) -> tuple[Any, Any]:
    """The smallest and the largest of a tensor as numbers, in one wait for the device."""
    low, high = torch.stack(values.detach().aminmax()).tolist()
    return low, high


def among(low: int, high: int, n_classes: int) -> None:
    """Raises AttackError where the smallest and the largest label are none of the classes."""
    if not 0 <= low <= high < n_classes:
        raise AttackError(
            f"labels are 0 to {n_classes - 1}, the model's classes, not {low} to {high}"
        )
