"""The sides of a comparison: our attacks, the textbook loop, and the libraries that are installed.

    python benchmarks/peers.py      # which attack libraries can be imported here

A side is an attack that is ready to run on images and labels, with the models whose passes are its
work. Libraries run as their users run them: float32, eval mode. A library is imported when it is
asked for; none is needed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measuring import parser
from torch import Tensor, nn

from crat.attacks.autoattack import AutoAttack
from crat.attacks.door import as_images
from crat.attacks.gradient import PGD
from crat.attacks.noise import PerImage
from crat.attacks.search import searcher
from crat.names import one_of


class Counted(nn.Module):
    """A model that counts the images it is asked about."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.images = 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K)."""
        self.images += len(x)
        return self.net(x)


class Side(NamedTuple):
    """craft takes images (N, C, H, W) in [0, 1] and labels (N,) and gives adversarial images."""

    craft: Callable[[Tensor, Tensor], Tensor]
    counted: tuple[Counted, ...]

    @property
    def images(self) -> int:
        """How many images its models have been asked about."""
        return sum(model.images for model in self.counted)


# from the model, the images, eps, and the steps of PGD or the batch size of AutoAttack
Make = Callable[[nn.Module, Tensor, float, int], Side]


def our_pgd(dtype: str) -> Make:
    """PGD of crat, searching in a precision; the model is copied once, as in an evaluation."""

    def make(model: nn.Module, x: Tensor, eps: float, steps: int) -> Side:
        search = Counted(searcher(model, as_images(x[:16]), dtype))
        attack = PGD(eps, eps / 4, steps)
        return Side(lambda x, y: attack(search, as_images(x), y, generator=_noise(0, x)), (search,))

    return make


def our_autoattack(dtype: str) -> Make:
    """AutoAttack of crat, searching in a precision, judging in float32."""

    def make(model: nn.Module, x: Tensor, eps: float, batch: int) -> Side:
        search = Counted(searcher(model, as_images(x[:16]), dtype))
        judge = Counted(model)
        attack = AutoAttack(eps)

        def craft(x: Tensor, y: Tensor) -> Tensor:
            parts = []
            for i, (images, labels) in enumerate(_batches(as_images(x), y, batch)):
                noise = _noise(i * batch, images)
                parts.append(attack(search, images, labels, generator=noise, judge=judge).x_adv)
            return torch.cat(parts)

        return Side(craft, (search, judge))

    return make


def _noise(first: int, x: Tensor) -> PerImage:
    return PerImage(0, torch.arange(first, first + len(x), device=x.device))


def _batches(x: Tensor, y: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(batch), y.split(batch), strict=True)


def textbook_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """PGD as tutorials write it: float32, `loss.backward()` through the parameters in every step.

    Steps of eps / 4 from a uniform start.
    """
    x_adv = (x + torch.empty_like(x).uniform_(-eps, eps, generator=generator)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        F.cross_entropy(model(x_adv), y).backward()
        assert x_adv.grad is not None
        x_adv = x_adv.detach() + eps / 4 * x_adv.grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return x_adv.detach()


def textbook(model: nn.Module, x: Tensor, eps: float, steps: int) -> Side:
    """The textbook loop as a side."""
    seen = Counted(model)
    generator = torch.Generator(x.device).manual_seed(0)
    return Side(lambda x, y: textbook_pgd(seen, x, y, eps, steps, generator), (seen,))


def _torchattacks(model: nn.Module, x: Tensor, eps: float, steps: int) -> Side:
    import torchattacks

    seen = Counted(model)
    return Side(torchattacks.PGD(seen, eps, eps / 4, steps), (seen,))


def _foolbox(model: nn.Module, x: Tensor, eps: float, steps: int) -> Side:
    import foolbox

    seen = Counted(model)
    wrapped = foolbox.PyTorchModel(seen, bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=steps)

    def craft(x: Tensor, y: Tensor) -> Tensor:
        return attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=eps)

    return Side(craft, (seen,))


def _art(model: nn.Module, x: Tensor, eps: float, steps: int) -> Side:
    """The class that runs on tensors, from one random start; it takes and gives numpy."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    seen = Counted(model)
    wrapped = PyTorchClassifier(
        seen,
        nn.CrossEntropyLoss(),
        tuple(x.shape[1:]),
        _n_classes(model, x),
        clip_values=(0, 1),
        device_type="gpu" if x.is_cuda else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        wrapped,
        eps=eps,
        eps_step=eps / 4,
        max_iter=steps,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )

    def craft(x: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

    return Side(craft, (seen,))


def _pyautoattack(model: nn.Module, x: Tensor, eps: float, batch: int) -> Side:
    import pyautoattack

    seen = Counted(model)
    battery = pyautoattack.AutoAttack(seen, eps=eps, seed=0, device=x.device)
    return Side(lambda x, y: battery.run_standard_evaluation(x, y, batch_size=batch)[0], (seen,))


def _torchattacks_battery(model: nn.Module, x: Tensor, eps: float, batch: int) -> Side:
    """The four parts of the standard version: its own AutoAttack takes 10 steps, not 100."""
    import torchattacks

    seen = Counted(model)
    n_classes = _n_classes(model, x)
    battery = torchattacks.MultiAttack(
        [
            torchattacks.APGD(seen, eps=eps, steps=100),
            torchattacks.APGDT(seen, eps=eps, steps=100, n_classes=n_classes),
            torchattacks.FAB(seen, eps=eps, steps=100, multi_targeted=True, n_classes=n_classes),
            torchattacks.Square(seen, eps=eps, n_queries=5000, resc_schedule=False),
        ]
    )
    return Side(lambda x, y: torch.cat([battery(*part) for part in _batches(x, y, batch)]), (seen,))


@torch.no_grad()
def _n_classes(model: nn.Module, x: Tensor) -> int:
    return model(x[:1]).shape[1]


PEERS = {  # the module to import, and the package it comes in
    "torchattacks": ("torchattacks", "torchattacks"),
    "foolbox": ("foolbox", "foolbox"),
    "art": ("art.attacks.evasion", "adversarial-robustness-toolbox"),
    "pyautoattack": ("pyautoattack", "pyautoattack"),
}
PGD_OF: dict[str, Make] = {"torchattacks": _torchattacks, "foolbox": _foolbox, "art": _art}
AUTOATTACK_OF: dict[str, Make] = {
    "pyautoattack": _pyautoattack,
    "torchattacks": _torchattacks_battery,
}


def releases(peers: Sequence[str] = tuple(PEERS)) -> tuple[dict[str, str], dict[str, str]]:
    """Name -> version of the peers that can be imported, and name -> why of those that cannot."""
    present: dict[str, str] = {}
    absent: dict[str, str] = {}
    for name in (one_of("peer", peer, PEERS) for peer in peers):
        module, package = PEERS[name]
        try:
            importlib.import_module(module)
            present[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            present[name] = "of unknown version"
        except ImportError as error:
            # a missing part of an installed library is another matter than a missing library
            itself = f"{module}.".startswith(f"{error.name}.")
            absent[name] = "not installed" if itself else f"cannot be imported ({error})"
    return present, absent


def pgd_sides(dtype: str, present: Sequence[str] = ()) -> dict[str, Make]:
    """Sides by name: ours in `dtype` (the first, for ratios) and float32, the textbook, peers."""
    own = {f"crat {kind}": our_pgd(kind) for kind in dict.fromkeys((dtype, "float32"))}
    others = {name: make for name, make in PGD_OF.items() if name in present}
    return own | {"textbook": textbook} | others


def autoattack_sides(dtype: str, present: Sequence[str] = ()) -> dict[str, Make]:
    """Sides by name: ours in `dtype` (the first, for ratios) and float32, peers."""
    own = {f"crat {kind}": our_autoattack(kind) for kind in dict.fromkeys((dtype, "float32"))}
    return own | {name: make for name, make in AUTOATTACK_OF.items() if name in present}


class Measured(NamedTuple):
    """One call of a side."""

    x_adv: Tensor
    seconds: float
    passed: int  # images through its models


def measure(side: Side, x: Tensor, y: Tensor) -> Measured:
    """Runs it once, with torch's global generator at seed 0, which is restored afterwards."""
    before = side.images
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        began = time.perf_counter()
        x_adv = side.craft(x, y)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        seconds = time.perf_counter() - began
    return Measured(x_adv.detach(), seconds, side.images - before)


if __name__ == "__main__":
    parser(__doc__).parse_args()
    for versions in releases():
        for name, version in versions.items():
            print(f"{name:13} {version}")
