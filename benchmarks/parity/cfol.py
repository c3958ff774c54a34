"""CFOL against LIONS-EPFL/class-focused-online-learning-code: attack, loss, sampler.

The sampler moves after every batch, ours after every epoch: the scripted epochs have one batch. The
training loop itself needs the pytorch_lightning of its day: of model.py only the loss is taken, and
torchattacks' base class is a stand-in.
"""

from __future__ import annotations

import ast
import importlib.util
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

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
)
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.cfol import CFOL as Ours

CODE = "LIONS-EPFL/class-focused-online-learning-code@98abd595fcba38271d7eb2a08846377d980997d8"
ETA, GAMMA = 0.03, 0.5


class Attack:
    """The base class that cfol/pgd.py takes from torchattacks 2.x: -1 makes the loss a cost."""

    _targeted, device = -1, "cpu"

    def __init__(self, name: str, model: nn.Module):
        self.model = model

    def _transform_label(self, images: Tensor, labels: Tensor) -> Tensor:
        return labels


class InMemoryDataset:
    num_classes, class_indices = CLASSES, [[0]] * CLASSES

    def __len__(self) -> int:
        return CLASSES


def loss_of_model(file: Path):
    """Model.loss, without the rest of the file."""
    model = next(
        node for node in ast.parse(file.read_text()).body if getattr(node, "name", "") == "Model"
    )
    wanted = [node for node in model.body if getattr(node, "name", "") == "loss"]
    names = {"F": nn.functional, "Stage": Enum("Stage", "train val test")}
    exec(compile(ast.Module(wanted, []), "loss", "exec"), names)
    asked = SimpleNamespace(config=SimpleNamespace(loss="CE", use_te=False))
    return lambda logits, y, reduction: names["loss"](asked, None, logits, y, reduction=reduction)


def loaded(file: Path):
    """A module by its path: this file has the name of its package."""
    spec = importlib.util.spec_from_file_location(f"theirs_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def theirs(folder: Path) -> dict[str, Tensor]:
    found = {}
    stubs = {"torchattacks": None, "torchattacks.attack": {"Attack": Attack}}
    with authors(folder, **stubs, **{"cfol.data_module": {"InMemoryDataset": InMemoryDataset}}):
        pgd = loaded(folder / "cfol" / "pgd.py")
        sampler = loaded(folder / "cfol" / "class_sampler.py").ClassSampler(
            InMemoryDataset(), gamma=GAMMA
        )
        loss_of = loss_of_model(folder / "cfol" / "model.py")
        model = tiny()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attack = pgd.PGD(
            model, lambda logits, y: loss_of(logits, y, "mean"), EPS, STEP, STEPS, random_start=True
        )
        for i in range(3):
            x, y = batch(i)
            model.eval()
            x_adv = attack.forward(x, y)
            model.train()
            logits = model(x_adv)
            loss = loss_of(logits, y, "none").mean()
            found |= {
                f"{i}/x_adv": x_adv,
                f"{i}/loss": loss,
                f"{i}/gradient": gradient(model, loss),
            }
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sampler.batch_update(y, ETA * (logits.argmax(dim=-1) != y))
        found |= {
            "state/score": sampler.w,
            "state/probability": sampler.p,
            "buffers": buffers(model),
        }
    return found


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    model, attack = tiny(dtype), PGD(EPS, STEP, STEPS, start=Ours.start, batch_norm=Ours.batch_norm)
    cfol = Ours(attack, GAMMA, ETA)
    cfol.prepare(Task(torch.full((CLASSES,), BATCH)))
    # 1 / K in float32 is not what it is in float64
    cfol.load_state_dict({"probability": torch.full((CLASSES,), 1 / CLASSES, dtype=dtype)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(3):
        x, y = batch(i, dtype)
        with given_noise(dtype):
            x_adv = cfol.craft(model, x, y, generator=torch.Generator())
        loss, stats = cfol.loss(model, x, x_adv, y)
        found |= {
            f"{i}/x_adv": x_adv,
            f"{i}/loss": loss.detach(),
            f"{i}/gradient": gradient(model, loss),
        }
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cfol.epoch_end(stats, None)
    found |= {f"state/{name}": value for name, value in cfol.class_values().items()}
    return found | {"buffers": buffers(model)}
