"""BAT against the one public copy: both searches of train_mode/, BAT_loss of train.py."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import torch
from harness import EPS, STEP, STEPS, authors, batch, buffers, given_noise, gradient, tiny
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses.bat import BAT as Ours

CODE = (
    "silvercherry/Improving-Robust-Fairness-via-Balance-Adversarial-Training"
    "@9bcee67aedeea64cd5c3790e88d292f7dafe8a8f"
)
BETA = 6.0
NUMBERS = (0, 1)


def labelled(number: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A batch whose labels are predictions but for three images: some stop early, some never."""
    x, y = batch(number)
    predicted = tiny().eval()(x).argmax(1)
    return x.to(dtype), torch.where(torch.arange(len(y)) < 3, y, predicted)


def in_order(places: Tensor, images: Tensor) -> Tensor:
    """Images as the batch has them: the code appends each when it stops."""
    return images[places.argsort()]


def theirs(folder: Path) -> dict[str, Tensor]:
    found = {}
    tree = ast.parse((folder / "train.py").read_text())
    wanted = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "BAT_loss"
    ]
    with authors(folder, models=None):
        first = importlib.import_module("train_mode.stop_to_firstadv")
        last = importlib.import_module("train_mode.stop_to_lastclean")
        first.random.shuffle = lambda places: None
        names = {"torch": torch, "nn": nn, "F": nn.functional}
        exec(compile(ast.Module(wanted, []), "BAT_loss", "exec"), names)
        model = tiny()
        settings = {"step_size": STEP, "epsilon": EPS, "perturb_steps": STEPS}
        settings |= {"randominit_type": "normal_distribution_randominit", "loss_fn": "kl"}
        for i in NUMBERS:
            x, y = labelled(i)
            x_last, _, _, places_last = last.stop_to_lastclean(model, x, y, False, **settings)
            x_first, _, _, places = first.stop_to_firstadv(model, x, y, **settings, tau=1)
            x_first, x_last = in_order(places, x_first), in_order(places_last, x_last)
            model.train()
            logits = model(x_last), model(x_first), model(x)
            parts = names["BAT_loss"](logits[1], logits[0], y, BETA, logits[2])
            loss = parts[1] + parts[0] + parts[2]
            found |= {f"{i}/x_adv": torch.stack([x_first, x_last]), f"{i}/loss": loss}
            found |= {f"{i}/gradient": gradient(model, loss), f"{i}/buffers": buffers(model)}
    return found


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    model, bat = (
        tiny(dtype),
        Ours(PGD(EPS, STEP, STEPS, start=Ours.start, batch_norm=Ours.batch_norm), BETA),
    )
    for i in NUMBERS:
        x, y = labelled(i, dtype)
        with given_noise(dtype):
            x_adv = bat.craft(model, x, y, generator=torch.Generator())
        loss = bat.loss(model, x, x_adv, y)[0]
        found |= {f"{i}/x_adv": x_adv, f"{i}/loss": loss.detach()}
        found |= {f"{i}/gradient": gradient(model, loss), f"{i}/buffers": buffers(model)}
    return found
