"""The outcome of an attack on a set of images, batch by batch: searched in any precision, judged
in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crat.attacks.autoattack import AutoAttack
from crat.attacks.door import (
    as_tensor,
    check_classes,
    check_images,
    check_labels,
    check_made,
    check_model,
)
from crat.attacks.frozen import frozen
from crat.attacks.gradient import Attack, one_of
from crat.attacks.hunt import Broken
from crat.attacks.logits import finite_logits
from crat.attacks.noise import PerImage
from crat.attacks.objectives import full
from crat.attacks.search import searcher
from crat.device import autocast, exact
from crat.store import seed_for

TRIED = 16  # images on which the copy that is searched with is tried against the model
# of the attacks and of judging: raised when outcomes may change, so that kept ones are made anew
REVISION = 2


class Judged(NamedTuple):
    """A batch under an attack: the model's float32 logits (B, K), and of a battery what broke
    each image, (B,) int8.
    """

    logits: Tensor
    broken_by: Tensor | None


def as_images(x: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1], channels last in memory; floats pass through."""
    if x.dtype == torch.uint8:
        x = x.float().div_(255)
    return x.contiguous(memory_format=torch.channels_last)


def attacked_batches(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack | AutoAttack | None,
    *,
    batch_size: int = 500,
    seed: int = 0,
    dtype: str = "float32",
    crafted_on: nn.Module | None = None,
    begin: int = 0,
) -> Iterator[Judged]:
    """Yields what the model answers under `attack` (None: on the clean images), one batch at a
    time.

    x: (N, C, H, W) uint8 or [0, 1] float; dtype: "float32" or "bfloat16", of the search;
    `crafted_on`: another model to craft on (a transfer attack). What is random depends on the seed
    and on each image's place in the set only, so two models meet the same starts, and neither the
    batch size nor `begin`, the image to resume at, changes them. The logits of a battery are those
    by which it passed its verdict, so that a model whose outputs are random gets one. Raises
    AttackError on images, labels or models that cannot be attacked (crat.attacks.door).
    """
    source = crafted_on or model
    check_model(model)
    one_of("dtype", dtype, ("float32", "bfloat16"))
    y = check_labels(y, as_tensor(x))
    if batch_size < 1 or not 0 <= begin <= len(x):
        raise ValueError(
            f"batch_size is at least 1 and begin one of {len(x)} images, not {batch_size} and "
            f"{begin}"
        )
    search = None
    for at in range(begin, max(len(x), 1), batch_size):
        images, labels = check_images(as_images(x[at : at + batch_size])), y[at : at + batch_size]
        logits, broken_by = None, None
        if attack is not None and len(images):
            if search is None:
                foldable = getattr(attack, "batch_norm", "eval") == "eval"
                search = searcher(source, images[:TRIED], dtype, fold=foldable)
            places = torch.arange(at, at + len(images), device=x.device)
            decides: dict[str, Any] = {"judge": source} if keeps_what_it_found(attack) else {}
            draws = PerImage(seed, places)
            if isinstance(attack, AutoAttack):
                (images, broken_by, _), logits = attack.judged(
                    search, images, labels, generator=draws, **decides
                )
            else:
                found = attack(search, images, labels, generator=draws, **decides)
                made, broken_by = found[:2] if isinstance(found, Broken) else (found, None)
                images = check_made(made, images, attack)
        if logits is None or crafted_on is not None:
            with frozen(model):
                logits = finite_logits(model, images)
        check_classes(labels, logits)
        yield Judged(logits, broken_by)  # outside: a caller who stops here keeps its gradients


def quick_logits(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack | None,
    *,
    seed: int,
    dtype: str,
    batch_size: int = 500,
) -> Tensor:
    """What a training's own curves are drawn from: (N, K) logits under `attack`, the model searched
    with as it is.

    No copy is made, and starts are drawn batch by batch, so an epoch's validation costs little;
    another batch size is another draw.
    """
    logits = []
    for at in range(0, len(x), batch_size):
        images, labels = as_images(x[at : at + batch_size]), y[at : at + batch_size]
        if attack is not None:
            generator = torch.Generator(x.device).manual_seed(seed_for(seed, at))
            with autocast(x.device, dtype):
                images = attack(model, images, labels, generator=generator)
        with frozen(model), torch.no_grad(), exact():
            logits.append(full(model(images)))
    return torch.cat(logits)


def keeps_what_it_found(attack: Attack | AutoAttack) -> bool:
    """Whether the attack passes verdicts itself (AutoAttack and its parts), for which it needs
    the judging model.
    """
    return hasattr(attack, "attacks") or hasattr(attack, "runs")


def attacked_logits(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack | AutoAttack | None, **settings
) -> Tensor:
    """The logits of all batches of `attacked_batches` in one tensor (N, K)."""
    return torch.cat([batch.logits for batch in attacked_batches(model, x, y, attack, **settings)])
