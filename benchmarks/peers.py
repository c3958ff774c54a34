"""The sides of a comparison: our attacks, the textbook loop, and the libraries that are installed.

    python benchmarks/peers.py      # which attack libraries can be imported here

A side is an attack that is ready to run on images and labels, with the models whose passes are its
work. Libraries run as their users run them: float32, eval mode. The textbook and the libraries that
take any model run a second time as somebody runs them who knows the hardware: the model and the
images in channels last, the whole call inside autocast. A library is imported when it is asked for;
none is needed.
"""

from __future__ import annotations

import copy
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
from crat.device import autocast
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
    """craft takes images (N, C, H, W) in [0, 1] and labels (N,) and gives adversarial images.

    counted: the models whose passes are the work; () where they cannot be counted.
    """

    craft: Callable[[Tensor, Tensor], Tensor]
    counted: tuple[Counted, ...]

    @property
    def images(self) -> int | None:
        """How many images its models have been asked about; None where nobody counted."""
        return sum(model.images for model in self.counted) if self.counted else None


# from the model, the images, eps, and the steps of PGD or the batch size of AutoAttack
Make = Callable[[nn.Module, Tensor, float, int], Side]


def our_pgd(dtype: str) -> Make:
    """PGD of crat, searching in a precision; the model is copied once, as in an evaluation."""

    def make(model: nn.Module, x: Tensor, eps: float, steps: int) -> Side:
        search = Counted(searcher(model, as_images(x[:16]), dtype))
        attack = PGD(eps, eps / 4, steps)
        return Side(lambda x, y: attack(search, as_images(x), y, generator=_noise(0, x)), (search,))

    return make


def as_called(model: nn.Module, x: Tensor, eps: float, steps: int) -> Side:
    """PGD of crat as the README calls it: on the plain model, which may make its own copy of it.

    Passes are not counted: a model that counts is another model, which no copy could stand for.
    PGD of crat takes every step on every image.
    """
    attack = PGD(eps, eps / 4, steps)
    return Side(lambda x, y: attack(model, x, y), ())


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


def by_an_expert(make: Make, dtype: str) -> Make:
    """A side with model and images in channels last, and the call inside autocast of this dtype."""

    def made(model: nn.Module, x: Tensor, eps: float, steps: int) -> Side:
        fast = copy.deepcopy(model).to(memory_format=torch.channels_last)
        side = make(fast, _channels_last(x), eps, steps)

        def craft(x: Tensor, y: Tensor) -> Tensor:
            with autocast(x.device, dtype):
                return side.craft(_channels_last(x), y).float()

        return Side(craft, side.counted)

    return made


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


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


def _adv_lib(model: nn.Module, x: Tensor, eps: float, steps: int) -> Side:
    """Its PGD keeps the last of its iterates that was wrong; where its last step ends, it has not
    looked.
    """
    from adv_lib.attacks import pgd_linf

    seen = Counted(model)

    def craft(x: Tensor, y: Tensor) -> Tensor:
        return pgd_linf(seen, x, y, eps, steps=steps, absolute_step_size=eps / 4)

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
    "adv-lib": ("adv_lib.attacks", "adv-lib"),
    "pyautoattack": ("pyautoattack", "pyautoattack"),
}
PGD_OF: dict[str, Make] = {
    "torchattacks": _torchattacks,
    "foolbox": _foolbox,
    "adv-lib": _adv_lib,
    "art": _art,
}
# sides of which there is a second, by an expert: foolbox and art wrap the model and the images
ANY_MODEL: dict[str, Make] = {
    "textbook": textbook,
    "torchattacks": _torchattacks,
    "adv-lib": _adv_lib,
}
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
    """Sides by name: ours in `dtype` (the first, for ratios), in float32 and as the README calls
    it; the textbook and the peers as their users run them; those of ANY_MODEL by an expert.
    """
    own = {f"crat {kind}": our_pgd(kind) for kind in dict.fromkeys((dtype, "float32"))}
    own["crat, as the README calls it"] = as_called
    plain = {"textbook": textbook}
    plain |= {name: make for name, make in PGD_OF.items() if name in present}
    how = "channels last" if dtype == "float32" else f"channels last, autocast {dtype}"
    expert = {
        f"{name}, {how}": by_an_expert(make, dtype)
        for name, make in ANY_MODEL.items()
        if name in plain
    }
    return own | plain | expert


def autoattack_sides(dtype: str, present: Sequence[str] = ()) -> dict[str, Make]:
    """Sides by name: ours in `dtype` (the first, for ratios) and float32, peers."""
    own = {f"crat {kind}": our_autoattack(kind) for kind in dict.fromkeys((dtype, "float32"))}
    return own | {name: make for name, make in AUTOATTACK_OF.items() if name in present}


class Measured(NamedTuple):
    """One call of a side."""

    x_adv: Tensor
    seconds: float
    passed: int | None  # images through its models; None where nobody counted


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
    after = side.images
    passed = None if before is None or after is None else after - before
    return Measured(x_adv.detach(), seconds, passed)


if __name__ == "__main__":
    parser(__doc__).parse_args()
    for versions in releases():
        for name, version in versions.items():
            print(f"{name:13} {version}")
