"""HAM against yyl-github-1896/HAM: GA_PGD_early2, and the training step of its CIFAR-10 script.

GAIRAT_wrong_early_time.py trains as soon as it is imported, so its function `train` is taken out.
The code attacks a network normalised by CIFAR-100's numbers, and trains one by CIFAR-10's; here
both are the same network without. Two thirds of the labels are what the network predicts, so that
some images are easy; crat's side takes them out of the batch, as the code does.
"""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from harness import (
    BATCH,
    CLASSES,
    EPS,
    STEP,
    STEPS,
    authors,
    batch,
    buffers,
    given_noise,
    gradient,
    tiny,
    uniform_noise,
)
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.ham import HAM as Ours

CODE = "yyl-github-1896/HAM@e3ee5ffe52e88d5f392cfeed1ceea512bb8258c4"
CLASSIFY, BEGIN = 2, 1


def labelled(number: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x, y = batch(number)
    predicted = tiny().eval()(x).argmax(1)  # as the attack sees it
    return x.to(dtype), torch.where(torch.arange(len(y)) % 3 == 0, y, predicted)


def training(folder: Path) -> ast.Module:
    """The script's function `train`."""
    tree = ast.parse((folder / "GAIRAT_wrong_early_time.py").read_text())
    kept = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train"]
    return ast.Module(kept, [])


def theirs(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    noise = mock.patch.object(
        np.random,
        "uniform",
        lambda low, high, shape: (low + (high - low) * uniform_noise()).numpy(),
    )
    exact = mock.patch.object(torch.Tensor, "float", torch.Tensor.double)
    with authors(folder), noise, exact:
        import attack_generator as attack

        attack.normalize = lambda x: x
        model = tiny()
        names = {"torch": torch, "np": np, "nn": nn, "attack": attack, "normalize": lambda x: x}
        names["lr_schedule"] = lambda epoch: 0.1
        names["args"] = SimpleNamespace(
            begin_epoch=BEGIN + 1,
            gair=False,
            epsilon=EPS,
            step_size=STEP,
            num_steps=STEPS,
            classify_step=CLASSIFY,
        )
        exec(compile(training(folder), "train", "exec"), names)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for epoch in range(2):
            for i in range(3):
                x, y = labelled(i)
                if epoch == 1 and i == 0:
                    x_adv, weight = attack.GA_PGD_early2(
                        model, x, y, EPS, STEP, STEPS, "cent", "Madry", True, CLASSIFY
                    )
                    assert 0 < weight.sum() < BATCH, "all images are hard, or none is"
                    found |= {"state/hard": weight, "x_adv": x_adv}
                lost, _ = names["train"](epoch, model, [(x, y)], optimizer, None)
                if epoch == 1 and i == 0:
                    # the script tells the sum over the hard images, over all of the batch
                    found["loss"] = torch.tensor(lost * BATCH) / weight.sum()
                    found["gradient"] = torch.cat(
                        [p.grad.flatten() for p in model.parameters()]
                    ).clone()
        return found | {"buffers": buffers(model)}


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    model = tiny(dtype)
    attack = PGD(EPS, STEP, STEPS, start=Ours.start, batch_norm=Ours.batch_norm)
    ham = Ours(attack, CLASSIFY, BEGIN, compacts=True)
    ham.prepare(Task(torch.ones(CLASSES)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        for i in range(3):
            x, y = labelled(i, dtype)
            with given_noise(dtype):
                x_adv = ham.craft(model, x, y, generator=torch.Generator())
            loss, stats = ham.loss(model, x, x_adv, y)
            if epoch == 1 and i == 0:
                hard = ham.hard(y)
                found |= {"state/hard": hard.to(dtype), "x_adv": x_adv[hard]}
                found |= {"loss": loss.detach(), "gradient": gradient(model, loss)}
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ham.epoch_end(stats, None)
    return found | {"buffers": buffers(model)}
