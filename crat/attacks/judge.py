"""The outcome of an attack on a set of images: searched in any precision, judged in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crat.attacks.batches import ON_CPU, counts_memory, fitting_batch
from crat.attacks.door import (
    Attack,
    Made,
    as_attack,
    as_images,
    as_tensor,
    check_classes,
    check_images,
    check_labels,
    check_model,
    chooses_search,
)
from crat.attacks.frozen import frozen
from crat.attacks.logits import finite_logits
from crat.attacks.noise import PerImage
from crat.attacks.objectives import full
from crat.attacks.precision import exact
from crat.attacks.search import TRIED, Searcher, searcher
from crat.attacks.threat import one_of
from crat.data import Streamed
from crat.device import autocast
from crat.store.files import seed_for

# of the attacks and of judging: raised when outcomes may change, so that kept ones are made anew
REVISION = 2


def one_by_one(attack: Any) -> bool:
    """Whether an image's outcome is independent of the other images in its batch.

    True for crat's attacks with BatchNorm in eval mode, and for none (None).
    """
    # imported late: it notes how crat's code stands when it is imported, which has to be whole
    from crat.keys.identity import is_plain

    return is_plain(attack) and (attack is None or as_attack(attack).batch_norm == "eval")


class Judged(NamedTuple):
    """A batch under an attack: float32 logits (B, K); of a battery, the breaker, (B,) int8."""

    logits: Tensor
    broken_by: Tensor | None


def attacked_batches(
    model: nn.Module,
    x: Tensor | Streamed,
    y: Tensor,
    attack: Attack | None,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    crafted_on: nn.Module | None = None,
    begin: int = 0,
) -> Iterator[Judged]:
    """Yields the model's outcome under `attack` (None: on the clean images), batch by batch.

    x: (N, C, H, W) uint8 or [0, 1] float; or files, which are decoded batch by batch.
    batch_size: None: 500, and on a GPU by its free memory (crat.attacks.batches) where an image's
        outcome is its own (`one_by_one`).
    dtype: "float32" or "bfloat16", of the search.
    crafted_on: another model to craft on (a transfer attack).
    begin: the image to resume at.
    What is random depends on the seed and on each image's place in the set only, so two models meet
    the same starts, and neither the batch size nor `begin` changes them. The logits of a battery
    are those by which it passed its verdict, so that a model whose outputs are random gets one
    verdict.

    Raises AttackError on images, labels or models that cannot be attacked (crat.attacks.door).
    """
    source = crafted_on or model
    check_model(model)
    one_of("dtype", dtype, ("float32", "bfloat16"))
    y = check_labels(y, x if isinstance(x, Streamed) else as_tensor(x))
    size = ON_CPU if batch_size is None else batch_size
    if size < 1 or not 0 <= begin <= len(x):
        raise ValueError(
            f"batch_size is at least 1 and begin one of {len(x)} images, not {size} and {begin}"
        )
    by_memory = batch_size is None and one_by_one(attack) and counts_memory(x.device)
    attack = None if attack is None else as_attack(attack)
    search: Searcher | None = None
    if by_memory and begin < len(x):
        example = check_images(as_images(x[begin : begin + TRIED]))
        if attack is not None:
            search = searcher(source, example, dtype)
        size = fitting_batch(search or model, example)
    for at in range(begin, max(len(x), 1), size):
        images = check_images(as_images(x[at : at + size]))
        labels = y[at : at + size]
        made = Made(images)
        if attack is not None and len(images):
            if search is None:
                search = searcher(source, images[:TRIED], dtype, fold=attack.batch_norm == "eval")
            draws = PerImage(seed, torch.arange(at, at + len(images), device=x.device))
            made = attack.make(search, images, labels, generator=draws, judge=source)
        logits = made.logits
        if logits is None or crafted_on is not None:
            with frozen(model):
                logits = finite_logits(model, made.x_adv)
        check_classes(labels, logits)
        yield Judged(logits, made.broken_by)  # outside: a caller who stops here keeps its gradients


def quick_logits(
    model: nn.Module,
    x: Tensor | Streamed,
    y: Tensor,
    attack: Attack | None,
    *,
    seed: int,
    dtype: str,
    batch_size: int = 500,
) -> Tensor:
    """Logits (N, K) under `attack`, for the curves of a training; no copy of the model is made.

    The model is attacked as it is, and starts are drawn batch by batch, so an epoch's validation
    costs little; another batch size is another draw.
    """
    logits = []
    itself: dict[str, Any] = {}
    if attack is not None and chooses_search(attack):
        itself = {"search": "exact"}
    for at in range(0, len(x), batch_size):
        images = as_images(x[at : at + batch_size])
        labels = y[at : at + batch_size]
        if attack is not None:
            generator = torch.Generator(x.device).manual_seed(seed_for(seed, at))
            with autocast(x.device, dtype):
                images = attack(model, images, labels, generator=generator, **itself)
        with frozen(model), torch.no_grad(), exact():
            logits.append(full(model(images)))
    return torch.cat(logits)


def attacked_logits(
    model: nn.Module, x: Tensor | Streamed, y: Tensor, attack: Attack | None, **settings
) -> Tensor:
    """The logits of all batches of `attacked_batches` in one tensor (N, K)."""
    return torch.cat([batch.logits for batch in attacked_batches(model, x, y, attack, **settings)])
