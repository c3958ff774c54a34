"""Nothing in an attack's loop waits for the device: between two passes Python reads no number."""

import warnings

import pytest
import torch
from tape import WaitsForTheDevice
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from crat.attacks import APGD, FAB, FGSM, MIFGSM, PGD, PerImage, Square, cw
from crat.attacks.frozen import frozen
from crat.attacks.hunt import Hunt
from crat.attacks.threat import NORMS, budget

PERTURBING = {
    "fgsm": FGSM(0.1),
    "pgd": PGD(0.1, 0.02, 4),
    "pgd-first": PGD(0.1, 0.02, 4, stop="first"),
    "pgd-restarts": PGD(0.1, 0.02, 4, restarts=2),
    "pgd-l2": PGD(1.0, 0.2, 4, norm="L2"),
    "pgd-l1": PGD(3.0, 1.0, 4, norm="L1"),
    "cw": cw(PGD(0.1, 0.02, 4)),
    "mifgsm": MIFGSM(0.1, steps=4),
}
HUNTED = {
    f"{name}-{norm}": attack
    for norm in NORMS
    for name, attack in {
        "apgd": APGD(0.1, norm, steps=6),
        "apgd-t": APGD(0.1, norm, "dlr", steps=6, targets=1),
        "fab": FAB(0.1, norm, steps=3, targets=0),
        "fab-t": FAB(0.1, norm, steps=3, targets=1),
        "square": Square(0.1, norm, queries=150),
    }.items()
} | {"apgd-wider": APGD(3.0, "L1", steps=10, larger_radii=True)}


class NoReading(TorchDispatchMode):
    """Raises where a number is read from a tensor, or where a size depends on its numbers.

    On a GPU that waits for the device. The searches of Square are left out: they read shared draws,
    which are made on the CPU.
    """

    REFUSED = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.equal.default,
    )
    INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func in self.INDEXING else ()
        masked = any(index is not None and index.dtype == torch.bool for index in indices)
        if func in self.REFUSED or masked:
            raise WaitsForTheDevice(f"{func} within a step")
        return func(*args, **(kwargs or {}))


def net(device):
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(6 * 36, 5)).eval().to(device)


def batch(device):
    x = torch.rand(8, 2, 6, 6, generator=torch.Generator().manual_seed(0)).to(device)
    return x, net(device)(x).argmax(1)


def perturb(name, device, guard):
    model, (x, y) = net(device), batch(device)
    draws = PerImage(0, torch.arange(8, device=device))
    attack = PERTURBING[name]
    attack.perturb(model, x, y, generator=draws)  # libraries wait when they are loaded
    with guard():
        return attack.perturb(model, x, y, generator=draws)


def run(name, device, guard):
    model, (x, y) = net(device), batch(device)
    attack = HUNTED[name]
    hunt, noise = Hunt(model, x, y), PerImage(0, torch.arange(8, device=device))
    eps = budget(attack.eps, x)
    with frozen(model):
        first = next(attack.runs(5))
        first(model, x, y, eps, noise.fork(0), hunt)
        with guard():
            return first(model, x, y, eps, noise.fork(0), hunt)


class Strict:
    """A CUDA device that raises where it is waited for."""

    def __enter__(self):
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", PERTURBING)
def test_perturb_reads_no_number(name):
    assert perturb(name, "cpu", NoReading).shape == (8, 2, 6, 6)


@pytest.mark.parametrize("name", [name for name in HUNTED if "square" not in name])
def test_a_run_reads_no_number(name):
    assert run(name, "cpu", NoReading).shape == (8, 2, 6, 6)


def test_the_guard_guards():
    with pytest.raises(WaitsForTheDevice), NoReading():
        torch.ones(3).sum().item()
    with pytest.raises(WaitsForTheDevice), NoReading():
        torch.ones(3)[torch.ones(3) > 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [*PERTURBING, *HUNTED])
def test_on_a_gpu_nothing_waits(name):
    work = perturb if name in PERTURBING else run
    with warnings.catch_warnings(action="error"):
        assert work(name, "cuda", Strict).shape == (8, 2, 6, 6)


def test_shared_numbers_are_the_shared_draws():
    one, other = (PerImage(7, torch.arange(3)) for _ in range(2))
    for shape in ((4,), (5, 2)):
        assert torch.equal(one.shared_uniform(*shape), other.shared_numbers(*shape))
    assert torch.equal(one.uniform(2), other.uniform(2))


@pytest.mark.parametrize("every", [1, 10])
def test_rarer_looks_break_the_same_images(every):
    """Square looks ten times rarer where a look waits for a device; what it breaks is the same."""
    model, (x, y) = net("cpu"), batch("cpu")
    attack = Square(0.1, queries=200)
    broken = []
    for looks in (1, every):
        hunt = Hunt(model, x, y, every=looks)
        with frozen(model):
            noise = PerImage(0, torch.arange(8))
            left = hunt.index
            (search,) = attack.runs(5)
            found = search(model, x[left], y[left], budget(0.1, x)[left], noise.take(left), hunt)
            hunt.settle(found)
        broken.append(hunt.broken)
    assert broken[0].sum() > 0
    assert torch.equal(*broken)
