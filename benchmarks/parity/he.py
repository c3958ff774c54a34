"""HE on AT, TRADES and ALP, and ALP itself, against ShawnXYang/AT_HE (CIFAR-10).

The network is the same for both, with a head of unit vectors that crat normalises in its forward
pass; the authors' network overwrites the weights there instead, which is told in HE's table and not
compared.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import torch
from harness import (
    CLASSES,
    EPS,
    STEP,
    STEPS,
    Tiny,
    authors,
    batch,
    buffers,
    given_noise,
    gradient,
    tiny,
)
from torch import Tensor

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.alp import ALP
from crat.defenses.base import Defense
from crat.defenses.he import HE
from crat.nets.models import CosineHead

CODE = "ShawnXYang/AT_HE@dad6a41bb170bba94f9818e7ba891163143c3e10"
S = 10.0
M = 0.17
BETA = 6.0
PAIRING = 0.7
BATCH = 5  # no step of TRADES is so near 0 in it that float32 changes its sign
NAMES = {"pgd_at": "pgd_he", "trades": "trades_he", "alp": "alp_he"}


def embedded(scale: float, dtype: torch.dtype = torch.float64) -> Tiny:
    """The tiny network, which ends in scale * cos(feature, w_k)."""
    model = tiny(torch.float64)
    weight = model.head.weight.detach()
    model.head = CosineHead(12, CLASSES, scale, bias=False).double()
    model.head.weight.data.copy_(weight)
    return model.to(dtype)


def theirs(folder: Path) -> dict[str, Tensor]:
    found = {}
    with mock.patch.dict(sys.modules), authors(folder / "CIFAR-10"):
        del sys.modules[__name__]  # theirs has this name, too
        import losses

        for base, name in {**NAMES, "alp alone": "alp"}.items():
            model, seen = tiny() if name == "alp" else embedded(1.0), []
            model.register_forward_pre_hook(
                lambda _, images, seen=seen: seen.append(images[0].detach())
            )
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            call = {"pgd_he": losses.pgd_loss, "trades_he": losses.trades_loss}.get(
                name, losses.alp_loss
            )
            beta = BETA if base == "trades" else PAIRING
            loss = call(
                model, *batch(BATCH), optimizer, STEP, EPS, STEPS, beta, loss=name, m=M, s=S
            )
            found |= items(base, model, seen[-1], loss)
    return found


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    attack = PGD(EPS, STEP, STEPS, start=HE.start, batch_norm=HE.batch_norm)
    methods: dict[str, Defense] = {base: HE(attack, base, M, BETA, PAIRING) for base in NAMES}
    found = {}
    for base, method in {**methods, "alp alone": ALP(attack, PAIRING)}.items():
        model, (x, y) = embedded(S, dtype) if base in NAMES else tiny(dtype), batch(BATCH, dtype)
        method.prepare(Task(torch.ones(CLASSES)))
        with given_noise(dtype):
            x_adv = method.craft(model, x, y, generator=torch.Generator())
        found |= items(base, model, x_adv, method.loss(model, x, x_adv, y)[0])
    return found


def items(base: str, model: Tiny, x_adv: Tensor, loss: Tensor) -> dict[str, Tensor]:
    parts = {
        "x_adv": x_adv,
        "loss": loss,
        "gradient": gradient(model, loss),
        "buffers": buffers(model.bn),
    }
    return {f"{base}/{name}": value for name, value in parts.items()}
