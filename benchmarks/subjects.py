"""The networks that benchmarks of attacks attack: briefly trained here, judged in float32."""

from __future__ import annotations

from itertools import chain, islice, repeat
from typing import NamedTuple

import torch
from peers import our_pgd
from torch import Tensor, nn

from crat import data
from crat.attacks.door import as_images
from crat.attacks.frozen import frozen
from crat.attacks.gradient import PGD
from crat.attacks.logits import finite_logits
from crat.attacks.threat import size
from crat.config import ModelConfig
from crat.defenses.pgd_at import PGDAT
from crat.device import autocast, pick_dtype
from crat.nets import models

GREY_EPS = 0.1  # of the grey network's training, and where the search for its radius begins
SLACK = 1e-6  # of ball and box, for the rounding of other libraries


class Subject(NamedTuple):
    """A network, images (N, C, H, W) in [0, 1], its own answers (N,), and a radius."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float


def trained(
    config: ModelConfig, x: Tensor, y: Tensor, eps: float, updates: int, batch: int = 128
) -> nn.Module:
    """A network after a short training by PGD-5 of radius eps (0: plain), SGD at a one-cycle rate.

    Random weights would do for the speed, but their decisions, and so what bfloat16 changes, are
    nothing like a user's. x (N, C, H, W) uint8, y (N,), on the device to train on.
    """
    model = models.build(config, int(y.max()) + 1, x.shape[1:], seed=0).to(x.device)
    defense = PGDAT(PGD(eps, eps / 4, 5 if eps else 0))
    dtype = pick_dtype("auto", x.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=updates)
    generator = torch.Generator(x.device).manual_seed(0)
    epochs = repeat(data.Batches(x, y, batch, generator))
    for images, labels in islice(chain.from_iterable(epochs), updates):
        with autocast(x.device, dtype):
            x_adv = defense.craft(model, images, labels, generator=generator)
            loss, _ = defense.loss(model.train(), images, x_adv, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """The model's answers in float32, (N,)."""
    with frozen(model):
        return torch.cat([finite_logits(model, part) for part in as_images(x).split(500)]).argmax(1)


def robust_acc(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, eps: float) -> float:
    """Share of images that stay right in float32; a point outside ball or box breaks none."""
    outside = size(x_adv - x, "Linf") > eps + SLACK
    outside |= x_adv.flatten(1).amin(1) < -SLACK
    outside |= x_adv.flatten(1).amax(1) > 1 + SLACK
    return ((predicted(model, x_adv) == y) | outside).double().mean().item()


def survivable(model: nn.Module, x: Tensor, y: Tensor, eps: float, share: float) -> float:
    """eps, halved until PGD-20 leaves at least this share of the images right."""
    make = our_pgd("float32")
    while robust_acc(model, x, y, make(model, x, eps, 20).craft(x, y), eps) < share:
        eps /= 2
    return eps


def grey_subject(device: torch.device, width: int | None, updates: int) -> Subject:
    """A small_cnn after adversarial training on the shipped Fashion-MNIST, with its test images.

    eps is 0.1, halved until 60 % of 200 images survive PGD-20.
    """
    whole = data.load("fashion_mnist_mini").to(device)
    config = ModelConfig("small_cnn", width)
    model = trained(config, whole.x_train, whole.y_train, GREY_EPS, updates)
    x = whole.x_test.float().div(255)
    y = predicted(model, x)
    return Subject(model, x, y, survivable(model, x[:200], y[:200], GREY_EPS, 0.6))
