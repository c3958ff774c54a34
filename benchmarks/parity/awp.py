"""AWP against csdongxian/AWP: the weights after two perturbed updates.

AT on given images, and TRADES with its attack.

Of TRADES the authors' whole training loop runs (train of train_trades_cifar.py), of AT what its
main does in a step, for that is one function with the data set in it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from harness import (
    CLASSES,
    EPS,
    STEP,
    STEPS,
    authors,
    batch,
    buffers,
    given_noise,
    normal_noise,
    tiny,
)
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.base import Defense
from crat.defenses.pgd_at import PGDAT
from crat.defenses.trades import TRADES
from crat.training.awp import perturbed

CODE = "csdongxian/AWP@a7acf5d842fccf1bbb4b91644352ce157d370a26"
BETA = 6.0
GAMMA = {"pgd_at": 0.01, "trades": 0.005}


def given_images(x: Tensor) -> Tensor:
    """(B, 3, 32, 32) at the border of the ball around x."""
    return (x + EPS * normal_noise(x.dtype).sign()).clamp(0, 1)


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def parts(base: str, model: nn.Module) -> dict[str, Tensor]:
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return {f"{base}/weights": weights, f"{base}/buffers": buffers(model)}


def theirs(folder: Path) -> dict[str, Tensor]:
    return their_at(folder / "AT_AWP") | their_trades(folder / "trades_AWP")


def their_at(folder: Path) -> dict[str, Tensor]:
    with authors(folder):
        from utils_awp import AdvWeightPerturb

        model, proxy = tiny(), tiny()
        optimizer = optimizer_of(model)
        awp = AdvWeightPerturb(
            model, proxy, torch.optim.SGD(proxy.parameters(), lr=0.01), GAMMA["pgd_at"]
        )
        for i in range(2):
            x, y = batch(i)
            x_adv = given_images(x)
            moves = awp.calc_awp(inputs_adv=x_adv, targets=y)
            awp.perturb(moves)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x_adv), y).backward()
            optimizer.step()
            awp.restore(moves)
    return parts("pgd_at", model)


def their_trades(folder: Path) -> dict[str, Tensor]:
    """The script, which reads settings and data sets at import, in a folder where it may write."""

    def meter() -> SimpleNamespace:
        return SimpleNamespace(update=lambda *_: None, avg=0.0, val=0.0)

    data = SimpleNamespace(CIFAR10=lambda **_: [0])
    transforms = mock.MagicMock()
    bar = mock.MagicMock(elapsed_td="", eta_td="")
    tools = {"Bar": lambda *_, **__: bar, "Logger": None, "AverageMeter": meter}
    stubs = {
        "torchvision": {"datasets": data, "transforms": transforms},
        "models": None,
        "utils": tools | {"accuracy": lambda *_, **__: (torch.zeros(()), torch.zeros(()))},
    }
    given = [
        "train",
        "--epsilon",
        str(EPS * 255),
        "--step-size",
        str(STEP * 255),
        "--num-steps",
        str(STEPS),
    ]
    with (
        authors(folder, **stubs),
        mock.patch.object(sys, "argv", given),
        tempfile.TemporaryDirectory() as scratch,
        contextlib.chdir(scratch),
        contextlib.redirect_stdout(open(os.devnull, "w")),
    ):
        import train_trades_cifar as script
        from utils_awp import TradesAWP

        model, proxy = tiny(), tiny()
        awp = TradesAWP(model, proxy, torch.optim.SGD(proxy.parameters(), lr=0.1), GAMMA["trades"])
        script.train(
            model, [batch(i) for i in range(2)], optimizer_of(model), script.args.awp_warmup, awp
        )
    return parts("trades", model)


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    attack = PGD(EPS, STEP, STEPS, start=TRADES.start, batch_norm=TRADES.batch_norm)
    methods: dict[str, Defense] = {
        "pgd_at": PGDAT(attack),
        "trades": TRADES(attack, BETA, passes="adversarial clean clean"),
    }
    for base, method in methods.items():
        model = tiny(dtype)
        method.prepare(Task(torch.ones(CLASSES)))
        optimizer = optimizer_of(model)
        for i in range(2):
            x, y = batch(i, dtype)
            with given_noise(dtype):
                x_adv = (
                    method.craft(model, x, y, generator=torch.Generator())
                    if base == "trades"
                    else given_images(x)
                )

            def loss(model=model, method=method, batch=(x, x_adv, y)) -> Tensor:
                return method.loss(model, *batch)[0]

            with perturbed(model, GAMMA[base], loss):
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
        found |= parts(base, model)
    return found
