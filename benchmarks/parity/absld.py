"""ABSLD against zhaoshiji123/ABSLD: its loop over two epochs, with its temperatures.

resnet18_absld_cifar10.py trains as soon as it is imported. So its divergence, and of its loop the
statements before and behind the test of the network, are taken out of the file and run on the tiny
network. Our temperatures must compound, and the divergence be over K, as there.
"""

from __future__ import annotations

import ast
from pathlib import Path

import torch
from harness import (
    CLASSES,
    EPS,
    STEP,
    STEPS,
    Watching,
    authors,
    batch,
    buffers,
    double,
    given_noise,
    gradient,
    teacher,
    tiny,
)
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.absld import ABSLD

CODE = "zhaoshiji123/ABSLD@7407c3ad226a1373c8a2af13bf3f6946e100ff84"
EPOCHS = 2
BATCHES = 2
RATE = 0.1


def balanced(number: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """An image of each class: the code's sums of losses then differ as ours, the means."""
    return batch(number, dtype, CLASSES)[0], torch.arange(CLASSES).roll(number)


def parts(file: Path) -> tuple[ast.Module, ast.Module]:
    """The divergence, and an epoch of the file without its test of the network."""
    tree = ast.parse(file.read_text())
    functions: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    loop = next(n for n in tree.body if isinstance(n, ast.For) and "optimizer" in ast.unparse(n))
    epoch = [node for node in loop.body if "testloader" not in ast.unparse(node)]
    return ast.Module(functions, []), ast.Module(epoch, [])


def theirs(folder: Path) -> dict[str, Tensor]:
    found = {}
    with authors(folder), double():
        from absld_loss import absld_inner_loss

        functions, epoch = parts(folder / "resnet18_absld_cifar10.py")
        student, seen = tiny(), []

        def attacked(*given: object, **settings: object) -> Tensor:
            settings |= {"step_size": STEP, "epsilon": EPS, "perturb_steps": STEPS}
            hook = student.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
            logits = absld_inner_loss(*given, **settings)
            hook.remove()
            return logits

        optimizer = Watching(student, torch.optim.SGD(student.parameters(), lr=RATE))
        names = {
            "torch": torch,
            "F": nn.functional,
            "absld_inner_loss": attacked,
            "student": student,
            "teacher": teacher(),
            "optimizer": optimizer,
            "epsilon": EPS,
            "ce_loss": nn.CrossEntropyLoss(reduction="none"),
            "class_labels_temp_adv": torch.ones(CLASSES),
            "class_labels_temp_nat": torch.ones(CLASSES),
            "class_labels_temp_rate": 0.1,
            "temp_max": 5,
            "temp_min": 0.5,
            "print": lambda *_: None,
        }
        exec(compile(functions, "functions", "exec"), names)
        for number in range(EPOCHS):
            names |= {
                "epoch": number + 1,
                "trainloader": [balanced(number * BATCHES + i) for i in range(BATCHES)],
            }
            exec(compile(epoch, "epoch", "exec"), names)
            found |= {
                f"{number}/x_adv": seen[-1],
                f"{number}/loss": names["loss"],
                f"{number}/gradient": optimizer[-1],
                f"{number}/state/adv": names["class_labels_temp_adv"],
                f"{number}/state/nat": names["class_labels_temp_nat"],
            }
    return found | {"buffers": buffers(student)}


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found, student = {}, tiny(dtype)
    start, mode = ABSLD.crafting()
    method = ABSLD(
        PGD(EPS, STEP, STEPS, start=start, batch_norm=mode), compounds=True, per_output=True
    )
    method.prepare(Task(torch.ones(CLASSES), epochs=300, teacher=teacher(dtype)))
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE)
    for number in range(EPOCHS):
        of_epoch = []
        for i in range(BATCHES):
            x, y = balanced(number * BATCHES + i, dtype)
            with given_noise(dtype):
                x_adv = method.craft(student, x, y, generator=torch.Generator())
            loss, stats = method.loss(student, x, x_adv, y)
            slope = gradient(student, loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.after_step(student, x, y)
            of_epoch.append(stats)
        method.epoch_end(of_epoch[0] + of_epoch[1], None)
        found |= {
            f"{number}/x_adv": x_adv,
            f"{number}/loss": loss.detach(),
            f"{number}/gradient": slope,
            f"{number}/state/adv": method.state["temperature_adv"],
            f"{number}/state/nat": method.state["temperature_nat"],
        }
    return found | {"buffers": buffers(student)}
