"""The copy of a model that a call searches on: made once, used again while the model is the same.

A call of an attack searches on a copy (crat.attacks.search) in the fastest precision of the device.
The model itself is never passed to what makes the copy, so it is left as it was found, whatever its
code does.
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
from torch import Tensor, nn

from crat.attacks.frozen import frozen
from crat.attacks.looked import SearchWarning
from crat.attacks.search import Searcher, has_hooks, searcher
from crat.device import pick_dtype
from crat.keys.identity import Identity, identity, put_in_place

TRIED = 16  # images on which a copy is tried against the model
# passes x images below which a copy costs more than it saves: to make one costs some 60 of them
SMALL = 256


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


def _state(model: nn.Module, tensors: list[Tensor]) -> Identity:
    """The identity of the model's code and Python state; its tensors are compared by themselves."""
    text, unread = identity(model, aside=tensors)
    # code of crat that was replaced in this session, which an identity only names
    for replaced in put_in_place().values():
        text, unread = text + replaced.text, unread + replaced.unread
    return Identity(text, unread)


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
    if moved or (text is not None and _state(trial, tensors).text != text):
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
