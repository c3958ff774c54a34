"""The door of every attack: what comes in is checked once, what the model answers on the way is
watched.

An attack that is fed something else than it was made for does not fail, it finds nothing, and every
image then looks robust. So whatever would make it weak without a sound is refused here in one line.
Inside nobody checks again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import inf, sqrt
from numbers import Real
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from crat.attacks.checks import ZERO_GRADIENT, warn
from crat.attacks.logits import NO_GRADIENT, AttackError, answer_of, not_finite, spoilt
from crat.attacks.threat import NORMS, size

ROUNDING = 1e-5  # how far an image may leave [0, 1]: what float arithmetic does to the ends
Call = TypeVar("Call", bound=Callable[..., Any])


def checked(
    perturb: Call, nothing: Callable[[Any, Tensor], Any] = lambda attack, x: x.clone()
) -> Call:
    """`perturb(attack, model, x, y, ...)` behind the door; `nothing(attack, x)` is the answer to an
    empty batch.

    What comes out asks for no gradient, whatever x does. Works under torch.no_grad(). A model that
    draws random numbers moves torch's global generator, as it does elsewhere. Raises AttackError,
    one line, on images, labels, a radius, a step or a model that the attack was not made for, and
    where a logit or gradient that it saw was not finite. The door waits for the device three times
    a call, and once more for a radius that is a tensor, never between passes.
    """

    @wraps(perturb)
    def call(attack: Any, model: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> Any:
        x, y, settings = admitted(attack, model, x, y, settings)
        if not len(x):
            return nothing(attack, x)
        watched = Watched(model, y, settings.get("target"))
        if settings.get("judge") is not None:
            settings["judge"] = (
                watched if settings["judge"] is model else Watched(settings["judge"], y)
            )
        try:
            with torch.enable_grad():
                found = perturb(attack, watched, x, y, **settings)
        finally:
            # even where another error was raised: a gradient that was NaN is its cause
            watched.report()
        return found.detach() if isinstance(found, Tensor) else found

    return cast(Call, call)


def admitted(
    attack: Any, model: nn.Module, x: Tensor, y: Tensor, settings: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """x without its history, y and the target as int64; raises AttackError on what cannot be
    attacked.
    """
    check_model(model)
    x, y, target = check_images(x), check_labels(y, x), settings.get("target")
    if target is not None:
        settings = settings | {"target": check_labels(target, x, "targets")}
    norm = getattr(attack, "norm", "L2" if type(attack).__name__ == "CWL2" else "Linf")
    for name in ("eps", "step_size"):
        value = settings.get(name)
        value = getattr(attack, name, None) if value is None else value
        if value is not None:
            check_radius(value, norm, x, name)
    return x, y, settings


def check_model(model: Any) -> None:
    """Raises AttackError on what is no nn.Module that can be frozen, copied and differentiated."""
    if torch.is_inference_mode_enabled():
        raise AttackError(
            "an attack needs gradients, which torch.inference_mode() forbids: use torch.no_grad() "
            "instead"
        )
    exported = (
        "an exported program has no eval mode: attack the nn.Module that it was exported from"
    )
    if isinstance(model, torch.export.ExportedProgram):
        raise AttackError(exported)
    if not isinstance(model, nn.Module):
        raise AttackError(
            f"the model is an nn.Module, not {type(model).__name__}: call it in the forward of one"
        )
    parts = list(model.modules())
    if any(isinstance(part, torch.jit.ScriptModule) for part in parts):
        raise AttackError(
            "a TorchScript module cannot be frozen or copied: attack the nn.Module that it was "
            "made from"
        )
    if any("eval" in vars(part) for part in parts):  # torch.export puts one there that raises
        raise AttackError(exported)
    if any(map(is_lazy, model.parameters())):
        raise AttackError("a lazy module has no weights yet: pass an image through the model first")
    if any(tensor.is_inference() for tensor in model.parameters()):
        raise AttackError(
            "the model was made under torch.inference_mode(): make or load it outside"
        )


def as_tensor(x: Any) -> Tensor:
    """x itself; raises AttackError where it is no tensor with a first index."""
    if not isinstance(x, Tensor) or not x.ndim:
        kind = "a number" if isinstance(x, Tensor) else type(x).__name__
        raise AttackError(f"images are a torch.Tensor of shape (N, C, H, W), not {kind}")
    return x


def check_images(x: Any) -> Tensor:
    """x, (N, C, H, W) float in [0, 1], without its history; raises AttackError on anything else."""
    if as_tensor(x).dtype == torch.uint8:
        raise AttackError("images are floats in [0, 1], not uint8: x.float() / 255")
    if not x.is_floating_point():
        raise AttackError(f"images are floats in [0, 1], not {_name(x.dtype)}")
    if x.ndim != 4:
        raise AttackError(
            f"images are of shape (N, C, H, W), not {tuple(x.shape)}: a vector is x.view(N, D, 1, "
            f"1)"
        )
    low, high = ends(x) if x.numel() else (0.0, 1.0)
    if not -ROUNDING <= low <= high <= 1 + ROUNDING:
        raise AttackError(
            f"images lie in [{low:.3g}, {high:.3g}], not in [0, 1]: {_way_out(low, high)}"
        )
    return x.clone() if x.is_inference() else x.detach()


def _way_out(low: float, high: float) -> str:
    if not -inf < low <= high < inf:
        return "one is not finite"
    return "divide by 255" if low >= 0 and high > 10 else "put the normalisation into the model"


def check_labels(y: Any, x: Tensor, what: str = "labels") -> Tensor:
    """y as int64 (N,); raises AttackError on floats, one-hot rows and another number than there
    are images.
    """
    if not isinstance(y, Tensor):
        raise AttackError(f"{what} are a torch.Tensor of whole numbers, not {type(y).__name__}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        hint = ": one-hot or soft labels are argmax(1) first" if y.ndim == 2 else ""
        raise AttackError(f"{what} are whole numbers (int64), not {_name(y.dtype)}{hint}")
    if y.shape != x.shape[:1]:
        raise AttackError(f"{what} are of shape ({len(x)},), one an image, not {tuple(y.shape)}")
    if y.device != x.device:
        raise AttackError(f"{what} are on {y.device}, the images on {x.device}")
    return y.clone() if y.is_inference() else y.detach().long()


def check_radius(value: Any, norm: str, x: Tensor | None = None, what: str = "eps") -> None:
    """Raises AttackError on a radius or step that no image in [0, 1] has room for, negative, or not
    a number.

    value: a number or a tensor (N,); x (N, ...): the images, None: not known yet, so that only
    L-inf has an upper end.
    """
    if isinstance(value, bool) or not isinstance(value, (Real, Tensor)):
        told = repr(value) if isinstance(value, (str, bool)) else type(value).__name__
        raise AttackError(f"{what} is a number or a tensor (N,), not {told}")
    if isinstance(value, Tensor) and not value.numel():
        return
    low, high = ends(value) if isinstance(value, Tensor) else 2 * (float(value),)
    pixels = inf if x is None else x[:1].numel() if len(x) else inf
    widest = {"Linf": 1.0, "L2": sqrt(pixels), "L1": pixels}.get(norm, inf)
    if not 0 <= low <= high <= widest or high == inf:
        room = f"in [0, {widest:.4g}]" if widest < inf else "finite and at least 0"
        hint = f": is {high:g} / 255 meant?" if norm == "Linf" and 1 < high <= 255 else ""
        raise AttackError(
            f"{what} in {norm} is {room} for images in [0, 1], not "
            f"{high if low >= 0 else low:g}{hint}"
        )


def check_made(made: Any, x: Tensor, attack: Any) -> Tensor:
    """What an attack made of the images x; raises AttackError where it is no such batch, or lies
    outside the ball.

    The ball is known where the attack has a number eps; its norm is L-inf unless it says another.
    """
    if not isinstance(made, Tensor) or made.shape != x.shape:
        what = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise AttackError(f"the attack gives {what} for images of shape {tuple(x.shape)}")
    made = check_images(made)
    eps, norm = getattr(attack, "eps", None), getattr(attack, "norm", "Linf")
    if isinstance(eps, Real) and norm in NORMS:
        farthest = float(size(made.float() - x.float(), norm).max())
        if farthest > 1.001 * float(eps) + ROUNDING * (
            1 if norm == "Linf" else x[0].numel() ** 0.5
        ):
            raise AttackError(
                f"the attack moved an image by {farthest:.4g} in {norm}, its eps is "
                f"{float(eps):.4g}"
            )
    return made


def check_classes(y: Tensor, logits: Tensor) -> None:
    """Raises AttackError where a label (N,) is none of the K classes of the logits (N, K)."""
    if y.numel():
        _among(*ends(y), logits.shape[1])


def ends(values: Tensor) -> tuple[Any, Any]:
    """The smallest and the largest of a tensor as numbers, in one wait for the device."""
    low, high = torch.stack(values.detach().aminmax()).tolist()
    return low, high


def _among(low: int, high: int, n_classes: int) -> None:
    if not 0 <= low <= high < n_classes:
        raise AttackError(
            f"labels are 0 to {n_classes - 1}, the model's classes, not {low} to {high}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Watched(nn.Module):
    """A model as attacks see it: (N, C, H, W) -> logits (N, K); remembers what would make an attack
    weak unnoticed.

    Nothing waits for the device before `report`, so a pass costs three small kernels more.
    y (N,): labels, target (N,): classes to end in, of the whole batch; both must be among the K
    classes.
    """

    def __init__(self, model: nn.Module, y: Tensor, target: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.labels = model, y
        self.training = model.training
        self.ends = [ends(labels) for labels in (y, target) if labels is not None]
        zero = torch.zeros((), dtype=torch.long, device=y.device)
        self.spoilt_logits = self.spoilt_gradients = zero
        self.spoilt_at_first: Tensor | None = None
        self.unmoved, self.looked = zero + len(y), False

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits (N, K); raises AttackError where they are something else, or K is
        below a label.
        """
        asked = x.requires_grad and torch.is_grad_enabled()
        seen = x.clone() if asked else x  # whose gradient is the model's alone
        logits = answer_of(self.model, seen)
        if asked and not logits.requires_grad:
            raise AttackError(NO_GRADIENT)
        for low, high in self.ends:
            _among(low, high, logits.shape[1])
        answers = logits.detach()
        bad = spoilt(answers).sum()
        self.spoilt_at_first = bad if self.spoilt_at_first is None else self.spoilt_at_first
        self.spoilt_logits = self.spoilt_logits.maximum(bad)
        if asked:
            seen.register_hook(lambda gradient: self._see(gradient, answers))
        return logits

    def _see(self, gradient: Tensor, logits: Tensor) -> None:
        rows = gradient.detach().flatten(1)
        largest = rows.abs().amax(1)  # NaN and inf stay what they are
        self.spoilt_gradients = self.spoilt_gradients.maximum((~largest.isfinite()).sum())
        still = largest == 0
        # all are here; of a wrong image the DLR loss may well have no gradient
        if len(rows) == len(self.labels):
            still &= logits.argmax(1) == self.labels
        self.unmoved, self.looked = self.unmoved.minimum(still.sum()), True

    def report(self) -> None:
        """Raises AttackError where gradients or logits were not finite; warns of images that no
        pass could move.
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
        if unmoved and self.looked:
            warn(ZERO_GRADIENT)
