"""Lower bounds of margins: exact ones by mixed-integer programming, attacks, and hand."""

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from crat.attacks import PGD, AutoAttack, Margin, PerImage, bounds
from crat.attacks.bounds import CROWN, interval_margins
from crat.attacks.logits import AttackError
from crat.config import ModelConfig
from crat.nets.models import build

ROUNDING = 1e-9


def small(seed=0, width=2, side=8):
    """small_cnn with statistics that moved, so that BatchNorm does something."""
    model = build(
        ModelConfig("small_cnn", width=width), 3, (1, side, side), mean=[0.3], std=[0.5], seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.3, 0.3, generator=generator)
            layer.running_var.uniform_(0.3, 2, generator=generator)
            nn.init.uniform_(layer.weight, -1.5, 1.5, generator=generator)
            nn.init.uniform_(layer.bias, -0.3, 0.3, generator=generator)
    return model.eval()


def tiny(seed):
    """A network that a solver can enumerate: a convolution, a pool, two dense layers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 2, 3, stride=2, padding=1, padding_mode="reflect"),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8, 6),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(6, 3),
        ).eval()


def images(n, side, seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, side, side, generator=generator)
    return x, torch.randint(classes, (n,), generator=generator)


def margins(model, x, y):
    """z_y - z_k in float64, inf at k = y."""
    net = bounds.Chain(model, x)
    z = net.logits(x.double())
    return (z.gather(1, y[:, None]) - z).scatter(1, y[:, None], torch.inf)


def exact_margins(model, x, y, eps):
    """The least margins of one image by a solver: each ReLU is a yes or no."""
    dense = []
    shape = x.shape[1:]
    for block in bounds.Chain(model, x).blocks:
        zero = torch.zeros(1, *shape, dtype=torch.float64)
        unit = torch.eye(zero.numel(), dtype=torch.float64).view(-1, *shape)
        bias = block(zero)
        weight = (block(unit) - bias).flatten(1).T.numpy()
        dense.append((weight, bias.flatten().numpy()))
        shape = bias.shape[1:]
    x = x.double().flatten().numpy()
    low, high = (x - eps).clip(0, 1), (x + eps).clip(0, 1)
    least = [low]  # of all variables: pixels, then z >= 0 and the yes or no of each ReLU
    most = [high]
    rows, ends = [], []
    integer = [np.zeros(len(x))]
    start = 0
    for weight, bias in dense[:-1]:
        size, before = weight.shape
        z_low = weight.clip(min=0) @ low + weight.clip(max=0) @ high + bias
        z_high = weight.clip(min=0) @ high + weight.clip(max=0) @ low + bias
        first = sum(map(len, least))
        low, high = z_low.clip(0), z_high.clip(0)
        least += [low, np.zeros(size)]
        most += [high, np.ones(size)]
        integer += [np.zeros(size), np.ones(size)]
        for i in range(size):
            row = np.zeros(first + 2 * size)
            row[first + i] = 1
            row[start : start + before] = -weight[i]
            rows.append(row.copy())  # h >= z
            ends.append((bias[i], np.inf))
            row[first + size + i] = -z_low[i]  # h <= z - l (1 - on)
            rows.append(row.copy())
            ends.append((-np.inf, bias[i] - z_low[i]))
            row[:] = 0  # h <= u on
            row[first + i], row[first + size + i] = 1, -max(z_high[i], 0)
            rows.append(row)
            ends.append((-np.inf, 0))
        start = first
    total = sum(map(len, least))
    matrix = np.array([np.pad(row, (0, total - len(row))) for row in rows])
    weight, bias = dense[-1]
    found = np.full(len(bias), np.inf)
    for k in set(range(len(bias))) - {int(y)}:
        cost = np.zeros(total)
        cost[start : start + weight.shape[1]] = weight[int(y)] - weight[k]
        answer = milp(
            cost,
            integrality=np.concatenate(integer),
            bounds=Bounds(np.concatenate(least), np.concatenate(most)),
            constraints=LinearConstraint(matrix, *np.array(ends).T),
        )
        assert answer.success, answer.message
        found[k] = answer.fun + bias[int(y)] - bias[k]
    return torch.from_numpy(found)


@pytest.mark.parametrize("eps", [0.03, 0.1, 0.4])
def test_bounds_lie_below_the_exact_margins_in_their_order(eps):
    gaps = []
    for seed in range(4):
        model = tiny(seed)
        x, y = images(1, 8, seed)
        exact = exact_margins(model, x, y[0], eps)
        crown = CROWN(eps, 0)(model, x, y)[0]
        ascended = CROWN(eps, 50)(model, x, y)[0]
        assert (interval_margins(eps, model, x, y)[0] <= crown + ROUNDING).all()
        assert (crown <= ascended).all()
        assert (ascended <= exact + 1e-5).all()  # the solver's tolerance
        attack = PGD(eps, eps / 4, 50, objective=Margin())
        adversarial = attack(model, x, y, generator=PerImage(0, torch.arange(1)))
        assert (exact <= margins(model, adversarial, y)[0] + 1e-5).all()
        gaps.append((exact - crown)[exact < torch.inf].max())
    if eps == 0.03:  # where few ReLUs are unstable, the bound is nearly the margin
        assert max(gaps) < 0.02
    if eps == 0.4:
        assert max(gaps) > 0.02


def test_eps_0_is_the_margin():
    model = small()
    x, y = images(6, 8)
    expected = margins(model, x, y)
    for found in (CROWN(0.0)(model, x, y), interval_margins(0.0, model, x, y)):
        assert found.dtype == torch.float64
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eps", [0.01, 0.1])
def test_no_image_in_the_ball_is_below_the_bound(eps):
    model = small()
    x, _ = images(8, 8)
    y = model(x).argmax(1)
    bound = CROWN(eps)(model, x, y)
    generator = torch.Generator().manual_seed(0)
    found = [AutoAttack(eps)(model, x, y, generator=PerImage(0, torch.arange(8))).x_adv]
    found.append(PGD(eps, eps / 4, 40, objective=Margin())(model, x, y, generator=generator))
    for _ in range(200):
        sign = torch.randint(-1, 2, x.shape, generator=generator)
        found.append((x + eps * sign).clamp(0, 1))
    for images_of_the_ball in found:
        assert (bound <= margins(model, images_of_the_ball, y) + 1e-5).all()
    certified = bound.amin(1) > 0
    if eps == 0.01:
        assert certified.any()
    assert (model(found[0]).argmax(1) == y)[certified].all()


def one_pixel(inside, weight, outside, bias):
    """Logits (weight . relu(inside x + outside) + bias, 0) of one pixel x."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, len(inside)), nn.ReLU())
    model.append(nn.Linear(len(inside), 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(inside)[:, None])
        model[1].bias.copy_(torch.tensor(outside))
        model[3].weight.copy_(torch.tensor([weight, [0.0] * len(weight)]))
        model[3].bias.copy_(torch.tensor([bias, 0.0]))
    return model


def by_hand(model, steps=0):
    """The bound of the margin for the pixels in [0.25, 0.75]."""
    x, y = torch.full((1, 1, 1, 1), 0.5).double(), torch.tensor([0])
    return CROWN(0.25, steps)(model, x, y)[0, 1].item()


def test_one_relu_by_hand():
    # its input lies in [-0.2, 0.3]; the chord over it is 0.6 z + 0.12, whose highest value is 0.3
    assert by_hand(one_pixel([1.0], [-1.0], [-0.45], 1.0)) == pytest.approx(0.7)
    # active everywhere: the network is linear, and the bound its least value
    assert by_hand(one_pixel([1.0], [1.0], [0.5], 0.0)) == pytest.approx(0.75)
    # active nowhere
    assert by_hand(one_pixel([1.0], [-1.0], [-0.8], 0.4)) == pytest.approx(0.4)


def test_the_slope_below_by_hand():
    """relu(u) - 0.5 (u + 1) + 0.55, u in [-0.2, 0.3]: |u| / 2 + 0.05, least at u = 0."""
    model = one_pixel([1.0, 1.0], [1.0, -0.5], [-0.45, 0.55], 0.55)
    x, y = torch.full((1, 1, 1, 1), 0.5).double(), torch.tensor([0])
    # intervals: 0 - 0.5 * 1.3 + 0.55
    assert interval_margins(0.25, model, x, y)[0, 1].item() == pytest.approx(-0.1)
    # a = 1, because 0.3 > 0.2: 0.5 u + 0.05 at u = -0.2
    assert by_hand(model) == pytest.approx(-0.05)
    # a = 0.5 leaves 0.05, the exact value
    assert by_hand(model, 60) == pytest.approx(0.05, abs=2e-3)
    # turned round, u in [-0.3, 0.2]: a = 0, and -0.5 u + 0.05 at u = 0.2
    turned = one_pixel([-1.0, 1.0], [1.0, 0.5], [0.45, 0.55], -0.45)
    assert by_hand(turned) == pytest.approx(-0.05)


def test_the_box_counts():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    x, y = torch.full((1, 1, 1, 1), 0.1), torch.tensor([0])
    assert CROWN(0.3)(model, x, y)[0].tolist() == [torch.inf, 0.0]


def test_many_passes_give_what_one_gives(monkeypatch):
    model = small(1)
    x, y = images(2, 8, 1)
    whole = CROWN(0.1)(model, x, y)
    intervals = interval_margins(0.1, model, x, y)
    assert (intervals <= whole).all()
    assert (intervals < whole - 0.1).any()
    monkeypatch.setattr(bounds, "NUMBERS", 700)
    assert torch.allclose(CROWN(0.1)(model, x, y), whole, atol=1e-12)


def test_the_model_is_left_as_it_was():
    model = small().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = images(2, 8)
    found = CROWN(0.05)(model, x, y)
    assert all(layer.training for layer in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not found.requires_grad
    assert torch.equal(found, CROWN(0.05)(model.eval(), x, y))
    with torch.no_grad():
        assert torch.equal(found, CROWN(0.05)(model, x, y))
    assert CROWN(0.05)(model, x[:0], y[:0]).shape == (0, 3)


def hooked():
    model = tiny(0)
    model[0].register_forward_hook(lambda layer, given, answer: 2 * answer)
    return model


def by_the_batch():
    model = tiny(0)
    model[1] = nn.BatchNorm2d(2, track_running_stats=False)
    return model


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (lambda: build("mnist_small_cnn", 3, (1, 28, 28)), "no bound goes through MaxPool2d: it"),
        (lambda: build("preact_resnet18", 3, (1, 8, 8)), "no bound goes through PreActBlock: it"),
        (lambda: build(ModelConfig("small_cnn", head="cosine"), 3, (1, 8, 8)), "CosineHead"),
        (by_the_batch, "no bound goes through BatchNorm2d"),
        (hooked, "no bound goes through Conv2d with hooks"),
    ],
)
def test_what_cannot_be_bounded_is_refused_in_a_line(model, line):
    net = model()
    side = 28 if getattr(net, "name", "") == "mnist_small_cnn" else 8
    x, y = images(2, side)
    with pytest.raises(AttackError, match=line) as refused:
        CROWN(0.1)(net, x, y)
    assert "\n" not in str(refused.value)


def test_bad_input_is_refused():
    x, y = images(2, 8)
    with pytest.raises(AttackError, match="eps in Linf"):
        CROWN(8)(tiny(0), x, y)
    with pytest.raises(AttackError, match="label"):
        CROWN(0.1)(tiny(0), x, y + 5)
    with pytest.raises(AttackError, match=r"images lie in"):
        CROWN(0.1)(tiny(0), x * 255, y)
