"""A model's answer: logits (N, K) with K >= 2, all finite, or one line that names the fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crat.attacks.objectives import Objective, full
from crat.attacks.precision import exact

NO_GRADIENT = (
    "the logits have no gradient by the images: is there a no_grad, detach or numpy inside?"
)
# of a logit: beyond it differences, and their share of a temperature, overflow float32
LARGEST = 1e30


class AttackError(ValueError):
    """A model or batch that cannot be attacked or judged: one line with fault and expectation."""


def logits_of(answer: Any, x: Tensor) -> Tensor:
    """The logits (N, K) in a model's answer to x (N, ...): the answer itself, or its `logits`.

    Raises AttackError on a tuple, an output without logits, another shape, integers, and fewer than
    two classes.
    """
    if not isinstance(answer, Tensor):
        named = (
            answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
        )
        if not isinstance(named, Tensor):
            held = f" of {', '.join(map(str, answer))}" if isinstance(answer, Mapping) else ""
            raise AttackError(
                f"the model answers with a {type(answer).__name__}{held}, not with logits (N, K) "
                "or an output that names its `logits`: "
                "wrap it in a module whose forward returns them"
            )
        answer = named
    shape = tuple(answer.shape)
    if answer.ndim != 2 or len(answer) != len(x) or not answer.is_floating_point():
        kind = str(answer.dtype).removeprefix("torch.")
        raise AttackError(
            f"the model answers with {kind} of shape {shape} for {len(x)} images, not logits (N, K)"
        )
    if shape[1] < 2:
        raise AttackError(
            f"the model answers with one output an image, {shape}; attacks need K >= 2 logits: "
            "of a sigmoid's z, return torch.cat([-z, z], 1) / 2"
        )
    return answer


def answer_of(model: Any, x: Tensor) -> Tensor:
    """The logits (N, K) of a model, which is given a copy: it may normalise where the images lie.

    Raises AttackError, one line, where it fails on such images or answers with something else.
    """
    try:
        # a model may turn gradients off, and leave them so
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            answer = model(x.clone())
    except (AttackError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # its own code: whatever it raises, it cannot be attacked
        kind = str(x.dtype).removeprefix("torch.")
        why = str(error).splitlines()
        raise AttackError(
            f"the model takes no {kind} images of shape {tuple(x.shape)}: "
            f"{type(error).__name__}: {(why or ['-'])[0]}"
        ) from error
    return logits_of(answer, x)


def spoilt(logits: Tensor) -> Tensor:
    """(N,) bool: where a logit is NaN, infinite, or too large for two of them to be subtracted."""
    return ~(logits.abs() < LARGEST).all(1)


def not_finite(images: int, total: int, kind: str = "NaN, infinite or huge") -> str:
    """The line for logits that are not finite."""
    return (
        f"the model gives {kind} logits for {images} of {total} images: there is no verdict on them"
    )


@torch.no_grad()
def finite_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, K) in float32 proper, of a frozen model.

    Raises AttackError where one is not finite.
    """
    with (
        exact(),
        torch.autocast(x.device.type, enabled=False),
    ):  # a caller's autocast is for the search
        logits = full(answer_of(model, x))
    if images := int(spoilt(logits).sum()):
        raise AttackError(
            not_finite(images, len(x), "NaN" if logits.isnan().any() else "infinite or huge")
        )
    return logits


def forward_backward(
    model: nn.Module, x: Tensor, y: Tensor, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Each sample's gradient at x, objective (N,) and logits (N, K), in one pass each way.

    Raises AttackError where the logits have no gradient by the images.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = full(model(x))
        values = objective(logits, y)
        total = values.sum()
    gradient = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        raise AttackError(NO_GRADIENT)
    return gradient, values.detach(), logits.detach()
