"""Every method's training step against the textbook loop, in one run: images a second, cost over its base, memory.

The sides take turns, and every ratio is the median over turns, so that a machine whose speed drifts decides none. The
textbook is what a tutorial does (crat.bench); with a clone of PKU-ML/CFA its own AT step (attack.py) runs beside it.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from crat.bench import EPS, STEP, seconds
from crat.config import ConfigError, ModelConfig, TrainConfig
from crat.defenses import DEFENSES, Task, make_defense
from crat.device import autocast, compiled, describe, pick_device, pick_dtype
from crat.flags import option
from crat.nets import models
from crat.peers import peak_memory, textbook_pgd

# class-wise policies and what they are a policy on: their cost over it is theirs
OVER = {
    "cfa": "pgd_at", "cfa base=trades": "trades", "tian2021": "pgd_at", "cfol": "pgd_at", "faal warmup=0": "pgd_at",
    "codat": "pgd_at", "frl": "trades", "wat": "trades", "dafa": "trades",
}  # fmt: skip
Step = Callable[[], object]


def steps(
    names: Sequence[str], model: str, batch: int, n_steps: int, device: torch.device, compile: bool = False
) -> dict[str, Step]:
    """A training step of each method ("cfa base=trades" chooses an option), on the same images."""
    return {"textbook": _textbook(model, batch, n_steps, device)} | {
        name: _ours(name, model, batch, n_steps, device, compile) for name in names
    }


def _images(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, 32, 32, generator=generator).to(device)
    return x, torch.randint(0, 10, (batch,), generator=generator).to(device)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _textbook(model: str, batch: int, n_steps: int, device: torch.device) -> Step:
    net = models.build(ModelConfig(model), 10, seed=0).to(device)
    optimizer, (x, y) = _optimizer(net), _images(batch, device)
    generator = torch.Generator(device).manual_seed(0)

    def step() -> None:
        x_adv = textbook_pgd(net.train(), x, y, EPS, n_steps, generator)
        _update(optimizer, F.cross_entropy(net(x_adv), y))

    return step


def _ours(name: str, model: str, batch: int, n_steps: int, device: torch.device, compile: bool) -> Step:
    method, *chosen = name.split()
    options = dict(map(option, chosen))
    config = TrainConfig(defense=method, eps=EPS, step_size=STEP, steps=n_steps, options=options)  # type: ignore[arg-type]
    defense = make_defense(config, Task(torch.full((10,), 4900.0), (3, 32, 32), 200)).to(device)
    head = defense.head or "linear"
    net = models.build(ModelConfig(model, head=head, extra_outputs=defense.extra_outputs), 10, seed=0).to(device)
    net = net.to(memory_format=torch.channels_last)
    network = compiled(net) if compile else net
    optimizer, (x, y) = _optimizer(net), _images(batch, device)
    x, dtype = x.contiguous(memory_format=torch.channels_last), pick_dtype("auto", device)
    generator = torch.Generator(device).manual_seed(0)

    def step() -> None:
        network.train()
        with autocast(device, dtype):
            x_adv = defense.craft(network, x, y, generator=generator)
            loss, _ = defense.loss(network, x, x_adv, y)
        _update(optimizer, loss)
        defense.after_step(network, x, y)

    return step


def authors_step(clone: Path, batch: int, n_steps: int, device: torch.device) -> Step:
    """The AT step of CFA's own code (its PreActResNet-18, float32), from a clone of PKU-ML/CFA."""
    if not (clone / "attack.py").is_file():
        raise ConfigError(f"{clone} is no clone of PKU-ML/CFA: it has no attack.py")
    with _importable(clone):
        import attack  # type: ignore[import-not-found]
        import model as architectures  # type: ignore[import-not-found]
    net = architectures.PreActResNet18().to(device)
    optimizer, (x, y) = _optimizer(net), _images(batch, device)

    def step() -> None:
        net.train()
        _update(optimizer, attack.pgd_loss(net, x, y, EPS, 6.0, STEP, n_steps)[0])

    return step


@contextmanager
def _importable(clone: Path):
    """Within, the clone's modules can be imported, its normalisation on the images' own device."""
    std = types.SimpleNamespace(mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))
    utils = types.ModuleType("utils")

    def normalize_cifar(x: Tensor) -> Tensor:
        mean, deviation = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (std.mean, std.std))
        return (x - mean) / deviation

    utils.normalize_cifar = normalize_cifar  # type: ignore[attr-defined]
    sys.modules["utils"] = utils
    sys.path.insert(0, str(clone))
    try:
        yield
    finally:
        sys.path.remove(str(clone))
        for name in ("utils", "attack", "model"):
            sys.modules.pop(name, None)


class _Flops(TorchDispatchMode):
    """Counts the floating point operations of matrix products and convolutions, torch's own formulas.

    Its FlopCounterMode follows modules by hooks, which torch.autograd.grad towards an image does not allow.
    """

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def matrix_rate(device: torch.device, dtype: str, size: int = 4096, turns: int = 5) -> float:
    """Measured TFLOP/s of a square matrix product, the ceiling of everything else."""
    size = size if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))
    a @ a
    return 2 * size**3 / min(seconds(lambda: a @ a, device) for _ in range(turns)) / 1e12


def run(
    names: Sequence[str] | None = None,
    model: str = "small_cnn",
    batch: int = 128,
    n_steps: int = 10,
    turns: int = 5,
    compile: bool = False,
    authors: Path | None = None,
) -> pd.DataFrame:
    """A row a method: images a second, ratio to the textbook, cost over its base in percent, TFLOP/s and their share of
    the measured matrix rate, MiB that a step adds at its peak."""
    device = pick_device()
    asked = list(names or [*DEFENSES, *(n for n in OVER if " " in n)])
    wanted = list(dict.fromkeys([*(OVER[n] for n in asked if n in OVER), *asked]))
    sides = steps(wanted, model, batch, n_steps, device, compile)
    if authors:
        sides["CFA's own loop"] = authors_step(authors, batch, n_steps, device)
    memory, work = {}, {}
    for name, side in sides.items():  # the warm-up
        memory[name] = peak_memory(side, device)
        with _Flops() as counter:
            side()
        work[name] = counter.total
    turn = [{name: seconds(side, device) for name, side in sides.items()} for _ in range(turns)]
    rate = matrix_rate(device, pick_dtype("auto", device))
    rows = []
    for name in sides:
        took = median(t[name] for t in turn)
        base = OVER.get(name)
        rows.append({
            "method": name,
            "images/s": round(batch / took, 1),
            "x textbook": round(median(t["textbook"] / t[name] for t in turn), 2),
            "over base %": round(100 * (median(t[name] / t[base] for t in turn) - 1), 1) if base else float("nan"),
            "base": base or "",
            "TFLOP/s": round(work[name] / took / 1e12, 3),
            "of matrix rate %": round(100 * work[name] / took / 1e12 / rate, 1),
            "peak MiB": round(memory[name], 1),
        })  # fmt: skip
    return pd.DataFrame(rows)


def main(names: Sequence[str], model: str, batch: int, n_steps: int, authors: Path | None, out: Path | None) -> None:
    """Prints the table with its machine and versions, and writes it as markdown where asked."""
    if batch < 1:
        raise ConfigError(f"batch is at least 1, not {batch}")
    device = pick_device()
    dtype = pick_dtype("auto", device)
    head = f"{describe(device)}, torch {torch.__version__}, {model}, batch {batch}, PGD-{n_steps}, crat in {dtype}"
    print(head)
    table = run(names, model, batch, n_steps, authors=authors)
    print(table.to_string(index=False, na_rep=""))
    if out:
        header, rows = " | ".join(table.columns), table.fillna("").astype(str).values.tolist()
        lines = [f"| {header} |", "|" + "---|" * len(table.columns), *(f"| {' | '.join(row)} |" for row in rows)]
        out.write_text(f"{head}\n\n" + "\n".join(lines) + "\n")
