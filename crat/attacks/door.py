"""The face of every attack, and its door, which checks the input once and watches the model.

An attack on input that it was not made for does not fail: it finds nothing, and every image then
looks robust. So whatever would weaken it without a sound is refused here in one line. Inside nobody
checks again.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial, wraps
from math import inf, sqrt
from numbers import Real
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from crat.attacks.logits import (
    AttackError,
)
from crat.attacks.looked import SearchWarning
from crat.attacks.noise import PerImage, Share, Source
from crat.attacks.search import forget, to_search
from crat.attacks.threat import NORMS, Budget, one_of, size
from crat.attacks.watched import Watched, among, ends
from crat.text import first_line

ROUNDING = 1e-5  # how far an image may leave [0, 1]: what float arithmetic does to the ends
SEARCHES = ("fast", "exact")
Call = TypeVar("Call", bound=Callable[..., Any])


class Broken(NamedTuple):
    """The result of a battery: images, and the attack that broke each.

    x_adv: (N, C, H, W), the clean image where no attack broke it.
    broken_by: (N,) int8, -1 where the image survived, else the place in `names`; 0 is "clean":
        wrong from the start.
    """

    x_adv: Tensor
    broken_by: Tensor
    names: tuple[str, ...]


class Made(NamedTuple):
    """The result of an attack on a batch; of a battery also the breaking attacks and its verdicts.

    x_adv: (N, C, H, W).
    broken_by: (N,) int8 as in `Broken`.
    logits: (N, K) float32, those of the judging model by which it decided.
    """

    x_adv: Tensor
    broken_by: Tensor | None = None
    logits: Tensor | None = None


class Attack:
    """The face of every attack: images in, adversarial images of the same shape out.

    An attack is a frozen dataclass that inherits this face; its call is `checked`, which explains
    `search`. What it does not set has the defaults below; eps and step_size, radius and step in
    units of [0, 1], are fields where it has them. Its repr names it in cards and keys.
    """

    norm: str = "Linf"
    steps: int = 1  # passes forward and backward a call: what an attack costs
    # in another mode images of a batch meet, so that an outcome is not the image's own
    batch_norm: str = "eval"

    @property
    def decides(self) -> bool:
        """Whether its search decides what is wrong, so that bfloat16 would decide with it."""
        return False

    @property
    def passes(self) -> int:
        """How many forward passes a call makes on an image, roughly."""
        numbers = (self.setting("queries"), self.setting("restarts"), self.setting("targets"))
        queries, restarts, targets = (number or 1 for number in numbers)
        return max(self.steps, queries) * restarts * targets

    @property
    def names(self) -> tuple[str, ...]:
        """Of a battery: what the numbers of `broken_by` stand for."""
        return ()

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Budget | None = None,
        generator: Source = None,
    ) -> Any:
        """Returns x_adv, (N, C, H, W) in [0, 1]; a battery returns `Broken`.

        x: (N, C, H, W) in [0, 1].
        y: (N,) int64.
        eps: a number or (N,), instead of the attack's own.
        generator: draws what is random.
        Raises AttackError on what cannot be attacked.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it is called")

    def make(
        self, model: nn.Module, x: Tensor, y: Tensor, *, generator: Source, judge: nn.Module
    ) -> Made:
        """Calls the attack and checks the result.

        judge: the model that decides, for the attacks that pass verdicts.
        """
        return self._made(self(model, x, y, generator=generator), x)

    def _made(self, found: Any, x: Tensor) -> Made:
        images, broken_by = found[:2] if isinstance(found, Broken) else (found, None)
        return Made(check_made(images, x, self), broken_by)

    def setting(self, name: str) -> Any:
        """The field `name`, such as "eps" or "step_size"; None where the attack has none."""
        return vars(self).get(name)

    def within(self, eps: Tensor) -> dict[str, Tensor]:
        """The settings of a call within another eps (N,).

        Raises ValueError where the step cannot follow.
        """
        if self.setting("step_size") is not None:
            raise ValueError(
                f"the step_size of {self!r} does not follow eps: leave it None, or use PGD"
            )
        return {"eps": eps}

    def towards_the_nearest(self, n_classes: int) -> Any:
        """This attack towards the nearest class, where the default ascends towards all of them."""
        return self


class Another(Attack):
    """Somebody else's callable as an attack, with those of the attributes that it has."""

    def __init__(self, call: Any) -> None:
        self.call = call
        for name in ("eps", "step_size", "norm", "steps", "batch_norm"):
            if hasattr(call, name):
                setattr(self, name, getattr(call, name))

    def __repr__(self) -> str:
        return repr(self.call)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> Any:
        """Calls it with the same arguments."""
        return self.call(model, x, y, **settings)


def as_attack(attack: Any) -> Attack:
    """The attack itself; anything else that is called like one, with the face of one."""
    return attack if isinstance(attack, Attack) else Another(attack)


def chooses_search(attack: Attack) -> bool:
    """Whether a call of the attack takes `search`; somebody else's need not."""
    return "search" in inspect.signature(attack.__call__).parameters


def checked(
    perturb: Call,
    nothing: Callable[[Any, Tensor], Any] = lambda attack, x: x.clone(),
    may_copy: bool = True,
) -> Call:
    """`perturb(attack, model, x, y, ...)` behind the door.

    `nothing(attack, x)` is the answer to an empty batch.
    may_copy: False for attacks that always search on the model itself.

    search: of the call; "fast" searches on a copy of the model, where one pays and can be had
        (crat.attacks.search.to_search): BatchNorm folded, channels last, bfloat16 where the device
        multiplies it in hardware and the search itself decides nothing (`Attack.decides`). Attacks
        that pass verdicts ask the model itself, in float32. "exact" searches on the model itself,
        and so does a call with a `judge`, whose model is a copy already.

    The result asks for no gradient, whatever x does. Works under torch.no_grad(). A model that
    draws random numbers moves torch's global generator, as it does elsewhere. The door waits for
    the device four times a call, and once more for a radius that is a tensor, never between
    passes.

    Raises AttackError, one line, on images, labels, a radius, a step or a model that the attack was
    not made for, and where one of its logits or gradients was not finite. What is raised on a copy
    is believed only where the model itself raises it, too.
    """
    signature = inspect.signature(perturb)

    @wraps(perturb)
    def call(
        attack: Any, model: nn.Module, x: Tensor, y: Tensor, search: str = "fast", **settings: Any
    ) -> Any:
        one_of("search", search, SEARCHES)
        x, y, settings = admitted(attack, model, x, y, settings)
        if not len(x):
            return nothing(attack, x)

        def attempt(searched: nn.Module) -> Any:
            return _watched_call(perturb, attack, searched, model, x, y, settings)

        if not may_copy or search == "exact" or settings.get("judge") is not None:
            return attempt(model)
        dtype = "float32" if attack.decides else "auto"
        searched = to_search(model, x, attack.passes, attack.batch_norm, dtype)
        if searched is model:
            return attempt(model)
        if "judge" in signature.parameters:
            settings["judge"] = model
        put_back = _draws(settings.get("generator"))
        try:
            return _laid_out_like(x, attempt(searched))
        except Exception as error:  # of the copy or of the model: the search on the model tells
            why = first_line(error)
        forget(model)
        put_back()
        found = attempt(model)
        text = f"the search was made anew on the model itself; on its copy: {why}"
        warnings.warn(text, SearchWarning, stacklevel=2)
        return found

    keyword = inspect.Parameter(
        "search", inspect.Parameter.KEYWORD_ONLY, default="fast", annotation="str"
    )
    parameters = [*signature.parameters.values(), keyword]
    vars(call)["__signature__"] = signature.replace(parameters=parameters)
    return cast(Call, call)


def _watched_call(
    perturb: Callable[..., Any],
    attack: Any,
    searched: nn.Module,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: dict[str, Any],
) -> Any:
    """One call of `perturb` that searches on `searched`, the model itself or its copy."""
    copied = searched is not model
    watched = Watched(
        searched, y, settings.get("target"), model if copied else None, attack.batch_norm
    )
    judge = settings.get("judge")
    if judge is not None:
        same = judge is searched
        settings = settings | {"judge": watched if same else Watched(judge, y)}
    try:
        with torch.enable_grad():
            # the copy's layout of memory
            images = x.contiguous(memory_format=torch.channels_last) if copied else x
            found = perturb(attack, watched, images, y, **settings)
    finally:
        # even where another error was raised: a gradient that was NaN is its cause
        watched.report()
    return found.detach() if isinstance(found, Tensor) else found


def _draws(generator: Source) -> Callable[[], Any]:
    """What puts a source of random numbers back to where it is now."""
    if isinstance(generator, Share):
        generator = generator.generator
    if isinstance(generator, PerImage):
        return partial(setattr, generator, "drawn", generator.drawn)
    if generator is None:
        return lambda: None
    return partial(generator.set_state, generator.get_state())


def _laid_out_like(x: Tensor, found: Any) -> Any:
    """The result with its images in the memory layout of x."""
    if isinstance(found, Tensor):
        return torch.empty_like(x).copy_(found) if found.shape == x.shape else found
    if isinstance(found, tuple):
        parts = [_laid_out_like(x, part) for part in found]
        return type(found)(*parts) if isinstance(found, Broken) else tuple(parts)
    return found


def admitted(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, settings: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """x without its history, y and the target as int64.

    Raises AttackError on what cannot be attacked.
    """
    check_model(model)
    x = check_images(x)
    y = check_labels(y, x)
    target = settings.get("target")
    if target is not None:
        settings = settings | {"target": check_labels(target, x, "targets")}
    for name in ("eps", "step_size"):
        value = settings.get(name)
        value = attack.setting(name) if value is None else value
        if value is not None:
            check_radius(value, attack.norm, x, name)
    return x, y, settings


def check_model(model: Any) -> None:
    """Raises AttackError on what is no nn.Module that can be frozen, copied and differentiated."""
    if torch.is_inference_mode_enabled():
        raise AttackError(
            "an attack needs gradients, which torch.inference_mode() forbids: "
            "use torch.no_grad() instead"
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
            "a TorchScript module cannot be frozen or copied: "
            "attack the nn.Module that it was made from"
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


def as_images(x: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1], channels last in memory; floats pass through."""
    if x.dtype == torch.uint8:
        x = x.float().div_(255)
    return x.contiguous(memory_format=torch.channels_last)


def check_images(x: Any) -> Tensor:
    """x, (N, C, H, W) float in [0, 1], without its history; raises AttackError on anything else."""
    if as_tensor(x).dtype == torch.uint8:
        raise AttackError("images are floats in [0, 1], not uint8: x.float() / 255")
    if not x.is_floating_point():
        raise AttackError(f"images are floats in [0, 1], not {_name(x.dtype)}")
    if x.ndim != 4:
        raise AttackError(
            f"images are of shape (N, C, H, W), not {tuple(x.shape)}: "
            "a vector is x.view(N, D, 1, 1)"
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


def check_labels(y: Any, x: Any, what: str = "labels") -> Tensor:
    """y as int64 (N,).

    Raises AttackError on floats, one-hot rows and another number than there are images.
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
    """Raises AttackError on a radius or step that is negative, not a number or too wide for [0, 1].

    value: a number or a tensor (N,).
    x: the images (N, ...); None: not known yet, so that only L-inf has an upper end.
    """
    if isinstance(value, bool) or not isinstance(value, (Real, Tensor)):
        given = repr(value) if isinstance(value, (str, bool)) else type(value).__name__
        raise AttackError(f"{what} is a number or a tensor (N,), not {given}")
    if isinstance(value, Tensor) and not value.numel():
        return
    low, high = ends(value) if isinstance(value, Tensor) else 2 * (float(value),)
    pixels = inf
    if x is not None and len(x):
        pixels = x[:1].numel()
    widest = {"Linf": 1.0, "L2": sqrt(pixels), "L1": pixels}.get(norm, inf)
    if not 0 <= low <= high <= widest or high == inf:
        room = f"in [0, {widest:.4g}]" if widest < inf else "finite and at least 0"
        hint = f": is {high:g} / 255 meant?" if norm == "Linf" and 1 < high <= 255 else ""
        raise AttackError(
            f"{what} in {norm} is {room} for images in [0, 1], "
            f"not {high if low >= 0 else low:g}{hint}"
        )


def check_made(made: Any, x: Tensor, attack: Attack) -> Tensor:
    """The attack's result for the images x, if it is a batch of their shape inside the ball.

    The ball is known where the attack has a number eps; its norm is L-inf unless the attack says
    another. Raises AttackError on any other result.
    """
    if not isinstance(made, Tensor) or made.shape != x.shape:
        what = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise AttackError(f"the attack gives {what} for images of shape {tuple(x.shape)}")
    made = check_images(made)
    eps, norm = attack.setting("eps"), attack.norm
    if isinstance(eps, Real) and norm in NORMS:
        farthest = float(size(made.float() - x.float(), norm).max())
        rounding = ROUNDING * (1 if norm == "Linf" else x[0].numel() ** 0.5)
        if farthest > 1.001 * float(eps) + rounding:
            raise AttackError(
                f"the attack moved an image by {farthest:.4g} in {norm}, "
                f"its eps is {float(eps):.4g}"
            )
    return made


def check_classes(y: Tensor, logits: Tensor) -> None:
    """Raises AttackError where a label (N,) is none of the K classes of the logits (N, K)."""
    if y.numel():
        among(*ends(y), logits.shape[1])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
