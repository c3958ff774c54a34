"""What is done on the Apple GPU of `apple`, beside the same on the CPU: one process, one line each.

`python apple_checks.py` prints JSON: name of the check -> "" or what is wrong. A process of its
own, because a device that was made cannot be taken away.
"""

import contextlib
import json
import os
import sys
import tempfile
import warnings
from dataclasses import replace

import apple
import pytest
import torch
from method_table import config
from tiny_runs import TINY
from tiny_teacher import taught

import crat.device
from crat import corruptions
from crat.attacks import (
    APGD,
    CWL2,
    FAB,
    FGSM,
    MIFGSM,
    PGD,
    AutoAttack,
    DeepFool,
    Square,
    cw,
    fit_universal,
    minimal_radius,
    temperature_pgd,
)
from crat.config import ModelConfig
from crat.corruptions import Corruption, tools
from crat.data import load
from crat.defenses import DEFENSES
from crat.nets.models import build
from crat.outcomes.evaluation import evaluate
from crat.training import step
from crat.training.trainer import train

EPS = 0.1
ATTACKS = {
    "FGSM": FGSM(EPS),
    "PGD": PGD(EPS, 0.03, 5),
    "PGD with restarts": PGD(EPS, 0.03, 5, restarts=2),
    "PGD in L2": PGD(1.0, 0.3, 5, norm="L2"),
    "PGD on batch statistics": PGD(EPS, 0.03, 5, batch_norm="train"),
    "MI-FGSM": MIFGSM(EPS, 0.03, 5),
    "CW": cw(PGD(EPS, 0.03, 5)),
    "temperature": temperature_pgd(PGD(EPS, 0.03, 5), 0.5),
    "APGD": APGD(EPS, steps=10),
    "APGD in L1": APGD(5.0, norm="L1", steps=10),
    "APGD-T": APGD(EPS, loss="dlr", targets=2, steps=10),
    "FAB": FAB(EPS, steps=5),
    "Square": Square(EPS, queries=30),
    "CW-L2": CWL2(),
    "DeepFool": DeepFool(),
}
CORRUPTIONS = (
    "gaussian_noise",
    "motion_blur",
    "snow",
    "fog",
    "elastic_transform",
    "jpeg_compression",
)
AVERAGED = {
    "EMA of updates, AWP": TINY.but(defense="trades", average="ema_update", awp=0.005),
    "SWA": TINY.but(average="swa"),
    "FAWA": TINY.but(average="fawa", fawa_threshold=0.0),
}


PLACES = (apple.NAME, "cpu")


@contextlib.contextmanager
def without_float64(device):
    """Within: the CPU, too, takes float32 where it would take float64, so it does the same."""
    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu":
            for module in (crat.device, step, corruptions, tools):
                patch.setattr(module, "finest", lambda _: torch.float32)
        yield


# a gradient of a gradient is summed in another order there
ROUNDED = {"grad_align": 1e-5}


def trained(settings):
    """What differs between a training there and here, to the last bit: two epochs of two steps.

    Where a method is ROUNDED, by more than that.
    """
    most = ROUNDED.get(settings.train.defense, 0.0)
    settings = settings.but(epochs=2, train_per_class=4, valid_per_class=1, batch_size=32)
    found = []
    for device in PLACES:
        with tempfile.TemporaryDirectory() as store, without_float64(device):
            os.environ["CRAT_RUNS"] = store
            run = train(taught(settings), device=device, progress="none")
            found.append(run.model("last").state_dict())
    there, here = found
    return ", ".join(n for n in here if (there[n] - here[n]).abs().max() > most)


def apart(there, here):
    """How far numbers are apart that should be equal; ""."""
    return "" if torch.equal(there, here) else f"{(there - here).abs().max():.2g} apart"


def network():
    torch.manual_seed(0)
    return build(ModelConfig(width=4), 10, (1, 28, 28)).eval()


def images(n=24):
    data = load("fashion_mnist_mini")
    return data.x_test[:n].float() / 255, data.y_test[:n]


def attacked(attack):
    x, y = images()
    made = []
    for device in PLACES:
        with without_float64(device):
            net, place = network().to(device), (x.to(device), y.to(device))
            # the copy that is faster to search with rounds otherwise, where it can be made
            x_adv = attack(net, *place, search="exact")
            assert attack(net, *place).isfinite().all()
        assert x_adv.device.type == device
        made.append(x_adv.cpu())
    return apart(*made)


def corrupted(kind):
    x, _ = images(6)
    there = Corruption(kind, 3)(None, x.to(apple.NAME), None)
    assert there.device.type == apple.NAME
    return apart(there.cpu(), Corruption(kind, 3)(None, x, None))


def universal():
    x, y = images()
    asked = {"eps": EPS, "n_classes": 10, "class_wise": True, "epochs": 1, "batch_size": 12}
    found = [fit_universal(network().to(d), x.to(d), y.to(d), **asked).cpu() for d in PLACES]
    return apart(*found)


def radius():
    x, y = images(8)
    found = [
        minimal_radius(
            PGD(EPS, 0.03, 3), network().to(d), x.to(d), y.to(d), largest=EPS, rounds=3
        ).cpu()
        for d in PLACES
    ]
    return apart(*found)


def evaluated():
    """A run trained and attacked there has the logits that the CPU finds for it."""
    with tempfile.TemporaryDirectory() as store:
        os.environ["CRAT_RUNS"] = store
        settings = TINY.but(epochs=1, train_per_class=7)
        run = train(settings, device=apple.NAME, progress="none")
        battery = {"PGD": PGD(EPS, 0.03, 3), "fog-3": Corruption("fog", 3)}
        there = evaluate(run, battery, device=apple.NAME, tell=None, first=20).logits
        here = evaluate(run, battery, device="cpu", tell=None, first=10).logits
    return apart(torch.from_numpy(there["PGD"][:10]).float(), torch.from_numpy(here["PGD"]).float())


def refused():
    """The device refuses what the real one refuses; else no check here would see anything."""
    x = torch.ones(2, device=apple.NAME)
    for name, what in {
        "x.double()": x.double,
        "a float64 number": lambda: torch.tensor(1.0, dtype=torch.float64, device=apple.NAME),
        "a tensor of the CPU": lambda: x + torch.ones(2),
        "NumPy": x.numpy,
    }.items():
        try:
            what()
        except (TypeError, RuntimeError):
            continue
        return f"{name} was taken"
    return ""


def checks():
    yield "the device refuses what Apple's refuses", refused
    for name in DEFENSES:
        yield f"train {name}", lambda name=name: trained(config(name))
    for name, settings in AVERAGED.items():
        yield f"train {name}", lambda settings=settings: trained(settings)
    for name, attack in ATTACKS.items():
        yield f"attack {name}", lambda attack=attack: attacked(attack)
    for kind in CORRUPTIONS:
        yield f"corrupt {kind}", lambda kind=kind: corrupted(kind)
    yield "AutoAttack", lambda: autoattacked()
    yield "universal perturbation", universal
    yield "minimal radius", radius
    yield "train and evaluate", evaluated


def autoattacked():
    x, y = images(8)
    short = {APGD: {"steps": 5}, FAB: {"steps": 3}, Square: {"queries": 20}}
    whole = AutoAttack.attacks
    AutoAttack.attacks = lambda self, n: {
        name: replace(part, **short[type(part)]) for name, part in whole(self, n).items()
    }
    found = [AutoAttack(EPS)(network().to(d), x.to(d), y.to(d)).broken_by.cpu() for d in PLACES]
    return "" if torch.equal(*found) else f"{found[0].tolist()}, not {found[1].tolist()}"


def main(wanted):
    warnings.simplefilter("ignore")
    apple.begin()
    found = {}
    for name, check in checks():
        if not wanted or any(word in name for word in wanted):
            try:
                found[name] = check()
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
                if wanted:
                    raise
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
