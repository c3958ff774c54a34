"""Every method's training step against the textbook loop: its speed, and its cost over its base.

    python benchmarks/training.py                               # all methods, small_cnn
    python benchmarks/training.py cfa "cfa base=trades" --model resnet18 --batch 64
    python benchmarks/training.py cfa --model preact_resnet18 --cfa CLONE

The sides take turns, and every ratio is the median over turns, so that a machine whose speed drifts
decides none. The textbook is what a tutorial does (step.py); with a clone of PKU-ML/CFA its own AT
step (attack.py) runs beside it. training.md has recorded results.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from measuring import EPS, STEP_SIZE, at_least_one, markdown, measured, parser, peak_memory, seconds
from peers import textbook_pgd
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from crat.cli.flags import option
from crat.config import MODELS, ConfigError, ModelConfig, TrainConfig
from crat.defenses import DEFENSES, Task, make_defense
from crat.device import describe, pick_device, pick_dtype
from crat.nets import models
from crat.training import step as training
from crat.training.state import TrainState
from crat.training.step import make_optimizer

# class-wise policies and the method below each: the policy's cost is what it adds to that method
OVER = {
    "cfa": "pgd_at",
    "cfa base=trades": "trades",
    "tian2021": "pgd_at",
    "cfol": "pgd_at",
    "faal warmup=0": "pgd_at",
    "codat": "pgd_at",
    "frl": "trades",
    "wat": "trades",
    "dafa": "trades",
    "absld": "trades",
    "fair_ard": "pgd_at",
    "fair_ard base=rslad": "trades",
    "self_distillation": "at_bsl",
    "label_smoothing clean_share=0.0": "pgd_at",
}
AUTHORS = "CFA's own loop"
Step = Callable[[], object]


def images(
    batch: int, device: torch.device, shape: tuple[int, int, int] = (3, 32, 32)
) -> tuple[Tensor, Tensor]:
    """Random images (N, *shape) in [0, 1] and labels (N,) of ten classes, always the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, *shape, generator=generator).to(device)
    y = torch.randint(0, 10, (batch,), generator=generator).to(device)
    return x, y


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def textbook_step(
    model: str,
    batch: int,
    steps: int,
    device: torch.device,
    image_shape: tuple[int, int, int] = (3, 32, 32),
) -> Step:
    """A step of adversarial training as tutorials write it."""
    net = models.build(ModelConfig(model), 10, image_shape, seed=0).to(device)
    optimizer = _optimizer(net)
    x, y = images(batch, device, image_shape)
    generator = torch.Generator(device).manual_seed(0)

    def step() -> None:
        x_adv = textbook_pgd(net.train(), x, y, EPS, steps, generator)
        _update(optimizer, F.cross_entropy(net(x_adv), y))

    return step


def our_step(
    name: str,
    model: str,
    batch: int,
    steps: int,
    device: torch.device,
    compile: bool = False,
    image_shape: tuple[int, int, int] = (3, 32, 32),
) -> OurStep:
    """A step of a method of crat; the name may choose options: "cfa base=trades".

    compile: whether it tries torch.compile first, as a long training does on a GPU.
    """
    method, *chosen = name.split()
    config = TrainConfig(
        defense=method,
        eps=EPS,
        step_size=STEP_SIZE,
        steps=steps,
        options=dict(map(option, chosen)),
        lr=0.01,
        dtype=pick_dtype("auto", device),
    )
    untaught = make_defense(config, 10)
    architecture = ModelConfig(
        model,
        head=untaught.head or "linear",
        extra_outputs=untaught.extra_outputs,
    )
    net, teacher = (models.build(architecture, 10, image_shape, seed=s).to(device) for s in (0, 1))
    net = net.to(memory_format=torch.channels_last).train()
    teacher = teacher.to(memory_format=torch.channels_last).requires_grad_(False).eval()
    task = Task(torch.full((10,), 4900.0), image_shape, 200, teacher)
    defense = make_defense(config, task).to(device)
    state = TrainState(net, make_optimizer(net, config), defense)
    update = training.Step(
        state, config, device, 10, operations=training.WORTH_COMPILING if compile else 0.0
    )
    update.begin(seed=0, scale=1.0)
    x, y = images(batch, device, image_shape)

    return OurStep(update, x, y)


@dataclass
class OurStep:
    """A step of crat on one batch, ready to be called."""

    update: training.Step
    x: Tensor
    y: Tensor

    def __call__(self) -> None:
        """One update."""
        self.update(self.x, self.y, self.update.config.lr)

    @property
    def way(self) -> str:
        """How it is done, such as "recorded, folded"."""
        return self.update.done_by


def authors_step(clone: Path, batch: int, steps: int, device: torch.device) -> Step:
    """The AT step of CFA's own code (its PreActResNet-18, float32), from a clone of PKU-ML/CFA."""
    if not (clone / "attack.py").is_file():
        raise ConfigError(f"{clone} is no clone of PKU-ML/CFA: it has no attack.py")
    with _importable(clone):
        import attack
        import model as architectures
    net = architectures.PreActResNet18().to(device)
    optimizer = _optimizer(net)
    x, y = images(batch, device)

    def step() -> None:
        net.train()
        _update(optimizer, attack.pgd_loss(net, x, y, EPS, 6.0, STEP_SIZE, steps)[0])

    return step


@contextmanager
def _importable(clone: Path) -> Iterator[None]:
    """Within, the clone's modules can be imported; their normalisation is on the images' device."""
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2471, 0.2435, 0.2616)
    utils = types.ModuleType("utils")

    def normalize_cifar(x: Tensor) -> Tensor:
        centre, deviation = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (mean, std))
        return (x - centre) / deviation

    utils.normalize_cifar = normalize_cifar
    sys.modules["utils"] = utils
    sys.path.insert(0, str(clone))
    try:
        yield
    finally:
        sys.path.remove(str(clone))
        for name in ("utils", "attack", "model"):
            sys.modules.pop(name, None)


class Flops(TorchDispatchMode):
    """Counts floating point operations of matrix products and convolutions by torch's formulas.

    torch's own FlopCounterMode follows modules by hooks, which torch.autograd.grad towards an image
    does not allow.
    """

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            formula = flop_registry[func._overloadpacket]
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def matrix_rate(device: torch.device, dtype: str, size: int | None = None, turns: int = 5) -> float:
    """Measured TFLOP/s of a square matrix product, the ceiling of everything else.

    The numbers are random: a GPU multiplies ones at another clock. size: None is 8192 on a GPU,
    1024 on a CPU.
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, device=device, generator=generator).to(getattr(torch, dtype))
    for _ in range(2):  # warm-up
        a @ a
    return 2 * size**3 / min(seconds(lambda: a @ a, device) for _ in range(turns)) / 1e12


def chosen_methods(names: Sequence[str] | None) -> list[str]:
    """The methods to time (all where none is named), each base before its policies."""
    asked = list(names or [*DEFENSES, *(name for name in OVER if " " in name)])
    bases = [OVER[name] for name in asked if name in OVER]
    return list(dict.fromkeys([*bases, *asked]))


def run(
    names: Sequence[str] | None = None,
    model: str = "small_cnn",
    batch: int = 128,
    steps: int = 10,
    turns: int = 5,
    compile: bool = False,
    authors: Path | None = None,
) -> pd.DataFrame:
    """One row for each method.

    Columns: images a second, ratio to the textbook, cost over its base in percent, TFLOP/s, their
    share of the measured matrix rate, MiB that a step adds at its peak.
    """
    at_least_one(batch=batch, steps=steps, turns=turns)
    device = pick_device()
    sides = {"textbook": textbook_step(model, batch, steps, device)}
    for name in chosen_methods(names):
        sides[name] = our_step(name, model, batch, steps, device, compile)
    if authors:
        sides[AUTHORS] = authors_step(authors, batch, steps, device)
    memory: dict[str, float] = {}
    flops: dict[str, int] = {}
    for name, side in sides.items():  # the warm-up, too
        memory[name] = peak_memory(side, device)
        with Flops() as counter:
            side()
        flops[name] = counter.total
    turn = [{name: seconds(side, device) for name, side in sides.items()} for _ in range(turns)]
    rate = matrix_rate(device, pick_dtype("auto", device))
    rows = []
    for name in sides:
        row = _row(name, turn, batch)
        tflops = flops[name] / median(t[name] for t in turn) / 1e12
        row["TFLOP/s"] = round(tflops, 3)
        row["of matrix rate %"] = round(100 * tflops / rate, 1)
        row["peak MiB"] = round(memory[name], 1)
        rows.append(row)
    return pd.DataFrame(rows)


def _row(name: str, turns: Sequence[dict[str, float]], batch: int) -> dict[str, Any]:
    """The rate of a side, its ratio to the textbook, and what it adds to its base."""
    base = OVER.get(name, "")
    over = 100 * (median(t[name] / t[base] for t in turns) - 1) if base else float("nan")
    return {
        "method": name,
        "images/s": round(batch / median(t[name] for t in turns), 1),
        "x textbook": round(median(t["textbook"] / t[name] for t in turns), 2),
        "over base %": round(over, 1),
        "base": base,
    }


def main(
    names: Sequence[str],
    model: str,
    batch: int,
    steps: int,
    authors: Path | None = None,
    out: Path | None = None,
) -> None:
    """Prints the table below its machine and versions; writes both to `out` as markdown."""
    device = pick_device()
    dtype = pick_dtype("auto", device)
    machine = f"{describe(device)}, torch {torch.__version__}"
    head = f"{machine}, {model}, batch {batch}, PGD-{steps}, crat in {dtype}"
    print(head)
    table = run(names, model, batch, steps, authors=authors)
    print(table.to_string(index=False, na_rep=""))
    if out:
        out.write_text(f"{head}\n\n{markdown(table)}\n")


if __name__ == "__main__":
    command = parser(__doc__)
    command.add_argument(
        "methods",
        nargs="*",
        metavar="METHOD",
        help='such as cfa or "cfa base=trades"; all where none is named',
    )
    command.add_argument("--model", default="small_cnn", help=", ".join(MODELS))
    command.add_argument("--batch", type=int, default=128, help="images in the batch")
    command.add_argument("--steps", type=int, default=10, help="steps of PGD")
    command.add_argument("--cfa", type=Path, metavar="FOLDER", help="a clone of PKU-ML/CFA")
    command.add_argument("--out", type=Path, metavar="FILE", help="write the table as markdown")
    asked = command.parse_args()
    settings = (asked.methods, asked.model, asked.batch, asked.steps, asked.cfa, asked.out)
    measured(command, lambda: main(*settings))
