"""Settings of the attacks: their defaults, by which kept outcomes are named; the edges of what
is allowed; frozen.
"""

from dataclasses import FrozenInstanceError, fields

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crat.attacks import FGSM, MIFGSM, PGD, CrossEntropy, KLFrom, Margin
from crat.attacks.apgd import APGD, apgd_t
from crat.attacks.fab import FAB
from crat.attacks.objectives import DLR, PlainCrossEntropy, TargetedDLR, Toward
from crat.attacks.square import Square

DEFAULTS = {
    FGSM: {"norm": "Linf"},
    PGD: {
        "steps": 10,
        "norm": "Linf",
        "start": "uniform",
        "restarts": 1,
        "batch_norm": "eval",
        "stop": "never",
    },
    MIFGSM: {"step_size": None, "steps": 10, "decay": 1.0, "norm": "Linf", "batch_norm": "eval"},
    APGD: {
        "norm": "Linf",
        "loss": "ce",
        "steps": 100,
        "restarts": 1,
        "targets": 0,
        "rho": 0.75,
        "eot": 1,
        "larger_radii": False,
    },
    FAB: {
        "norm": "Linf",
        "steps": 100,
        "restarts": 1,
        "targets": 9,
        "alpha_max": 0.1,
        "eta": 1.05,
        "beta": 0.9,
    },
    Square: {
        "norm": "Linf",
        "queries": 5000,
        "restarts": 1,
        "p_init": 0.8,
        "loss": "margin",
        "rescale_schedule": False,
    },
}
EDGES = [  # the attack, the setting, allowed at the edges, refused beyond
    (lambda **s: PGD(0.1, 0.1, **s), "steps", (0, 1), (-1,)),
    (lambda **s: PGD(0.1, 0.1, **s), "restarts", (1,), (0,)),
    (lambda **s: MIFGSM(0.1, **s), "steps", (1,), (0,)),
    (lambda **s: MIFGSM(0.1, **s), "decay", (0.0,), (-0.1,)),
    *(
        (lambda **s: APGD(0.1, **s), setting, (1,), (0,))
        for setting in ("steps", "restarts", "eot")
    ),
    (lambda **s: APGD(0.1, **s), "targets", (0, 1), (-1,)),
    *((lambda **s: FAB(0.1, **s), setting, (1,), (0,)) for setting in ("steps", "restarts")),
    (lambda **s: FAB(0.1, **s), "targets", (0,), (-1,)),
    *((lambda **s: Square(0.1, **s), setting, (1,), (0,)) for setting in ("queries", "restarts")),
    (lambda **s: Square(0.1, **s), "p_init", (1e-6, 1.0), (0.0, 1.001)),
    (lambda **s: CrossEntropy(**s), "temperature", (1e-6,), (0.0, -1.0)),
]


def test_defaults_stay_what_kept_outcomes_were_made_with():
    for attack, expected in DEFAULTS.items():
        found = {f.name: f.default for f in fields(attack)}
        assert {name: found[name] for name in expected} == expected, attack
    assert (apgd_t(0.1).loss, apgd_t(0.1).targets, apgd_t(0.1).steps, apgd_t(0.1).restarts) == (
        "dlr",
        9,
        100,
        1,
    )
    assert CrossEntropy().temperature == 1.0


@pytest.mark.parametrize(("make", "setting", "allowed", "refused"), EDGES)
def test_the_edges_of_a_setting(make, setting, allowed, refused):
    for value in allowed:
        assert getattr(make(**{setting: value}), setting) == value
    for value in refused:
        with pytest.raises(ValueError, match=str(value)):
            make(**{setting: value})


def test_nothing_that_names_an_outcome_can_be_changed_behind_it():
    z, y = torch.zeros(2, 4), torch.tensor([0, 1])
    attacks = [attack(0.1, 0.1) if attack is PGD else attack(0.1) for attack in DEFAULTS]
    objectives = [
        CrossEntropy(),
        PlainCrossEntropy(),
        Margin(),
        DLR(),
        TargetedDLR(y),
        Toward(y),
        KLFrom(z),
    ]
    for frozen in attacks + objectives:
        with pytest.raises(FrozenInstanceError):
            frozen.eps = 1


class TwoFaced(nn.Module):
    """Its second class rises with the image in odd passes for gradients, and falls in even ones
    a third as fast.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        if x.requires_grad:
            self.seen.append(x.detach().clone())
        slope = 3.0 if len(self.seen) % 2 else -1.0
        rising = slope * x.flatten(1).mean(1)
        return torch.stack([torch.full_like(rising, 50.0), rising, torch.zeros_like(rising)], 1)


def test_expectation_over_transformation_sums_the_gradients_of_its_passes():
    """Slopes of 3 and -1 sum to 2: upwards, though the last pass, their product and their
    quotient point down.
    """
    net, x = TwoFaced(), torch.full((2, 1, 2, 2), 0.5)
    APGD(0.1, steps=1, eot=2)(net, x, torch.tensor([0, 0]))
    start, again, moved, _ = net.seen
    assert torch.equal(start, again)
    torch.testing.assert_close(moved, x + 0.1)


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_momentum_gathers_gradients_divided_by_their_l1_norm(decay):
    """Dong et al. 2018, Algorithm 1: g <- decay g + gradient / |gradient|_1 from g = 0, steps of
    eps / steps.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.rand(4, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    x_adv, gathered = x.clone(), torch.zeros_like(x)
    for _ in range(5):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(x_adv), y, reduction="sum"), x_adv)
        gathered = decay * gathered + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
        x_adv = (x_adv.detach() + 0.02 * gathered.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    torch.testing.assert_close(
        MIFGSM(0.1, steps=5, decay=decay)(net, x, y), x_adv, rtol=0, atol=1e-12
    )


def test_objectives_by_hand():
    """Logits 4, 3, 2, 0 of class 0, and of class 1; towards class 2."""
    z, y, target = (
        torch.tensor([[4.0, 3, 2, 0]] * 2, dtype=torch.float64),
        torch.tensor([0, 1]),
        torch.tensor([2, 2]),
    )
    e = z[0].exp()
    assert Margin()(z, y).tolist() == [-1, 1]
    assert DLR()(z, y).tolist() == pytest.approx([-1 / (4 - 2), 1 / (4 - 2)])
    assert TargetedDLR(target)(z, y).tolist() == pytest.approx(
        [-2 / (4 - (2 + 0) / 2), -1 / (4 - (2 + 0) / 2)]
    )
    assert CrossEntropy()(z, y).tolist() == pytest.approx(
        [((e.sum() - e[k]) / e[k]).log().item() for k in (0, 1)]
    )
    assert PlainCrossEntropy()(z, y).tolist() == pytest.approx(
        [(e.sum() / e[k]).log().item() for k in (0, 1)]
    )
    assert Toward(target, Margin())(z, y).tolist() == [-2, -2]
    half = CrossEntropy(0.5)(z, y)
    torch.testing.assert_close(half, CrossEntropy()(2 * z, y))
