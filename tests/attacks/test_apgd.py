"""APGD on linear models, where the truth is known, in every batch, and at its edges."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from crat.attacks import apgd
from crat.attacks.apgd import APGD, apgd_t
from crat.attacks.frozen import frozen
from crat.attacks.hunt import Hunt, pursue
from crat.attacks.noise import PerImage
from crat.attacks.threat import NORMS, budget, size

EPS = {"Linf": 0.05, "L2": 0.3, "L1": 1.5}
KINDS = {
    "ce": lambda eps, norm: APGD(eps, norm, steps=15),
    "dlr-restarts": lambda eps, norm: APGD(eps, norm, "dlr", steps=10, restarts=2),
    "t": lambda eps, norm: apgd_t(eps, norm, steps=10),
    "t-ce": lambda eps, norm: APGD(eps, norm, steps=10, targets=2),
    "eot": lambda eps, norm: APGD(eps, norm, steps=8, eot=2),
}
ATTACKS = {
    f"{kind}-{norm}": make(EPS[norm], norm) for kind, make in KINDS.items() for norm in NORMS
}
ATTACKS["large-L1"] = APGD(EPS["L1"], "L1", "dlr", steps=15, larger_radii=True)


def conv_net(seed=0, classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = [
            nn.Conv2d(2, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.Flatten(),
        ]
        return nn.Sequential(*body, nn.Linear(8 * 36, classes)).eval()


def linear_net(classes, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(72, classes)).double()


def images(n=16, seed=0):
    return torch.rand(n, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def predicted(net, x):
    with torch.no_grad():
        return net(x).argmax(1)


class Watched(nn.Module):
    """Keeps the images of every pass that asks for a gradient."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seen = net, []

    def forward(self, x):
        if x.requires_grad:
            self.seen.append(x.detach().clone())
        return self.net(x)


@pytest.fixture(params=ATTACKS)
def attack(request):
    return ATTACKS[request.param]


def test_ball_box_model_and_random_state(attack):
    net, x = conv_net().train(), images()
    y = predicted(copy.deepcopy(net).eval(), x)
    before, modes, state = (
        copy.deepcopy(net.state_dict()),
        [m.training for m in net.modules()],
        torch.get_rng_state(),
    )
    eps_of_class = attack.eps * torch.tensor([0.0, 0.5, 1.0, 1.0, 0.5])
    x_adv = attack(net, x, y, eps=eps_of_class[y])
    assert torch.equal(attack(net, x, y, eps=eps_of_class[y]), x_adv)
    moved = size(x_adv - x, attack.norm)
    assert (moved <= eps_of_class[y] * (1 + 1e-5)).all()
    assert (moved[y != 0] > 0).all()
    assert torch.equal(x_adv[y == 0], x[y == 0])
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(attack(net, x, y, eps=0.0), x)
    assert eval(repr(attack)) == attack
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_ends_in_the_target_that_was_asked_for(attack):
    net, x = conv_net(), images(12)
    y = predicted(net, x)
    target = (y + 1 + torch.arange(12) % 4) % 5
    x_adv = attack(net, x, y, eps=20 * attack.eps, target=target)
    assert (predicted(net, x_adv) == target).float().mean() > 0.9


def test_each_step_is_one_pass_each_way():
    net, x = Watched(conv_net()), images(4)
    y = predicted(net, x)
    for attack, passes in (
        (APGD(1e-4, steps=7), 8),
        (APGD(1e-4, steps=7, eot=3), 24),
        (APGD(1e-4, "L1", steps=10, larger_radii=True), 13),
        (apgd_t(1e-4, steps=7), 8 * 4),
    ):
        net.seen.clear()
        attack(net, x, y)
        assert len(net.seen) == passes


DUAL = {"Linf": 1, "L2": 2, "L1": float("inf")}


@pytest.mark.parametrize(
    ("classes", "attack", "enough"),
    [
        (2, APGD(1.0, "Linf", steps=40), 1.01),
        (2, APGD(1.0, "L2", steps=40), 1.01),
        # the sparsity is found roughly; from larger radii, finely
        (2, APGD(1.0, "L1", steps=40), 1.2),
        (2, APGD(1.0, "L1", steps=40, larger_radii=True), 1.01),
        (4, apgd_t(1.0, "Linf", steps=40), 1.01),
        (4, apgd_t(1.0, "L2", steps=40), 1.01),
        (4, apgd_t(1.0, "L1", steps=40), 1.2),
    ],
    ids=str,
)
def test_linear_models_break_exactly_beyond_their_radius(classes, attack, enough):
    """The distance to class j is (z_y - z_j) over the dual norm of w_y - w_j while the box does
    not bind.
    """
    net, x = linear_net(classes), 0.3 + 0.4 * images(40).double()
    z, weight = net(x).detach(), net[1].weight.detach()
    y = z.argmax(1)
    duals = (weight[y][:, None] - weight[None]).norm(p=DUAL[attack.norm], dim=2)
    radius = ((z.amax(1, keepdim=True) - z) / duals).scatter(1, y[:, None], float("inf")).amin(1)
    assert (predicted(net, attack(net, x, y, eps=0.999 * radius)) == y).all()
    near = radius < 0.29 / enough  # here the box does not bind, in any norm
    assert near.sum() > 10
    assert (
        predicted(net, attack(net, x[near], y[near], eps=enough * radius[near])) != y[near]
    ).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_batch_decides_nothing(norm):
    net, x, ids = conv_net().double(), images(60, seed=4).double(), torch.arange(60) + 1000
    y, attack = predicted(net, x), APGD(EPS[norm], norm, "dlr", steps=12)
    together = attack(net, x, y, generator=PerImage(1, ids))
    alone = torch.cat(
        [attack(net, x[[i]], y[[i]], generator=PerImage(1, ids[[i]])) for i in range(60)]
    )
    verdicts = [predicted(net, x_adv) == y for x_adv in (together, alone)]
    assert 0.05 < verdicts[0].float().mean() < 0.95
    assert torch.equal(*verdicts)
    assert ((together - alone).flatten(1).abs().amax(1) < 1e-4).float().mean() > 0.9


@pytest.mark.parametrize("name", ["ce-Linf", "dlr-restarts-L2", "t-L1", "large-L1", "t-Linf"])
def test_leaving_early_changes_no_verdict_and_saves_passes(name):
    net, x, attack = conv_net().double(), images(60, seed=6).double(), ATTACKS[name]
    y, broken, cost = predicted(net, x), [], []
    for every in (0, 4, 1):
        watched, hunt = Watched(net), Hunt(net, x, y, every=every)
        with frozen(watched):
            pursue(
                attack, watched, hunt, x, y, budget(attack.eps, x), PerImage(2, torch.arange(60))
            )
        assert torch.equal(predicted(net, hunt.x_adv) != y, hunt.broken)
        assert (size(hunt.x_adv - x, attack.norm) <= attack.eps * (1 + 1e-9)).all()
        broken.append(hunt.broken)
        cost.append(sum(len(seen) for seen in watched.seen))
    assert 0 < broken[0].sum() < 60
    assert torch.equal(broken[0], broken[1])
    assert torch.equal(broken[0], broken[2])
    assert cost[0] > cost[1] > cost[2]


def test_a_run_stops_when_all_have_left():
    net, x = Watched(conv_net()), images(8)
    hunt = Hunt(net, x, predicted(net, x), every=1)
    with frozen(net):
        pursue(
            APGD(1.0, steps=50), net, hunt, x, hunt.y, budget(1.0, x), PerImage(0, torch.arange(8))
        )
    assert hunt.broken.all()
    assert len(net.seen) < 50


@pytest.mark.parametrize("name", ["dlr-restarts-Linf", "t-L2"])
def test_dlr_does_not_see_the_scale_of_logits(name):
    net, x = conv_net().double(), images(60, seed=6).double()
    y, scaled = predicted(net, x), copy.deepcopy(net)
    for parameter in scaled[-1].parameters():
        parameter.data.mul_(10_000)
    broken = [predicted(net, ATTACKS[name](model, x, y)) != y for model in (net, scaled)]
    assert 0 < broken[0].sum() < 60
    assert torch.equal(*broken)


def test_few_classes():
    two, x = linear_net(2), images(6).double()
    y = predicted(two, x)
    with pytest.raises(
        ValueError, match="the DLR loss needs at least 3 classes, the model gives 2"
    ):
        APGD(0.1, loss="dlr")(two, x, y)
    with pytest.raises(
        ValueError, match="the targeted DLR loss needs at least 4 classes, the model gives 3"
    ):
        apgd_t(0.1)(linear_net(3), x, predicted(linear_net(3), x))
    assert len([*APGD(0.1, targets=9, restarts=2).runs(2)]) == 2
    assert len([*apgd_t(0.1).runs(10)]) == 9
    assert (predicted(two, APGD(0.3, targets=9)(two, x, y)) != y).all()


@pytest.mark.parametrize("name", ["ce-Linf", "dlr-restarts-L2", "t-L1"])
def test_constant_models_single_images_and_strange_layouts(name):
    attack, x = ATTACKS[name], images(8)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(72, 5))
    nn.init.zeros_(constant[1].weight)
    x_adv = attack(constant, x, predicted(constant, x))
    assert x_adv.isfinite().all()
    assert (size(x_adv - x, attack.norm) <= attack.eps * (1 + 1e-5)).all()
    net, x = conv_net().double(), x.double()
    y, ids = predicted(net, x), torch.arange(8)
    whole = attack(net, x, y, generator=PerImage(0, ids))
    one = attack(net, x[:1], y[:1], generator=PerImage(0, ids[:1]))
    torch.testing.assert_close(one, whole[:1], rtol=0, atol=1e-4)
    strided = torch.stack([x, x], -1)[..., 0]
    assert not strided.is_contiguous()
    torch.testing.assert_close(
        attack(net, strided, y, generator=PerImage(0, ids)), whole, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
def test_half_precision(norm, dtype):
    net, x = conv_net().to(dtype), images(30).to(dtype)
    y, attack = predicted(net, x), APGD(4 * EPS[norm], norm, steps=20)
    x_adv = attack(net, x, y)
    assert x_adv.dtype == dtype
    assert x_adv.isfinite().all()
    assert (size((x_adv.double() - x.double()), norm) <= attack.eps * 1.02 + 0.004).all()
    assert (predicted(net, x_adv) != y).float().mean() > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "L3"}, "norm is one of Linf, L2, L1, not 'L3'"),
        ({"loss": "margin"}, "loss is one of ce, dlr, not 'margin'"),
        ({"steps": 0}, "not 0, 1, 1 and 0"),
        ({"targets": -1}, "targets at least 0"),
        ({"larger_radii": True}, "larger_radii is for the norm L1, not Linf"),
    ],
)
def test_bad_settings_get_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(APGD(0.1), **changes)


def test_larger_radii_begin_at_three_and_two_times_the_ball(monkeypatch):
    """Normal noise of 192 pixels is longer than every ball: the first start lies on the border
    of the widest.
    """
    climbed = []

    class Noted(apgd.SparseClimb):
        def __init__(self, x, y, start, eps, *rest):
            climbed.append((eps.flatten(), size(start - x, "L1")))
            super().__init__(x, y, start, eps, *rest)

    monkeypatch.setattr(apgd, "SparseClimb", Noted)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double()
    with torch.no_grad():
        net[1].weight.mul_(1e-3)
        net[1].bias.copy_(torch.tensor([9.0, 0.0, 0.0]))  # out of reach: no image leaves
    x, y = torch.full((2, 3, 8, 8), 0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    APGD(4.0, "L1", steps=10, larger_radii=True)(net, x, y)
    assert [eps.tolist() for eps, _ in climbed] == [[12, 12], [8, 8], [4, 4]]
    assert climbed[0][1].tolist() == pytest.approx([12, 12])
    assert all((start <= eps + 1e-9).all() for eps, start in climbed)
