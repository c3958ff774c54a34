"""Fair-ARD and Fair-RSLAD against NISP-official/Fair-ARD: two epochs of each file.

Both files train as soon as they are run. So their functions, their attack and, of Fair-RSLAD, the
statements of an epoch are taken out of the files and run on the tiny network. The divergence must
be over K, and under "ard" each attack step move BatchNorm's running statistics, as there.
"""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import torch
from harness import (
    CLASSES,
    EPS,
    STEP,
    STEPS,
    Tiny,
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
from crat.defenses.fair_ard import BASES, FairARD

CODE = "NISP-official/Fair-ARD@910c8cd17b16457615ac507f36e31bc44e8fb6fa"
EPOCHS = 2
BATCHES = 2
# a small rate, for batches in which float32 flips few signs
RATE = 0.01


def inner(number: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """An image of each class, which the code's count N / K supposes: the same ten, a little moved.

    eps never takes them out of [0, 1], where the code's uniform start is not cut.
    """
    moved = batch(40 + number, torch.float64, CLASSES)[0] - 0.5
    order = torch.arange(CLASSES).roll(number)
    return (0.1 + 0.8 * batch(40, torch.float64, CLASSES)[0] + 0.04 * moved).to(dtype)[order], order


def knowing(dtype: torch.dtype = torch.float64) -> Tiny:
    """The tiny network with a head that knows the images.

    In Fair-RSLAD's code a class that no iterate has right makes all weights NaN.
    """
    model = tiny()
    with torch.no_grad():
        x, y = inner(0)
        model.bn.momentum = 1.0
        features = model.features(x)  # which also sets the running statistics
        model.bn.momentum = 0.1
        wide = torch.cat([features, torch.ones(len(x), 1, dtype=features.dtype)], 1)
        fitted = torch.linalg.lstsq(wide, 5.0 * torch.eye(CLASSES, dtype=wide.dtype)[y]).solution
        model.head.weight.copy_(fitted[:-1].T)
        model.head.bias.copy_(fitted[-1])
    return model.to(dtype)


class Loader(list):
    dataset = range(BATCHES * CLASSES)


def loaded(epoch: int) -> Loader:
    return Loader(inner(epoch * BATCHES + i) for i in range(BATCHES))


def defined(file: Path) -> ast.Module:
    """The functions and the classes of a file."""
    body = ast.parse(file.read_text()).body
    return ast.Module([n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))], [])


def ard(folder: Path) -> dict[str, Tensor]:
    found, student = {}, knowing()
    optimizer = Watching(student, torch.optim.SGD(student.parameters(), lr=RATE))
    args = SimpleNamespace(temp=30.0, alpha=1.0, beta=2.0, save_period=99)
    names = {"torch": torch, "nn": nn, "F": nn.functional, "args": args, "device": "cpu"}
    names |= {"num_classes": CLASSES, "print": lambda *_, **__: None, "KL_loss": nn.KLDivLoss()}
    names |= {"XENT_loss": nn.CrossEntropyLoss(), "basic_net": student, "teacher_net": teacher()}
    exec(compile(defined(folder / "Fair-ARD.py"), "functions", "exec"), names)
    config = {"epsilon": EPS, "num_steps": STEPS, "step_size": STEP}
    attacked, seen = names["AttackPGD"](student, config), []
    # what `net` gives: logits, images, counts
    attacked.register_forward_hook(lambda _, __, given: seen.append(given[1]))
    names["net"] = attacked
    weight = torch.ones(CLASSES)
    for epoch in range(EPOCHS):
        names["trainloader"] = loaded(epoch)
        kappa = torch.tensor(names["train"](epoch, optimizer, weight))
        weight = names["weight_assign"](kappa / BATCHES)
        found |= {
            f"ard/{epoch}/x_adv": seen[-1],
            f"ard/{epoch}/gradient": optimizer[-1],
            f"ard/{epoch}/state": weight,
        }
    return found | {"ard/buffers": buffers(student)}


def rslad(folder: Path) -> dict[str, Tensor]:
    found, student, seen = {}, knowing(), []
    optimizer = Watching(student, torch.optim.SGD(student.parameters(), lr=RATE))
    names = {"torch": torch, "nn": nn, "F": nn.functional, "print": lambda *_, **__: None}
    names |= {"Variable": torch.autograd.Variable, "args": SimpleNamespace(beta=2.0)}
    names |= {"num_classes": CLASSES, "student": student, "teacher": teacher(), "epsilon": EPS}
    file = folder / "Fair-RSLAD.py"
    exec(compile(defined(file), "functions", "exec"), names)
    attack = names["rslad_inner_loss"]

    def attacked(*given: object, **settings: object) -> tuple[Tensor, list[int]]:
        settings |= {"step_size": STEP, "epsilon": EPS, "perturb_steps": STEPS}
        hook = student.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
        logits, kappa = attack(*given, **settings)
        hook.remove()
        return logits, kappa

    loop = next(node for node in ast.parse(file.read_text()).body if isinstance(node, ast.For))
    kept = [node for node in loop.body if "torch.save" not in ast.unparse(node)]
    names |= {"rslad_inner_loss": attacked, "optimizer": optimizer, "reweight": torch.ones(CLASSES)}
    for epoch in range(EPOCHS):
        names |= {"trainloader": loaded(epoch), "epoch": epoch + 1}
        exec(compile(ast.Module(kept, []), "epoch", "exec"), names)
        found |= {
            f"rslad/{epoch}/x_adv": seen[-1],
            f"rslad/{epoch}/loss": names["loss"],
            f"rslad/{epoch}/gradient": optimizer[-1],
            f"rslad/{epoch}/state": names["reweight"],
        }
    return found | {"rslad/buffers": buffers(student)}


def theirs(folder: Path) -> dict[str, Tensor]:
    with authors(folder), double():
        return ard(folder) | rslad(folder)


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        f"{base}/{item}": value
        for base in BASES
        for item, value in distilled(base, dtype).items()
        if (base, item.split("/")[-1]) != ("ard", "loss")  # the file keeps none
    }


def distilled(base: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Two epochs of a base."""
    found, student = {}, knowing(dtype)
    start, mode = FairARD.crafting(base=base)
    mode = "moving" if base == "ard" else mode
    method = FairARD(
        PGD(EPS, STEP, STEPS, start=start, batch_norm=mode), base=base, per_output=True
    )
    method.prepare(Task(torch.ones(CLASSES), epochs=200, teacher=teacher(dtype)))
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE)
    for epoch in range(EPOCHS):
        of_epoch = []
        for i in range(BATCHES):
            x, y = inner(epoch * BATCHES + i, dtype)
            with given_noise(dtype):
                x_adv = method.craft(student, x, y, generator=torch.Generator())
            loss, stats = method.loss(student, x, x_adv, y)
            slope = gradient(student, loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            of_epoch.append(stats)
        method.epoch_end(of_epoch[0] + of_epoch[1], None)
        found |= {
            f"{epoch}/x_adv": x_adv,
            f"{epoch}/loss": loss.detach(),
            f"{epoch}/gradient": slope,
            f"{epoch}/state": method.state["weight"],
        }
    return found | {"buffers": buffers(student)}
