"""Attacks that look for the nearest adversarial image: exact on linear models, and the odd cases
all attacks share.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crat.analysis.curves import robust_accuracy_over_eps
from crat.analysis.metrics import MetricError
from crat.attacks import FGSM, MIFGSM, PGD, Margin, cw
from crat.attacks.minimal import CWL2, DeepFool, minimal_radius
from crat.attacks.threat import size

CW = CWL2(steps=120, search_steps=5, initial_const=0.1)
ATTACKS = {
    "deepfool": DeepFool(),
    "deepfool-linf": DeepFool("Linf"),
    "deepfool-two": DeepFool(candidates=2),
    "cw": replace(CW, steps=60, search_steps=3, lr=0.05),
    "cw-confident": replace(CW, steps=60, search_steps=3, lr=0.05, confidence=0.1),
}


def linear(classes=2, seed=2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, classes)).double()


def conv():
    torch.manual_seed(0)
    body = [
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
    ]
    return nn.Sequential(*body, nn.Linear(6 * 36, 4)).train()


class Constant(nn.Module):
    """The same logits everywhere; the image is read, so that there is a gradient: zero."""

    def forward(self, x):
        return 0 * x.flatten(1)[:, :3] + torch.tensor([2.0, 1.0, 0.0], dtype=x.dtype)


def inner(n=20, seed=0):
    """Images far from the box's walls."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(n, 2, 6, 6, generator=generator, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def predicted(model, x):
    training, _ = model.training, model.eval()
    answer = model(x).argmax(1)
    model.train(training)
    return answer


def closed_form(net, x, dual):
    """min over j of (z_y - z_j) / |w_y - w_j|, y the prediction; in the gradient's norm `dual`."""
    with torch.no_grad():
        z, weight = net(x), net[1].weight
        y = z.argmax(1)
        steepness = torch.linalg.vector_norm(weight[y][:, None] - weight, dual, dim=2)
        return ((z.amax(1, keepdim=True) - z) / steepness).scatter(1, y[:, None], torch.inf).amin(1)


@pytest.fixture(params=ATTACKS)
def attack(request):
    return ATTACKS[request.param]


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(
    ("attack", "norm", "dual"), [(DeepFool(), "L2", 2), (DeepFool("Linf"), "Linf", 1)]
)
def test_deepfool_is_exact_on_a_linear_model(attack, norm, dual, classes):
    net, x = linear(classes), inner()
    y, radius = predicted(net, x), closed_form(net, x, dual)
    x_adv = attack(net, x, y)
    moved = size(x_adv - x, norm)
    assert (predicted(net, x_adv) != y).all()
    torch.testing.assert_close(moved, 1.02 * (radius + 1e-4), rtol=1e-6, atol=0)


@pytest.mark.parametrize("classes", [2, 5])
def test_cw_comes_close_to_the_radius_of_a_linear_model(classes):
    net, x = linear(classes), inner()
    y, radius = predicted(net, x), closed_form(net, x, 2)
    x_adv = CW(net, x, y)
    moved = size(x_adv - x, "L2")
    assert (predicted(net, x_adv) != y).all()
    assert (moved >= radius).all()
    assert (moved / radius).max() < 1.05
    assert (moved / radius).median() < 1.02


def test_cw_to_a_target_and_with_confidence():
    net, x = linear(5), inner()
    y = predicted(net, x)
    target = (y + 1) % 5
    with torch.no_grad():
        z, weight = net(x), net[1].weight
        gap = (z.gather(1, y[:, None]) - z.gather(1, target[:, None])).squeeze(1)
        radius = gap / (weight[y] - weight[target]).norm(dim=1)
    x_adv = CW(net, x, y, target=target)
    assert (predicted(net, x_adv) == target).all()
    # the nearest point may have to pass a third class
    assert (size(x_adv - x, "L2") >= radius).all()
    confident = replace(CW, confidence=0.2)
    assert (Margin()(net(confident(net, x, y)), y) > 0.2).all()
    assert (-Margin()(net(confident(net, x, y, target=target)), target) > 0.2).all()


@pytest.mark.parametrize("name", ["deepfool", "cw"])
def test_images_already_wrong_stay(name):
    net, x = linear(3), inner()
    wrong = (predicted(net, x) + 1) % 3
    assert torch.equal(ATTACKS[name](net, x, wrong), x)
    if name == "cw":
        assert torch.equal(CW(net, x, wrong, target=predicted(net, x)), x)


def test_in_the_box_and_nearer_than_eps_when_asked(attack):
    model = conv()
    x = torch.rand(8, 2, 6, 6, generator=generator())
    x[::2, :, ::2] = x[::2, :, ::2].round()  # at the walls of the box
    y = predicted(model, x)
    free = attack(model, x, y)
    eps = torch.linspace(0, 0.2, 8)
    bound = attack(model, x, y, eps=eps)
    norm = getattr(attack, "norm", "L2")
    for x_adv in (free, bound):
        assert x_adv.shape == x.shape
        assert 0 <= x_adv.min() <= x_adv.max() <= 1
        assert not x_adv.requires_grad
    assert (size(bound - x, norm) <= eps + 1e-6).all()
    assert (predicted(model, free) != y).any()
    assert torch.equal(attack(model, x, y, eps=0.0), x)


def test_leaves_the_model_as_found_and_repeats(attack):
    model, x = conv(), inner(6).float()
    model[1].eval()
    next(model.parameters()).requires_grad_(False)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    wanted, random_state = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    y = predicted(model, x)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    first = attack(model, x, y, generator=generator(1))
    assert torch.equal(first, attack(model, x, y, generator=generator(2)))  # nothing is drawn
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert eval(repr(attack)) == attack


def test_an_image_alone_meets_the_same_end(attack):
    model, x = conv().double(), inner(5)
    y = predicted(model, x)
    together = attack(model, x, y)
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-7)


def test_a_constant_model_ends(attack):
    x, y = inner(4).float(), torch.tensor([0, 0, 1, 2])
    x_adv = attack(Constant(), x, y)
    assert x_adv.isfinite().all()
    assert torch.equal(x_adv, x)


def test_non_contiguous_and_half_precision(attack):
    model, x = conv().double(), inner(6)
    y = predicted(model, x)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not turned.is_contiguous()
    torch.testing.assert_close(attack(model, turned, y), attack(model, x, y), rtol=0, atol=1e-7)
    half = model.bfloat16()
    y = predicted(half, x.bfloat16())
    x_adv = attack(half, x.bfloat16(), y)
    assert x_adv.dtype == torch.bfloat16
    assert x_adv.isfinite().all()
    assert (predicted(half, x_adv) != y).any()


def test_autocast_does_not_reach_the_search(attack):
    """bfloat16 cannot tell the two sides of a boundary apart."""
    model, x = conv(), inner(6).float()
    y = predicted(model, x)
    expected = attack(model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attack(model, x, y), expected)


def test_nan_logits_are_an_error(attack):
    model, x = linear(3), inner(4)
    y = predicted(model, x)
    with torch.no_grad():
        model[1].bias[0] = torch.nan
    for call in (
        lambda: attack(model, x, y),
        lambda: minimal_radius(FGSM(0.1), model, x, y, largest=1.0),
    ):
        with pytest.raises(ValueError, match="logits for 4 of 4 images"):
            call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeepFool("L1"), "norm is one of L2, Linf, not 'L1'"),
        (lambda: DeepFool(candidates=1), "candidates >= 2"),
        (lambda: CWL2(steps=0), "steps >= 1"),
        (lambda: CWL2(lr=0.0), "lr and initial_const must be above 0"),
        (
            lambda: minimal_radius(
                MIFGSM(0.1, 0.01), linear(), inner(2), torch.tensor([0, 1]), largest=1
            ),
            "step_size",
        ),
        (lambda: robust_accuracy_over_eps([0], [np.nan], [0.1], 2), "not nan"),
        (lambda: robust_accuracy_over_eps([0], [0.1], [[0.1]], 2), "1-D"),
    ],
)
def test_bad_settings_get_one_line(make, message):
    with pytest.raises((ValueError, MetricError), match=message) as error:
        make()
    assert "\n" not in str(error.value)


RADIUS = {
    "fgsm": FGSM(0.1),
    "pgd": PGD(0.1, 0.1, 5),
    "cw": cw(PGD(0.1, 0.05, 8)),
    "mifgsm": MIFGSM(0.1, steps=3),
}


@pytest.mark.parametrize("name", RADIUS)
def test_minimal_radius_is_exact_on_a_linear_model(name):
    net, x = linear(), inner()
    y, radius = predicted(net, x), closed_form(net, x, 1)
    y[:3] = 1 - y[:3]  # three are wrong when clean
    largest = 1.001 * radius[3:].median().item()
    found = minimal_radius(
        RADIUS[name], net, x, y, largest=largest, rounds=12, generator=generator()
    )
    assert (found[:3] == 0).all()
    assert found[3:].isinf().equal(radius[3:] > largest)
    inside = found.isfinite() & (found > 0)
    assert (found[inside] >= radius[inside] * (1 - 1e-9)).all()
    assert (found[inside] - radius[inside] <= largest / 2**12 * 1.001).all()


def test_minimal_radius_of_a_network():
    """Seen to succeed there; one image alone, the judge, and a largest radius for each image."""
    model, x = conv().eval(), inner(8).float()
    y, attack = predicted(model, x), cw(PGD(0.1, 0.02, 10, start="none"))
    assert minimal_radius(attack, model, x, y, largest=0.5, rounds=1).dtype == torch.float32
    model, x = model.double(), x.double()  # else rounding may decide a round
    radius = minimal_radius(attack, model, x, y, largest=0.5, rounds=10)
    assert radius.isfinite().all()
    assert (predicted(model, attack(model, x, y, eps=radius, step_size=radius * 0.2)) != y).all()
    torch.testing.assert_close(
        minimal_radius(attack, model, x[:1], y[:1], largest=0.5, rounds=10), radius[:1]
    )
    assert minimal_radius(attack, model, x, y, largest=0.9 * radius, rounds=2).isinf().sum() >= 6
    never = minimal_radius(
        attack, model, x, y, largest=0.5, judge=lambda_model(lambda z: F.one_hot(y, 4).float())
    )
    assert never.isinf().all()
    random = replace(attack, start="uniform")
    first, second = (
        minimal_radius(random, model, x, y, largest=0.5, generator=generator(5)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert minimal_radius(attack, Constant(), x, torch.zeros(8).long(), largest=1.0).isinf().all()


def lambda_model(function):
    model = nn.Module()
    model.forward = function
    return model


def test_curve_counts_each_class_at_each_radius():
    y = np.array([0, 0, 0, 0, 2, 2])
    radius = np.array([0, 0.1, 0.2, np.inf, 0.1, 0.3], np.float32)
    curve = robust_accuracy_over_eps(y, radius, [0, 0.1, 0.25, 1.0], 3)
    expected = [[0.75, np.nan, 1], [0.5, np.nan, 0.5], [0.25, np.nan, 0.5], [0.25, np.nan, 0]]
    np.testing.assert_allclose(curve, expected)
