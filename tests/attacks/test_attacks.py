"""One table tests every attack; the fast loop is held to a plain one; temperatures to their
algebra.
"""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crat.attacks import (
    FGSM,
    PGD,
    CrossEntropy,
    FallingTemperature,
    KLFrom,
    Margin,
    cw,
    falling_temperature,
    frozen,
    temperature_pgd,
)
from crat.attacks.objectives import kl_divergence
from crat.attacks.threat import length, project, uniform_start

EPS = 0.1
LINF = PGD(EPS, 0.03, 5)
L2 = PGD(1.0, 0.3, 5, norm="L2")
ATTACKS = {
    "fgsm": FGSM(EPS),
    "fgsm-l2": FGSM(1.0, norm="L2"),
    "pgd": LINF,
    "pgd-train-bn": replace(LINF, batch_norm="train"),
    "pgd-restarts": replace(LINF, restarts=3),
    "pgd-no-start": replace(LINF, start="none"),
    "pgd-gaussian": replace(LINF, start="gaussian"),
    "pgd-l2": L2,
    "pgd-l2-restarts": replace(L2, restarts=2),
    "temperature-low": temperature_pgd(LINF, 0.02),
    "temperature-high": temperature_pgd(LINF, 10.0),
    "temperature-falling": falling_temperature(LINF, 10.0, 0.1),
    "cw": cw(LINF),
    "cw-l2": cw(L2),
}


def batch_norm_net():
    torch.manual_seed(0)
    body = [
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
    ]
    return nn.Sequential(*body, nn.Linear(8 * 36, 5)).train()


def linear_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 3))


MODELS = {"batch-norm": batch_norm_net, "linear": linear_net}


def batch(n=12, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 2, 6, 6, generator=generator), torch.randint(
        0, classes, (n,), generator=generator
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def distance(x_adv, x, norm):
    delta = x_adv - x
    return delta.abs().flatten(1).amax(1) if norm == "Linf" else length(delta).flatten()


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture(params=ATTACKS)
def attack(request):
    return ATTACKS[request.param]


def test_stays_in_ball_and_box_and_moves(attack, model):
    x, y = batch()
    x_adv = attack(model, x, y, generator=generator())
    assert x_adv.shape == x.shape
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    moved = distance(x_adv, x, attack.norm)
    assert (moved <= attack.eps + 1e-6).all()
    assert (moved > 0).all()


def test_eps_zero_is_the_identity(attack, model):
    x, y = batch()
    assert torch.equal(attack(model, x, y, eps=0.0, generator=generator()), x)


def test_each_sample_has_its_own_eps(attack, model):
    x, y = batch()
    eps_of_class = attack.eps * torch.tensor([0.0, 0.5, 1.0])
    x_adv = attack(model, x, y, eps=eps_of_class[y], generator=generator())
    moved = distance(x_adv, x, attack.norm)
    assert (moved <= eps_of_class[y] + 1e-6).all()
    for label in (1, 2):
        assert moved[y == label].max() > 0.9 * eps_of_class[label] * (
            0.3 if attack.norm == "L2" else 1
        )


def test_leaves_the_model_and_the_random_state_as_found(attack, model):
    x, y = batch()
    model[1].eval()
    next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    random_state = torch.get_rng_state()
    attack(model, x, y, generator=generator())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_leaves_the_model_as_found_after_an_error(model):
    model.train()
    with pytest.raises(
        ValueError, match=r"the model takes no float32 images of shape \(2, 1, 3, 3\)"
    ):
        LINF(model, torch.rand(2, 1, 3, 3), torch.zeros(2, dtype=torch.long))
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_a_seed_repeats_and_names_are_complete(attack, model):
    x, y = batch()
    first, second = (attack(model, x, y, generator=generator(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert eval(repr(attack)) == attack  # the repr is the attack's id in cards


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_loop_equals_the_textbook(norm):
    """The textbook: cross-entropy, backward through everything, clip to ball and box."""
    model, (x, y) = batch_norm_net().double().eval(), batch()
    x, eps, step = x.double(), 0.1 if norm == "Linf" else 1.0, 0.03
    x_adv = x.clone()
    for _ in range(6):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        with torch.no_grad():
            if norm == "Linf":
                x_adv = x_adv + step * grad.sign()
                x_adv = torch.max(torch.min(x_adv, x + eps), x - eps).clamp(0, 1)
            else:
                x_adv = x_adv + step * grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
                delta = x_adv - x
                size = delta.flatten(1).norm(dim=1)[:, None, None, None]
                x_adv = (x + delta * torch.where(size > eps, eps / size, 1.0)).clamp(0, 1)
    ours = PGD(eps, step, 6, norm=norm, start="none")(model, x, y)
    torch.testing.assert_close(ours, x_adv, rtol=0, atol=1e-12)


def test_temperature_one_is_pgd_and_scaled_logits_are_pgd_on_logits():
    net, (x, y) = batch_norm_net().double().eval(), batch()
    x = x.double()
    plain = LINF(
        net,
        x,
        y,
        objective=lambda z, labels: F.cross_entropy(z, labels, reduction="none"),
        generator=generator(),
    )
    torch.testing.assert_close(
        temperature_pgd(LINF, 1.0)(net, x, y, generator=generator()), plain, rtol=0, atol=1e-12
    )

    class Scaled(nn.Module):
        def forward(self, images):
            return 16 * net(images)

    scaled = temperature_pgd(LINF, 16.0)(Scaled(), x, y, generator=generator())
    assert torch.equal(scaled, LINF(net, x, y, generator=generator()))


def test_a_falling_temperature_has_one_for_each_step():
    net, (x, y) = batch_norm_net().double().eval(), batch()
    x = x.double()
    still = falling_temperature(LINF, 0.5, 0.5)
    assert isinstance(still, FallingTemperature)
    fixed = temperature_pgd(LINF, 0.5)(net, x, y, generator=generator())
    assert torch.equal(still(net, x, y, generator=generator()), fixed)

    by_hand = uniform_start(x, EPS, "Linf", generator())
    for temperature in (8.0, 4.0, 2.0, 1.0, 0.5):
        leaf = by_hand.detach().requires_grad_()
        loss = F.cross_entropy(net(leaf) / temperature, y, reduction="sum")
        step = LINF.step_size * torch.autograd.grad(loss, leaf)[0].sign()
        by_hand = project(leaf.detach() + step, x, EPS, "Linf")
    fallen = falling_temperature(LINF, 8.0, 0.5)(net, x, y, generator=generator())
    torch.testing.assert_close(fallen, by_hand, rtol=0, atol=1e-12)
    assert falling_temperature(LINF, 8.0, 0.5).towards_the_nearest(3).last == 0.5


@pytest.mark.parametrize(
    "fault", [{"first": 0.1, "last": 1.0}, {"last": 0.0}, {"objective": Margin()}]
)
def test_a_temperature_falls_above_zero_and_in_the_cross_entropy(fault):
    with pytest.raises(ValueError, match="a falling temperature is that of the cross-entropy"):
        replace(falling_temperature(LINF, 10.0, 0.1), **fault)
    attack, (x, y) = falling_temperature(LINF, 10.0, 0.1), batch()
    with pytest.raises(ValueError, match="not Margin"):
        attack(batch_norm_net(), x, y, objective=Margin())


@given(st.floats(0.05, 20.0), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_safe_cross_entropy_is_cross_entropy_under_softplus(temperature, seed):
    logits = torch.randn(6, 4, generator=generator(seed), dtype=torch.float64)
    y = torch.arange(6) % 4
    value = F.softplus(CrossEntropy(temperature)(logits, y))
    torch.testing.assert_close(value, F.cross_entropy(logits / temperature, y, reduction="none"))


def test_saturated_logits_keep_a_gradient():
    net, (x, y) = linear_net(), batch()
    with torch.no_grad():
        net[1].weight.mul_(1e5)
        y = net(x).argmax(1)
    x.requires_grad_()
    (plain,) = torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), x)
    (safe,) = torch.autograd.grad(CrossEntropy()(net(x), y).sum(), x)
    assert (plain == 0).all()
    assert (safe.flatten(1).abs().amax(1) > 0).all()


def test_low_temperature_ascends_the_margin():
    logits = (
        torch.stack([torch.randperm(5, generator=generator(i)) for i in range(20)])
        .double()
        .requires_grad_()
    )
    y = torch.arange(20) % 5
    (cold,) = torch.autograd.grad(0.01 * CrossEntropy(0.01)(logits, y).sum(), logits)
    (margin,) = torch.autograd.grad(Margin()(logits, y).sum(), logits)
    torch.testing.assert_close(cold, margin, rtol=0, atol=1e-6)
    assert ((Margin()(logits, y) > 0) == (logits.argmax(1) != y)).all()


def test_kl_is_the_formula_and_survives_underflow():
    a, b = torch.randn(2, 7, 4, generator=generator(), dtype=torch.float64)
    p, q = a.softmax(1), b.softmax(1)
    torch.testing.assert_close(kl_divergence(a, b), (p * (p / q).log()).sum(1))
    torch.testing.assert_close(KLFrom(a)(b, torch.zeros(7)), kl_divergence(a, b))
    extreme = torch.tensor([[300.0, 0.0], [0.0, 300.0]], requires_grad=True)
    kl_divergence(extreme, extreme.detach().flip(1)).sum().backward()
    assert extreme.grad.isfinite().all()


def test_linear_model_is_beaten_exactly_where_it_can_be():
    """On a linear two-class model the L-inf radius is (z_y - z_j) / |w_y - w_j|_1 while the box
    does not bind.
    """
    torch.manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 2)).double()
    x = 0.3 + 0.4 * batch(200)[0].double()
    weight, z = net[1].weight, net(x)
    y = z.argmax(1)
    radius = ((z.amax(1) - z.amin(1)) / (weight[0] - weight[1]).abs().sum()).detach()
    assert radius.max() < 0.29  # the box does not bind
    for factor, broken in ((0.999, False), (1.001, True)):
        x_adv = PGD(1.0, 1.0, 1)(
            net, x, y, eps=radius * factor, step_size=2 * radius, generator=generator()
        )
        assert ((net(x_adv).argmax(1) != y) == broken).all()


def test_restarts_only_help():
    model, (x, y) = batch_norm_net().eval(), batch(64)
    weak = PGD(0.02, 0.02, 1)
    one = weak(model, x, y, generator=generator(5))
    many = replace(weak, restarts=6)(model, x, y, generator=generator(5))
    wrong = [(model(images).argmax(1) != y) for images in (one, many)]
    assert not (wrong[0] & ~wrong[1]).any()
    assert (Margin()(model(many), y).mean()) > Margin()(model(one), y).mean()


@given(st.integers(0, 1000), st.sampled_from(["Linf", "L2"]), st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_projection_and_start_lie_in_ball_and_box(seed, norm, eps):
    x = torch.rand(4, 1, 3, 3, generator=generator(seed), dtype=torch.float64)
    far = x + 5 * torch.randn(x.shape, generator=generator(seed + 1), dtype=torch.float64)
    for point in (project(far, x, eps, norm), uniform_start(x, eps, norm, generator(seed))):
        assert (distance(point, x, norm) <= eps + 1e-12).all()
        assert point.min() >= 0
        assert point.max() <= 1
    once = project(far, x, eps, norm)
    torch.testing.assert_close(project(once, x, eps, norm), once, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(0.1, 0.1, norm="L3"), "norm is one of Linf, L2, L1, not 'L3'"),
        (lambda: PGD(0.1, 0.1, start="here"), "start is one of"),
        (lambda: PGD(0.1, 0.1, batch_norm="off"), "batch_norm is one of"),
        (lambda: PGD(0.1, 0.1, restarts=0), "restarts >= 1"),
        (lambda: CrossEntropy(0.0), "temperature must be above 0"),
        (
            lambda: LINF(linear_net(), *batch(), eps=torch.ones(5)),
            r"tensor of shape \(12,\), not \(5,\)",
        ),
    ],
)
def test_bad_settings_get_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_train_mode_normalises_by_the_batch_and_writes_nothing():
    model, (x, _) = batch_norm_net(), batch()
    model[3] = nn.Identity()
    before = copy.deepcopy(model.state_dict())
    with frozen(model, "train"):
        inside = model(x)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(inside, model(x))  # train mode proper gives the same output ...
    assert not torch.equal(before["1.running_mean"], model[1].running_mean)  # ... but does write


def test_without_a_generator_a_call_repeats_and_the_global_state_stays():
    model, (x, y) = batch_norm_net().eval(), batch()
    state = torch.get_rng_state()
    assert torch.equal(LINF(model, x, y), LINF(model, x, y))
    assert torch.equal(torch.get_rng_state(), state)
