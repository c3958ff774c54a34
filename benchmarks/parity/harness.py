"""What every parity case shares: a tiny network, the authors' code, the comparison.

A case is a module of this folder with `theirs(folder)` and `ours(dtype)`, each a dict of tensors
under the same names:
    x_adv           the attack's last iterate from a given start (iterates, if the code keeps them)
    loss, gradient  the loss on given images and its gradient, all parameters in one vector
    buffers         BatchNorm's running statistics after the step
    state/...       what is class-wise, after a scripted epoch of three batches

`python benchmarks/parity/record.py CASE --theirs FOLDER` runs both in float64 and writes CASE.json,
to which tests/defenses/test_parity.py holds `ours`. The authors' code is read from a folder of
yours, at CODE's commit; none is here.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, SimpleNamespace
from unittest import mock

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
CLASSES, BATCH = 10, 12  # the code of most papers knows ten classes of 3 x 32 x 32 images only
EPS = 8 / 255
STEP = 2 / 255
STEPS = 4
# numbers of a large tensor in a fixture, evenly spaced, beside its sum and its length
PROBES = 64


class Tiny(nn.Module):
    """Convolution, BatchNorm, a smooth nonlinearity, a linear head: 300 parameters, no kink."""

    def __init__(self, outputs: int = CLASSES):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 8, 8, bias=False), nn.BatchNorm2d(3)
        self.head = nn.Linear(12, outputs)

    def features(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(torch.tanh(self.bn(self.conv(x))), 2).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def tiny(dtype: torch.dtype = torch.float64, outputs: int = CLASSES) -> Tiny:
    """The same network in every call, in train mode; large weights, so that the attack matters."""
    model = Tiny(outputs).to(torch.float64)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=generator, dtype=torch.float64)
                * (0.3 if p.ndim > 1 else 0.1)
            )
        model.bn.weight.add_(1.0)
        model.bn.running_mean.copy_(torch.randn(3, generator=generator, dtype=torch.float64) * 0.1)
    return model.to(dtype).train()


def teacher(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Another network than `tiny`, in eval mode: a distillation's."""
    model = tiny(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.flip(0) * 1.5)
    return model.requires_grad_(False).eval()


def batch(
    number: int = 0, dtype: torch.dtype = torch.float64, size: int = BATCH
) -> tuple[Tensor, Tensor]:
    """Batch 0, 1, 2 ... of a scripted epoch: images (B, 3, 32, 32) in [0, 1] and labels."""
    generator = torch.Generator().manual_seed(100 + number)
    x = torch.rand(size, 3, 32, 32, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, CLASSES, (size,), generator=generator)


def uniform_noise(dtype: torch.dtype = torch.float64, seed: int = 5) -> Tensor:
    """Noise in [0, 1), (B, 3, 32, 32), for the uniform start x + EPS (2 noise - 1) in the box."""
    return torch.rand(
        BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def normal_noise(dtype: torch.dtype = torch.float64, seed: int = 5) -> Tensor:
    """Standard normal noise, (B, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(BATCH, 3 * 32 * 32, generator=generator, dtype=torch.float64)
        .view(BATCH, 3, 32, 32)
        .to(dtype)
    )


@contextmanager
def given_noise(dtype: torch.dtype = torch.float64) -> Iterator[None]:
    """Within, crat's attacks draw `uniform_noise` and `normal_noise`, the same in every call."""

    def uniform(shape: tuple[int, ...], x: Tensor, generator: object) -> Tensor:
        return uniform_noise(dtype)[: shape[0]]

    def normal(shape: tuple[int, ...], x: Tensor, generator: object) -> Tensor:
        return normal_noise(dtype)[: shape[0]]

    users = [m for name, m in sys.modules.items() if name.startswith("crat.")]
    drawn = {"uniform": uniform, "normal": normal}
    with _all(
        mock.patch.object(m, name, f)
        for name, f in drawn.items()
        for m in users
        if hasattr(m, name)
    ):
        yield


@contextmanager
def _all(contexts: Iterator) -> Iterator[None]:
    entered = list(contexts)
    for c in entered:
        c.__enter__()
    try:
        yield
    finally:
        for c in reversed(entered):
            c.__exit__(None, None, None)


@contextmanager
def authors(folder: Path, **stubs: object) -> Iterator[None]:
    """Within, the authors' modules can be imported and run.

    Their folder comes first, `.cuda()` stays on the CPU, new tensors are float64, and random starts
    of images are this file's noise (torch.randn, randn_like, rand_like and uniform_; patch others,
    such as numpy's, in the case). stubs: modules that nobody needs, by name -> None or a dict of
    their content.
    """
    before = set(sys.modules)
    made = {name: types.ModuleType(name) for name in stubs}
    for name, content in stubs.items():
        vars(made[name]).update(content or {})
    patches = [
        mock.patch.object(torch.Tensor, "cuda", lambda self, *a, **k: self),
        mock.patch.object(nn.Module, "cuda", lambda self, *a, **k: self),
        mock.patch.object(torch, "randn", _image_noise(torch.randn, normal_noise)),
        mock.patch.object(torch, "randn_like", lambda x, *a, **k: normal_noise()[: len(x)]),
        mock.patch.object(torch, "rand_like", lambda x, *a, **k: uniform_noise()[: len(x)]),
        mock.patch.object(torch.Tensor, "uniform_", _uniform_in_place),
        mock.patch.object(sys, "path", [str(folder), *sys.path]),
        mock.patch.object(sys, "argv", ["authors"]),
    ]
    sys.modules.update(made)
    torch.set_default_dtype(torch.float64)
    try:
        with _all(iter(patches)):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        for name in set(sys.modules) - before:  # two papers may both have a utils.py
            if name in made or str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def _image_noise(draw: Callable[..., Tensor], noise: Callable[[], Tensor]) -> Callable[..., Tensor]:
    def drawn(*shape, **settings) -> Tensor:
        size = tuple(shape[0]) if isinstance(shape[0], (tuple, list)) else shape
        return noise()[: size[0]] if size[1:] == (3, 32, 32) else draw(*shape, **settings)

    return drawn


_uniform = torch.Tensor.uniform_


def _uniform_in_place(x: Tensor, low: float = 0.0, high: float = 1.0, **settings) -> Tensor:
    if x.shape[1:] == (3, 32, 32):
        return x.copy_(low + (high - low) * uniform_noise()[: len(x)])
    return _uniform(x, low, high, **settings)


def statements(file: Path, first: str, last: str) -> CodeType:
    """The statements of a loop of a script that trains as soon as it runs.

    first, last: the beginnings of the statements between which they stand, both included.
    """
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.For):
            continue
        lines = [ast.unparse(statement) for statement in node.body]
        begins = [i for i, line in enumerate(lines) if line.startswith(first)]
        ends = [i for i, line in enumerate(lines) if line.startswith(last)]
        if begins and ends:
            chosen = node.body[begins[0] : ends[0] + 1]
            return compile(ast.Module(chosen, []), str(file), "exec")
    raise SystemExit(f"{file} has no loop from {first!r} to {last!r}")


@contextmanager
def noise_by_channel() -> Iterator[None]:
    """Within, `uniform_` of one channel of a batch (B, 32, 32) is this file's noise in its turn."""
    channel = itertools.cycle(range(3))

    def drawn(x: Tensor, low: float, high: float) -> Tensor:
        return x.copy_(low + (high - low) * uniform_noise()[: len(x), next(channel)])

    with mock.patch.object(torch.Tensor, "uniform_", drawn):
        yield


# apex, which scales losses in half precision, where there is nothing to scale
AMP = SimpleNamespace(scale_loss=lambda loss, optimizer: contextlib.nullcontext(loss))


@contextmanager
def double() -> Iterator[None]:
    """Within, what the authors' code makes float32 is float64."""
    with (
        mock.patch.object(torch, "float", torch.float64),
        mock.patch.object(torch.Tensor, "float", lambda self: self.double()),
    ):
        yield


class Watching(list):
    """An optimizer of the authors' code, and a list of the gradients that it was given."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.SGD):
        super().__init__()
        self.model = model
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.zero_grad = optimizer.zero_grad

    def step(self) -> None:
        self.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).clone())
        self.optimizer.step()


def made(model: nn.Module, x_adv: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """A step's images, loss and gradient, and the running statistics behind it."""
    return {
        "x_adv": x_adv,
        "loss": loss,
        "gradient": gradient(model, loss),
        "buffers": buffers(model),
    }


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """d loss / d parameters, all in one vector (0 where a parameter has no part in it)."""
    found = torch.autograd.grad(
        loss, list(model.parameters()), allow_unused=True, retain_graph=True
    )
    pairs = zip(found, model.parameters(), strict=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]
    ).detach()


def buffers(model: nn.Module) -> Tensor:
    """BatchNorm's running means and variances in one vector."""
    return torch.cat(
        [b.flatten() for n, b in model.named_buffers() if b.is_floating_point()]
    ).clone()


def digest(value: Tensor) -> list[float]:
    """A small tensor whole; of a large one its sum, its length and evenly spaced numbers."""
    flat = value.detach().double().flatten()
    if len(flat) <= 10 * PROBES:
        return flat.tolist()
    places = torch.linspace(0, len(flat) - 1, PROBES).long()
    return [flat.sum().item(), flat.norm().item(), *flat[places].tolist()]


def difference(a: Tensor | list[float], b: Tensor | list[float]) -> float:
    """Largest absolute difference over the largest absolute value of the two."""
    a, b = (torch.as_tensor(v, dtype=torch.float64).flatten() for v in (a, b))
    if a.shape != b.shape:
        raise ValueError(f"{tuple(a.shape)} numbers against {tuple(b.shape)}")
    return (
        (a - b).abs().max() / torch.maximum(a.abs().max(), b.abs().max()).clamp_min(1e-300)
    ).item()


def read(case: str) -> dict:
    return json.loads((HERE / f"{case}.json").read_text())
