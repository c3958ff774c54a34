"""The attacks of five libraries behind one signature, and one judge.

(model, x, y, attack, norm, eps, seed) -> x_adv.

Names are AutoAttack's: apgd-ce, apgd-dlr, apgd-t, fab-t, fab, square, autoattack; besides pgd-20,
deepfool and cw, and fmn, which only adv-lib has. The peers are imported when called: they live in
an environment of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from crat.attacks.autoattack import AutoAttack
from crat.attacks.frozen import frozen
from crat.attacks.gradient import PGD
from crat.attacks.minimal import CWL2, DeepFool
from crat.attacks.noise import PerImage
from crat.attacks.search import searcher

# where a library is not asked for the settings of AutoAttack's standard version
SETTINGS = {
    "fab": "untargeted, 1 restart (the plus version has 5)",
    "autoattack of torchattacks": "as that library has it: 10 iterations instead of 100, another "
    "Square schedule",
    "adv-lib": "100 iterations; its PGD keeps the last of its iterates that was wrong; of fab and "
    "fmn (100 steps), broken where the found point lies within eps",
    "torchattacks": "100 iterations; Square with the fixed schedule",
    "pgd-20": "uniform start, steps of eps / 4, last iterate",
    "deepfool": "50 steps, overshoot 0.02; broken where the found point lies within eps",
    "cw": "9 binary search steps of 200, from 0.001, learning rate 0.01; broken where the found "
    "point lies within eps",
}


def pyautoattack(
    model: nn.Module, x: Tensor, y: Tensor, attack: str, norm: str, eps: float, seed: int
) -> Tensor:
    """One attack of the standard version on every image that is right, or all of it."""
    from pyautoattack import AutoAttack

    battery = AutoAttack(model, norm=norm, eps=eps, seed=seed, version="standard")
    if attack != "autoattack":
        battery.attacks_to_run = [attack]
    return battery.run_standard_evaluation(x, y, batch_size=len(x))[0]


def torchattacks(
    model: nn.Module, x: Tensor, y: Tensor, attack: str, norm: str, eps: float, seed: int
) -> Tensor:
    """The same attacks as torchattacks has them."""
    import torchattacks as library

    torch.manual_seed(seed)
    known = {"norm": norm, "eps": eps, "seed": seed}
    make = {
        "apgd-ce": lambda: library.APGD(model, **known, steps=100),
        "apgd-dlr": lambda: library.APGD(model, **known, steps=100, loss="dlr"),
        "apgd-t": lambda: library.APGDT(model, **known, steps=100),
        "fab-t": lambda: library.FAB(model, **known, steps=100, multi_targeted=True),
        "square": lambda: library.Square(model, **known, resc_schedule=False),
        "autoattack": lambda: library.AutoAttack(model, **known),
        "pgd-20": lambda: {"Linf": library.PGD, "L2": library.PGDL2}[norm](model, eps, eps / 4, 20),
    }
    return make[attack]()(x, y)


def foolbox(
    model: nn.Module, x: Tensor, y: Tensor, attack: str, norm: str, eps: float, seed: int
) -> Tensor:
    """PGD and the attacks that search for the nearest adversarial point."""
    import foolbox as library

    torch.manual_seed(seed)
    attacks, seen = library.attacks, library.PyTorchModel(model, bounds=(0, 1), device="cpu")
    if attack == "pgd-20":
        kind = {"Linf": attacks.LinfPGD, "L2": attacks.L2PGD}[norm]
        return kind(abs_stepsize=eps / 4, steps=20).run(
            seen, x, library.criteria.Misclassification(y), epsilon=eps
        )
    if attack == "cw":
        kind = attacks.L2CarliniWagnerAttack(binary_search_steps=9, steps=200)
    else:
        kind = {"Linf": attacks.LinfDeepFoolAttack, "L2": attacks.L2DeepFoolAttack}[norm](steps=50)
    return kind.run(seen, x, library.criteria.Misclassification(y))


def adv_lib(
    model: nn.Module, x: Tensor, y: Tensor, attack: str, norm: str, eps: float, seed: int
) -> Tensor:
    """The attacks that adv-lib has of these, and its fast minimum-norm attack."""
    from adv_lib import attacks as library

    torch.manual_seed(seed)
    p = {"Linf": float("inf"), "L2": 2, "L1": 1}[norm]
    make = {
        "apgd-ce": lambda: library.apgd(model, x, y, eps, p, loss_function="ce"),
        "apgd-dlr": lambda: library.apgd(model, x, y, eps, p),
        "apgd-t": lambda: library.apgd_targeted(model, x, y, eps, p),
        "fab": lambda: library.fab(model, x, y, p),
        "fab-t": lambda: library.fab(model, x, y, p, targeted_restarts=True),
        "fmn": lambda: library.fmn(model, x, y, p, steps=100),
        "pgd-20": lambda: library.pgd_linf(model, x, y, eps, steps=20, absolute_step_size=eps / 4),
        "deepfool": lambda: library.df(model, x, y, steps=50, norm=p),
        "cw": lambda: library.carlini_wagner_l2(model, x, y, max_iterations=200),
    }
    return make[attack]()


def ours(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: str,
    norm: str,
    eps: float,
    seed: int,
    dtype: str = "float32",
) -> Tensor:
    """crat's, as an evaluation calls it: searched on a copy of the model, judged on the model."""
    battery = AutoAttack(eps, norm)
    kernels = battery.attacks(n_classes=10)
    known = kernels | {
        "autoattack": battery,
        "apgd-dlr": replace(kernels["apgd-ce"], loss="dlr"),
        "fab": replace(kernels["fab-t"], targets=0),
    }
    search, noise = (
        searcher(model, x[:16], dtype),
        PerImage(seed, torch.arange(len(x), device=x.device)),
    )
    if attack in known:
        found = known[attack](search, x, y, generator=noise, judge=model)
        return found.x_adv if attack == "autoattack" else found
    other = {
        "pgd-20": PGD(eps, eps / 4, 20, norm),
        "deepfool": DeepFool(norm),
        "cw": CWL2(steps=200),
    }
    return other[attack](search, x, y, generator=noise)


LIBRARIES: dict[str, Callable[..., Tensor]] = {
    "crat": ours,
    "pyautoattack": pyautoattack,
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "adv-lib": adv_lib,
}


def size(delta: Tensor, norm: str) -> Tensor:
    """The norm of each sample (N,), not by the package's own code, which is judged here."""
    return delta.double().flatten(1).norm(p={"Linf": float("inf"), "L2": 2, "L1": 1}[norm], dim=1)


@torch.no_grad()
def survivors(
    model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, norm: str, eps: float
) -> Tensor:
    """(N,) bool: right on the image, and right on the candidate or the candidate is not allowed."""
    with frozen(model):
        clean, attacked = (model(images).argmax(1) == y for images in (x, x_adv))
    box = (x_adv.flatten(1).amin(1) >= 0) & (x_adv.flatten(1).amax(1) <= 1)
    allowed = box & (size(x_adv - x, norm) <= eps * (1 + 1e-4))
    return clean & (attacked | ~allowed)
