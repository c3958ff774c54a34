"""Square stays inside, keeps what helps, is one algorithm whatever the batch, and does what a
plain version does.
"""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from crat.attacks.hunt import Hunt, pursue
from crat.attacks.noise import PerImage, source
from crat.attacks.objectives import CrossEntropy, Margin
from crat.attacks.search import searcher
from crat.attacks.square import LOSSES, Hills, Square, hill_pairs
from crat.attacks.threat import budget, project, size

LINF = Square(0.1, queries=60, rescale_schedule=True)
SQUARES = {
    "linf": LINF,
    "linf-ce": replace(LINF, loss="ce"),
    "linf-restarts": replace(LINF, queries=20, restarts=3),
    "l2": replace(LINF, eps=0.8, norm="L2"),
    "l1": replace(LINF, eps=3.0, norm="L1"),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def wrong(model, x_adv, y):
    return model(x_adv).argmax(1) != y


def check_inside(x_adv, x, norm, eps):
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert (size(x_adv - x, norm) <= eps * (1 + 1e-5)).all()


@pytest.fixture(params=SQUARES)
def square(request):
    return SQUARES[request.param]


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()]
        return nn.Sequential(*body, nn.Linear(6 * 6 * 6, 4)).eval()


@pytest.fixture
def attacked(net):
    """Images and the classes that the net gives them, so that each has to be moved."""
    x = torch.rand(24, 2, 8, 8, generator=seeded())
    return x, net(x).argmax(1)


def test_stays_in_ball_and_box_and_breaks_some(square, net, attacked):
    x, y = attacked
    x_adv = square(net, x, y)
    check_inside(x_adv, x, square.norm, square.eps)
    assert (size(x_adv - x, square.norm) > 0.5 * square.eps).all()
    assert wrong(net, x_adv, y).float().mean() > 0.2
    assert torch.equal(square(net, x, y), x_adv)
    assert not torch.equal(square(net, x, y, generator=seeded(4)), x_adv)


def test_each_sample_has_its_own_eps(square, net, attacked):
    x, y = attacked
    eps_of_class = square.eps * torch.tensor([0.0, 0.5, 1.0, 2.0])
    x_adv = square(net, x, y, eps=eps_of_class[y])
    check_inside(x_adv, x, square.norm, eps_of_class[y])
    assert (size(x_adv - x, square.norm) >= 0.5 * eps_of_class[y]).all()
    assert torch.equal(square(net, x, y, eps=0.0), x)


def test_moves_towards_the_target(square, net, attacked):
    x, y = attacked
    target = (y + 1) % 4
    x_adv = square(net, x, y, eps=2 * square.eps, target=target)
    reached = net(x_adv).argmax(1) == target
    assert reached.float().mean() > 0.3
    before, after = (-CrossEntropy()(net(images), target) for images in (x, x_adv))
    assert (after > before)[~reached].float().mean() > 0.8


def test_leaves_the_model_and_the_random_state_as_found(square, net, attacked):
    net.train()
    next(net.parameters()).requires_grad_(False)
    state, random_state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    square(net, *attacked)
    assert all(module.training for module in net.modules())
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


# query of 10,000, and how many times smaller than at first the windows' area is then: as published
SCHEDULE = (
    *(
        (0, 1),
        (10, 1),
        (11, 2),
        (50, 2),
        (51, 4),
        (200, 4),
        (201, 8),
        (500, 8),
        (501, 16),
        (1000, 16),
        (1001, 32),
    ),
    *(
        (2000, 32),
        (2001, 64),
        (4000, 64),
        (4001, 128),
        (6000, 128),
        (6001, 256),
        (8000, 256),
        (8001, 512),
    ),
)


def test_the_schedule_is_the_published_one():
    for query, smaller in SCHEDULE:
        side = round((0.8 / smaller) ** 0.5 * 1000)
        assert Square(0.1).side(query, 1000, 1000) == side
        assert (
            Square(0.1, rescale_schedule=True, queries=20_000).side(2 * query, 1000, 1000) == side
        )
        assert Square(1.0, "L2").side(query, 1000, 1000) == side // 2 * 2 + 1  # odd
    queries = (0, 20, 100, 300, 700, 1500, 3000, 5000)
    assert [Square(0.1).side(query, 28, 28) for query in queries] == [25, 18, 13, 9, 6, 4, 3, 2]
    assert [Square(1.0, "L2").side(query, 28, 28) for query in queries] == [
        25,
        19,
        13,
        9,
        7,
        5,
        3,
        3,
    ]
    assert Square(0.1, p_init=1.0).side(0, 4, 100) == 4
    assert Square(0.1).side(9000, 4, 4) == 1
    assert Square(1.0, "L1").side(9000, 2, 2) == 2


def plain_linf(square, net, x, y, noise):
    """The paper's algorithm on one image (C, H, W), with the kernel's draws in its order."""
    channels, height, width = x.shape
    draws = noise.shared_uniform(square.queries, 2 + channels)
    stripes = (noise.uniform(channels, 1, width)[0] < 0.5).float() * 2 - 1
    best = (x + square.eps * stripes).clamp(0, 1)
    margins = [Margin()(net(best[None]), y[None]).item()]
    for query, (u, v, *signs) in enumerate(draws.tolist()):
        side = square.side(query, height, width)
        top, left = int(u * (height - side + 1)), int(v * (width - side + 1))
        trial = best.clone()
        for channel, sign in enumerate(signs):
            trial[channel, top : top + side, left : left + side] += (
                2 * square.eps * (1 if sign < 0.5 else -1)
            )
        trial = torch.minimum(torch.maximum(trial, x - square.eps), x + square.eps).clamp(0, 1)
        margins.append(Margin()(net(trial[None]), y[None]).item())
        if margins[-1] > max(margins[:-1]):
            best = trial
    return best, margins


@torch.no_grad()
def test_the_fast_loop_is_the_plain_one(net, attacked):
    x, y = attacked
    run = next(LINF.runs(4))
    fast = run(net, x, y, budget(LINF.eps, x), PerImage(7, torch.arange(len(x))), Hunt(net, x, y))
    for i in range(3):
        slow, margins = plain_linf(LINF, net, x[i], y[i], PerImage(7, torch.tensor([i])))
        assert max(margins) > margins[0]
        torch.testing.assert_close(fast[i], slow, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_query_on_hills_is_the_authors(norm, channels):
    """Theirs, on the whole image: what both windows hold and what is left go to one window, then
    all is scaled.
    """
    x, eps, power = (
        torch.rand(3, channels, 12, 12, generator=seeded()),
        1.5,
        2 if norm == "L2" else 1,
    )
    search = Hills(x, budget(eps, x), PerImage(1, torch.arange(3)), [5] * 30, norm)

    def mass(delta):
        return (delta.abs() ** power).sum((2, 3), keepdim=True)

    def unit(delta):
        return delta / (mass(delta) ** (1 / power)).clamp_min(1e-12)

    for query in range(30):
        delta = search.image - x
        filled, emptied = search.filled[query], search.emptied[query]
        both = torch.zeros_like(x)
        both[filled] = both[emptied] = 1
        left = (eps**power - mass(delta).sum(1, keepdim=True)).clamp_min(0)
        search.move(query)
        new = unit(search.pairs[query] * search.signs[:, query] + unit(delta[filled]))
        spend = left / channels + mass(delta * both)
        delta[emptied] = 0
        delta[filled] = new * (spend**0.5 if norm == "L2" else spend * channels)
        whole = delta / size(delta, norm).view(-1, 1, 1, 1) * eps
        expected = (x + whole).clamp(0, 1) if norm == "L2" else project(x + delta, x, eps, "L1")
        torch.testing.assert_close(search.image, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("power", [2, 1])
@pytest.mark.parametrize("side", [1, 2, 3, 6, 7])
def test_hills_are_sums_of_growing_rectangles(side, power):
    halves = []
    for sign, height in ((1, side // 2), (-1, side - side // 2)):
        plain = torch.zeros(height, side)
        for k in range(side // 2 + 1):
            rows = slice(max(height // 2 - k, 0), height // 2 + k + 1)
            plain[rows, max(side // 2 - k, 0) : side // 2 + k + 1] += 1 / (k + 1) ** (
                2 if power == 2 else 4
            )
        halves.append(sign * plain / plain.norm(p=power) if height else plain)
    pair = torch.cat(halves)
    upright, turned = hill_pairs(side, power, torch.device("cpu"))
    torch.testing.assert_close(upright, pair / pair.norm(p=power))
    assert torch.equal(turned, upright.mT)


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_the_loss_never_gets_worse_and_what_is_found_stays(loss, net, attacked):
    x, y = attacked
    seen = []

    class Watching(Hunt):
        def leave(self, step, found, x_adv, rarer=1):
            logits = net(x_adv)
            seen.append((LOSSES[loss](logits, y[self.index]), self.hit(logits), found.clone()))

    hunt = Watching(net, x, y)
    with torch.no_grad():
        pursue(replace(LINF, loss=loss), net, hunt, x, y, budget(LINF.eps, x), source(None, x))
    assert len(seen) == LINF.queries
    for (value, hit, found), (later, hit_later, _) in pairwise(seen):
        assert torch.equal(hit, found)
        assert (hit_later | ~hit).all()
        assert (later >= value - 1e-5)[hit == hit_later].all()
    assert 0 < seen[0][1].sum() < seen[-1][1].sum() == hunt.broken.sum()


@pytest.mark.parametrize(("norm", "enough"), [("Linf", 2), ("L2", 2), ("L1", 3)])
def test_on_a_linear_model_the_radius_is_the_truth(norm, enough):
    """No success below |margin| / dual norm of the weights, most somewhat above; blocks of
    weights, as hills are.
    """
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
    weight = torch.randn(3, 3, generator=seeded(1)).kron(torch.ones(4, 4)).flatten()
    net[1].weight.data, net[1].bias.data = torch.stack([weight, -weight]) / 2, torch.zeros(2)
    x = 0.5 + 0.02 * (torch.rand(20, 1, 12, 12, generator=seeded(2)) - 0.5)
    y = net(x).argmax(1)
    dual = {"Linf": weight.abs().sum(), "L2": weight.norm(), "L1": weight.abs().max()}[norm]
    radius = -Margin()(net(x), y).detach() / dual
    square = Square(0.0, norm, queries=400, rescale_schedule=True)
    assert not wrong(net, square(net, x, y, eps=0.999 * radius), y).any()
    assert wrong(net, square(net, x, y, eps=enough * radius), y).float().mean() > 0.8


def in_hunt(square, net, x, y, every=0, first=0):
    hunt = Hunt(net, x, y, every=every)
    with torch.no_grad():
        pursue(
            square,
            net,
            hunt,
            x,
            y,
            budget(square.eps, x),
            PerImage(5, first + torch.arange(len(x))),
        )
    return hunt


def test_batch_size_and_leaving_change_nothing(square, net, attacked):
    """In float64. Where hills cancel what was in their window, rounding is left, and is scaled
    up by up to 1e12.
    """
    net, x, y = net.double(), attacked[0].double(), attacked[1]
    whole = in_hunt(square, net, x, y)
    assert 0 < whole.broken.sum() < len(x)
    assert torch.equal(in_hunt(square, net, x, y, every=1).broken, whole.broken)
    singles = [in_hunt(square, net, x[i : i + 1], y[i : i + 1], first=i) for i in range(len(x))]
    assert [bool(h.broken) for h in singles] == whole.broken.tolist()
    strided = square(net, x.mT.contiguous().mT, y, generator=PerImage(5, torch.arange(len(x))))
    assert torch.equal(wrong(net, strided, y), whole.broken)
    apart = [
        size(x_adv - whole.x_adv, "Linf")
        for x_adv in (torch.cat([h.x_adv for h in singles]), strided)
    ]
    assert ((torch.stack(apart) < 10 * 2**-52 / 1e-12 * square.eps).float().mean(1) > 0.8).all()


def test_images_leave_and_the_run_ends_with_the_last(net, attacked):
    sizes = []
    net.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    assert in_hunt(replace(LINF, eps=0.5, queries=600), net, *attacked, every=1).broken.all()
    assert sizes[-1] < len(attacked[0])
    assert len(sizes) < 600


def test_scaled_logits_give_the_same_verdicts(square, net, attacked):
    net, x, y = net.double(), attacked[0].double(), attacked[1]
    scaled = copy.deepcopy(net)
    for parameter in scaled[-1].parameters():
        parameter.data *= 1e4
    verdicts = wrong(scaled, square(scaled, x, y), y)
    if square.loss == "margin":  # cross-entropy is another loss once it saturates
        assert torch.equal(wrong(net, square(net, x, y), y), verdicts)
    assert verdicts.float().mean() > 0.2


@pytest.mark.parametrize("image", [(5, 11), (9, 3), (1, 1), (2, 2)])
def test_one_image_of_any_shape_two_classes_and_a_model_that_says_nothing(square, image):
    x = torch.rand(1, 2, *image, generator=seeded())
    # no more than the box
    square = replace(square, eps=min(square.eps, x.numel() if square.norm == "L1" else 1.0))
    net = nn.Sequential(nn.Flatten(), nn.Linear(x.numel(), 2, bias=False))
    net[1].weight.data = torch.randn(2, x.numel(), generator=seeded())
    check_inside(square(net, x, net(x).argmax(1)), x, square.norm, square.eps)
    net[1].weight.data.zero_()
    check_inside(square(net, x, torch.tensor([0])), x, square.norm, square.eps)
    assert torch.equal(square(net, x, torch.tensor([1])), x), "wrong from the start"


def test_half_precision(square, net, attacked):
    x, y = attacked
    searched = square(searcher(net, x, "bfloat16"), x, y, judge=net)
    check_inside(searched, x, square.norm, square.eps)
    assert wrong(net, searched, y).float().mean() > 0.2
    half = square(net.bfloat16(), x.bfloat16(), y)
    assert half.dtype == torch.bfloat16
    assert (size(half.float() - x.bfloat16().float(), square.norm) <= square.eps * 1.05).all()


def test_errors_say_what_is_allowed():
    for settings in (
        {"norm": "L3"},
        {"loss": "dlr"},
        {"queries": 0},
        {"restarts": 0},
        {"p_init": 0.0},
        {"p_init": 2},
    ):
        with pytest.raises(ValueError, match=r"is one of|at least 1|share of the image"):
            Square(0.1, **settings)
