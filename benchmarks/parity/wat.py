"""WAT against boqili/WAT: its training step, its validation and its update of the weights.

worst_class_adversarial_train.py trains as soon as it is imported, so its functions and the
statements that its loop runs for `--alg wat` are taken out of the file and run on tiny images.
"""

from __future__ import annotations

import ast
import datetime
from pathlib import Path
from types import SimpleNamespace

import torch
from harness import CLASSES, EPS, STEP, STEPS, authors, batch, buffers, given_noise, gradient, tiny
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.wat import WAT as Ours

CODE = "boqili/WAT@62d1184f9b88909c9e782ab8234128324235ac84"
BETA = 6.0
ETA = 0.1
EPOCHS = 2
# a small rate, and batches in which float32 flips few signs
RATE = 0.01
BATCHES = 1
FIRST = 70


class Loader(list):
    dataset = range(2 * CLASSES)


def validation(dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Two full batches of one image a class: the code then divides by the class's count."""
    return [(batch(FIRST + i, dtype, CLASSES)[0], torch.arange(CLASSES)) for i in (7, 8)]


def parts(file: Path) -> tuple[ast.Module, ast.Module]:
    """The functions of the file, and what its loop does after an epoch of WAT."""
    tree = ast.parse(file.read_text())
    functions: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    loop = next(node for node in tree.body if isinstance(node, ast.For))
    asked = next(
        node for node in loop.body if isinstance(node, ast.If) and "'wat'" in ast.unparse(node.test)
    )
    return ast.Module(functions, []), ast.Module(asked.body, [])


def theirs(folder: Path) -> dict[str, Tensor]:
    found = {}
    with authors(folder):
        import attack_generator as attack

        functions, update = parts(folder / "worst_class_adversarial_train.py")
        model = tiny()
        args = SimpleNamespace(
            epsilon=EPS,
            step_size=STEP,
            num_steps=STEPS,
            beta=BETA,
            eta=ETA,
            alg="wat",
            class_num=CLASSES,
            batch_size=CLASSES,
            out_dir="",
        )
        names = {
            "torch": torch,
            "nn": nn,
            "F": nn.functional,
            "datetime": datetime,
            "attack": attack,
            "args": args,
        }
        names |= {"iter_num": 0, "model": model, "valid_loader": Loader(validation())}
        names |= {f"{kind}_class_weights": torch.ones(CLASSES + 1) for kind in ("nat", "bndy")}
        names |= {
            f"wat_valid_{kind}cost": torch.zeros(EPOCHS, CLASSES + 1)
            for kind in ("", "nat_", "bndy_")
        }
        exec(compile(functions, "functions", "exec"), names)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for epoch in range(EPOCHS):
            for i in range(BATCHES):
                x, y = batch(FIRST + i)
                if epoch == 1 and i == 0:
                    found["x_adv"] = attack.trades(
                        model, x, y, EPS, STEP, STEPS, "trades", "trades", True
                    )
                loss = names["train"](model, [(x, y)], optimizer, epoch)[1]
                if epoch == 1 and i == 0:
                    found["loss"] = torch.tensor(loss)
                    found["gradient"] = torch.cat(
                        [p.grad.flatten() for p in model.parameters()]
                    ).clone()
            names["epoch"] = epoch
            exec(compile(update, "update", "exec"), names)
        weights = names["nat_class_weights"]
        found |= {
            "state/weight": weights[:-1],
            "state/plain_weight": weights[-1],
            "buffers": buffers(model),
        }
    return found


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    model = tiny(dtype)
    wat = Ours(PGD(EPS, STEP, STEPS, start=Ours.start, batch_norm=Ours.batch_norm), BETA, ETA)
    wat.prepare(Task(torch.ones(CLASSES), epochs=EPOCHS))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def crafted(x: Tensor, y: Tensor) -> Tensor:
        with given_noise(dtype):
            return wat.craft(model, x, y, generator=torch.Generator())

    for epoch in range(EPOCHS):
        model.train()
        for i in range(BATCHES):
            x, y = batch(FIRST + i, dtype)
            x_adv = crafted(x, y)
            loss, stats = wat.loss(model, x, x_adv, y)
            if epoch == 1 and i == 0:
                found |= {"x_adv": x_adv, "loss": loss.detach(), "gradient": gradient(model, loss)}
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        first, second = (wat.loss(model, x, crafted(x, y), y)[1] for x, y in validation(dtype))
        wat.epoch_end(stats, first + second)
    found |= {"state/weight": wat.state["weight"], "state/plain_weight": wat.state["plain_weight"]}
    return found | {"buffers": buffers(model)}
