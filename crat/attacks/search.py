"""The copy of a model that attacks search with: BatchNorm folded, channels last, bfloat16.

BatchNorm is folded into the convolutions. Only the search runs on the copy. Whether an image is
broken is decided by the model itself, in float32. A copy is believed only where it was tried: its
logits and its input gradients on a few images are the model's, up to rounding.

A call of an attack keeps its copy, and searches on it again while the model is the same. The model
itself is never passed to what makes that copy, so it is left as it was found, whatever its code
does.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from crat import graphs
from crat.attacks.frozen import frozen
from crat.attacks.logits import answer_of, logits_of
from crat.attacks.looked import FOLDED, ROUNDED, Looked, SearchWarning, difference
from crat.attacks.objectives import CrossEntropy, full
from crat.attacks.precision import exact
from crat.attacks.recorded import Recordings, allowed_of
from crat.device import autocast, pick_dtype
from crat.nets.folding import Tracer, has_batch_norm
from crat.text import first_line

TRIED = 16  # images on which a copy is tried against the model
# passes x images below which a copy costs more than it saves: to make one costs 50 (a ResNet-18) to
# 90 (the small CNN) of them
SMALL = 256


class Searcher(nn.Module):
    """A network with its precision: images (N, C, H, W) in, float32 logits (N, K) out.

    unfolded: why BatchNorm was left as it is; "" where it is folded or there is none.
    recordings: of its passes in eval mode, on a GPU; None: every pass is made by Python.
    """

    recordings: Recordings | None = None

    def __init__(self, net: nn.Module, dtype: str, unfolded: str) -> None:
        super().__init__()
        self.net = net
        self.dtype = dtype
        self.unfolded = unfolded
        if dtype == "bfloat16":
            layers = [
                m for m in net.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False))
            ]
            # autocast would cast frozen weights anew in each forward pass
            for layer in layers[:-1]:
                if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
                    layer.to(torch.bfloat16)
            if layers:  # a cosine head, too
                _keep_float32(layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, K)."""
        if self.recordings is not None and not self.training:
            logits = self.recordings.logits(self._plain, x)
            if logits is not None:
                return logits
        return self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        with autocast(x.device, self.dtype):
            return full(logits_of(self.net(x), x))


def _keep_float32(head: nn.Module) -> None:
    """Makes the last layer compute in float32.

    In bfloat16 two logits near 8 that differ by less than 0.03 are equal.
    """
    plain = head.forward

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return plain(x.float())

    head.forward = forward  # type: ignore[method-assign]


def searcher(
    model: nn.Module, example: Tensor, dtype: str = "float32", fold: bool = True
) -> Searcher:
    """A frozen copy of `model` for searching in "float32" or "bfloat16"; `model` stays as it is.

    example: a few images, on which the copy is tried. Where the model cannot be traced, has hooks,
        or folding changes logits or gradients by more than rounding, BatchNorm stays, and
        `unfolded` says why.
    fold: False leaves BatchNorm in any case, for attacks that normalise by the batch.
    Where bfloat16 fails or changes logits or gradients by more than its rounding, the search is in
    float32, and a SearchWarning says why.
    On a GPU the passes of a copy without hooks are recorded (crat.attacks.recorded) as attacks ask
    for them, but not with fold=False, where images meet in BatchNorm.
    """
    found = _searcher(model, example, dtype, fold)
    own = found.net is not model and not any(has_hooks(part) for part in found.net.modules())
    if fold and own and graphs.can_record(example.device):
        found.recordings = Recordings(allowed_of(found.dtype))
    return found


def _searcher(model: nn.Module, example: Tensor, dtype: str, fold: bool) -> Searcher:
    with frozen(model):
        expected = _look(model, example)
        net, unfolded = _folded(model, example, expected) if fold else (None, "not asked for")
        if net is None:
            net = _copied(model, example, expected)
        if dtype == "bfloat16":
            rounded, why = _in_bfloat16(net, unfolded, example, expected)
            if rounded is not None:
                return rounded
            warnings.warn(
                f"the search is in float32: in bfloat16 {why}", SearchWarning, stacklevel=3
            )
    return Searcher(net, "float32", unfolded)


def _in_bfloat16(
    net: nn.Module, unfolded: str, example: Tensor, expected: Looked
) -> tuple[Searcher | None, str]:
    """The network in bfloat16, or why it cannot be had."""
    try:
        rounded = Searcher(copy.deepcopy(net), "bfloat16", unfolded)
        why = difference(expected, _look(rounded, example), ROUNDED)
    except Exception as error:  # layers that want another precision raise whatever they like
        return None, f"it fails ({first_line(error)})"
    return (None, f"it {why}") if why else (rounded, "")


def _copied(model: nn.Module, example: Tensor, expected: Looked) -> nn.Module:
    """A frozen copy that gives what the model gives; the model itself where none can be had."""
    try:
        net = copy.deepcopy(model).requires_grad_(False).to(memory_format=torch.channels_last)
        return model if difference(expected, _look(net, example), FOLDED) else net
    except Exception:  # what hangs on a module need not be copyable: weight_norm's old form is not
        return model


def _folded(model: nn.Module, example: Tensor, expected: Looked) -> tuple[nn.Module | None, str]:
    if not has_batch_norm(model):
        return None, ""
    if any(has_hooks(part) for part in model.modules()):
        return None, "it has hooks"
    try:
        net = fuse(fx.GraphModule(model, Tracer().trace(model)), no_trace=True)
        net = net.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        why = difference(expected, _look(net, example), FOLDED)
    except Exception as error:
        # tracing runs the model's own code: whatever it raises, it cannot be folded
        return None, f"it cannot be traced ({first_line(error)})"
    return (None, f"folding {why}") if why else (net, "")


def _look(net: nn.Module, x: Tensor) -> Looked:
    """The network's logits and gradient; zeros without a gradient (a model for Square only)."""

    with exact():
        with torch.no_grad():
            answer = full(answer_of(net, x))
        try:
            gradient = _gradient(net, x, answer.argmax(1))
        except Exception:  # whatever a backward pass may raise; an attack that needs it will say so
            gradient = torch.zeros_like(x)
    return Looked(answer, gradient)


def _gradient(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the answers' log-odds, (N, C, H, W)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        values = CrossEntropy()(full(answer_of(net, x)), labels)
    return torch.autograd.grad(values.sum(), x)[0]


def has_hooks(part: nn.Module) -> bool:
    """Whether a module has hooks of forward or backward passes."""
    return any(
        value
        for name, value in vars(part).items()
        if name.endswith("_hooks") and "state_dict" not in name
    )


class Kept(NamedTuple):
    """A copy, and all that decides it.

    settings: shape and device of an image, precision, and whether BatchNorm is folded.
    text: the identity of the model's code and Python state, without its weights and buffers.
    tensors: copies of those.
    search: the copy; None where the model has to be searched itself.
    """

    settings: tuple[Any, ...]
    text: str
    tensors: list[Tensor]
    search: Searcher | None


_KEPT: WeakKeyDictionary[nn.Module, Kept] = WeakKeyDictionary()


def forget(model: nn.Module) -> None:
    """Drops the copy of a model that is kept."""
    _KEPT.pop(model, None)


def to_search(
    model: nn.Module, x: Tensor, passes: int, batch_norm: str, dtype: str = "auto"
) -> nn.Module:
    """The copy of `model` on which an attack on the images x (N, C, H, W) searches, or the model.

    passes: how many forward passes the attack makes, roughly.
    batch_norm: its mode inside the attack (crat.attacks.frozen).
    dtype: "auto" is bfloat16 where the device multiplies it in hardware; "float32".
    The model itself is searched
    - where passes x images is under SMALL: a copy would cost more than it saves;
    - under batch_norm "moving" and "as_is", which are for the model's own state;
    - where images or weights are not float32, and within a caller's autocast: the precision was
      chosen;
    - where it has hooks, keeps state in its passes, is spread over processes, is compiled, or
      cannot be copied.
    The copy is kept and used again while the model's code, Python state, weights and buffers are
    what they were when it was made. Where that cannot be read, each call makes its own copy.
    """
    if isinstance(model, Searcher) or passes * len(x) < SMALL or not _fits(model, x, batch_norm):
        return model
    folds = batch_norm == "eval"
    settings = (tuple(x.shape[1:]), x.device, pick_dtype(dtype, x.device), folds)
    tensors = _tensors(model)
    with frozen(model):
        text, unread = _state(model, tensors)
        kept = None if unread else _KEPT.get(model)
        if kept is None or kept[:2] != (settings, text) or not _equal(kept.tensors, tensors):
            forget(model)
            search = _made(model, x, settings, text if not unread else None)
            kept = Kept(settings, text, [tensor.detach().clone() for tensor in tensors], search)
            if not unread:
                _KEPT[model] = kept
    return kept.search or model


def _fits(model: nn.Module, x: Tensor, batch_norm: str) -> bool:
    """Whether a copy may stand for the model; only looks."""
    if batch_norm not in ("eval", "train") or torch.is_autocast_enabled(x.device.type):
        return False
    parts = list(model.modules())
    if any(has_hooks(part) or _is_special(part) for part in parts):
        return False
    tensors = _tensors(model)
    if any(tensor._backward_hooks or vars(tensor) for tensor in tensors):
        return False
    floats = [tensor.dtype for tensor in (x, *tensors) if tensor.is_floating_point()]
    return all(dtype == torch.float32 for dtype in floats)


def _is_special(part: nn.Module) -> bool:
    """Whether a module has its own way to run: a wrapper of several processes or of a compiler."""
    return isinstance(part, nn.parallel.DistributedDataParallel) or hasattr(part, "_orig_mod")


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _state(model: nn.Module, tensors: list[Tensor]) -> tuple[str, tuple[str, ...]]:
    """The identity of the model's code and Python state, and what could not be read of it.

    Its tensors are compared by themselves.
    """
    # imported late: it notes how crat's code stands when it is imported, which has to be whole
    from crat.keys.identity import identity, put_in_place

    text, unread = identity(model, aside=tensors)
    # code of crat that was replaced in this session, which an identity only names
    for replaced in put_in_place().values():
        text, unread = text + replaced.text, unread + replaced.unread
    return text, unread


def _equal(before: list[Tensor], now: list[Tensor]) -> bool:
    """Whether tensors are bit for bit the same, in one wait for a device."""
    if [_kind(tensor) for tensor in before] != [_kind(tensor) for tensor in now]:
        return False
    same = [(_bits(one) == _bits(other)).all() for one, other in zip(before, now, strict=True)]
    return not same or bool(torch.stack(same).all())


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _bits(tensor: Tensor) -> Tensor:
    """The tensor as integers where it holds float32, so that NaN equals itself."""
    tensor = tensor.detach()
    return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor


def _made(
    model: nn.Module, x: Tensor, settings: tuple[Any, ...], text: str | None
) -> Searcher | None:
    """A copy that was tried on the first images; None where the model has to be searched itself.

    text: the model's identity; None where it cannot be read.
    """
    _, _, dtype, folds = settings
    with _caller_left_alone(x.device), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", SearchWarning)
        try:
            trial = copy.deepcopy(model)
            search = searcher(trial, x[:TRIED], dtype, fold=folds)
        except Exception:  # what a model's own code may raise; on the model itself it says why
            return None
    tensors = _tensors(trial)
    moved = not _equal(tensors, _tensors(model))
    if moved or (text is not None and _state(trial, tensors)[0] != text):
        return None  # its passes change it
    if search.net is trial:
        return None
    for warning in told:
        warnings.warn(warning.message, stacklevel=5)
    return search


@contextmanager
def _caller_left_alone(device: torch.device) -> Iterator[None]:
    """A model that draws random numbers or turns gradients off does so in a trial, too."""
    devices = [device] if device.type == "cuda" else []
    state = random.getstate()
    with torch.random.fork_rng(devices), torch.set_grad_enabled(torch.is_grad_enabled()):
        yield
    random.setstate(state)
