"""APGD held to a plain version of the paper, iterate by iterate, and the L1 projection to a
solver.
"""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from test_apgd import EPS, Watched, conv_net, images, predicted

from crat.attacks.apgd import APGD, windows
from crat.attacks.frozen import frozen
from crat.attacks.hunt import Hunt
from crat.attacks.noise import PerImage
from crat.attacks.objectives import DLR, CrossEntropy
from crat.attacks.threat import NORMS, budget, project_l1, size


def test_checkpoints_are_the_papers():
    assert [at + 1 for at in windows(100, "Linf")] == [22, 41, 57, 70, 80, 87, 93, 99]
    assert windows(100, "L2")[40] == 19
    assert list(windows(100, "L1").items())[:2] == [(3, 4), (7, 4)]
    assert windows(3, "Linf") == {0: 1, 1: 1, 2: 1}


def nearest(point, x, eps, norm):
    """The projection of one image, in L1 by bisection of the threshold."""
    delta = point - x
    if norm == "Linf":
        return torch.max(torch.min(point, x + eps), x - eps).clamp(0, 1)
    if norm == "L2":
        return (x + delta * min(1.0, eps / delta.norm().item())).clamp(0, 1)
    room = torch.where(delta > 0, 1 - x, x)

    def shrunk(threshold):
        return torch.minimum((delta.abs() - threshold).clamp_min(0), room)

    low, high = 0.0, delta.abs().max().item() if shrunk(0.0).sum() > eps else 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if shrunk(middle).sum() > eps else (low, middle)
    return x + delta.sign() * shrunk(high)


OBJECTIVES = {"ce": CrossEntropy(), "dlr": DLR()}


def plain_loss(logits, y, loss):
    if loss == "ce":
        return F.cross_entropy(logits, y, reduction="sum")
    z, (first, second, third) = logits[0], logits[0].sort(descending=True).values[:3]
    return -(z[y[0]] - (second if z[y[0]] == first else first)) / (first - third + 1e-12)


def direction_of(gradient, norm, share):
    if norm != "L1":
        return gradient.sign() if norm == "Linf" else gradient / gradient.norm()
    largest = gradient.abs().flatten().sort().values
    chosen = gradient.sign() * (
        gradient.abs() >= largest[min(floor((1 - share) * len(largest)), len(largest) - 1)]
    )
    return chosen / chosen.abs().sum()


def textbook(iterates, values, gradients, x, eps, norm, rho=0.75):
    """Algorithm 1 for one image (L1: that of 2021): what follows each of the iterates, after the
    history up to it.
    """
    steps = len(iterates) - 1
    checkpoints = range(4, steps + 1, 4) if norm == "L1" else (22, 41, 57, 70, 80, 87, 93, 99)
    step = full_step = eps if norm == "L1" else 2 * eps
    share, changed, last_check, halved, best_then = Fraction(1, 5), x.numel(), 0, True, None
    following, before = [], iterates[0]
    for k in range(steps):
        here, gradient = iterates[k], gradients[k]
        if k in checkpoints:
            best = max(range(k + 1), key=lambda i: values[i])
            if norm == "L1":
                now = int((iterates[best] != x).sum())
                back, changed, share = now / changed < 0.95, now, Fraction(2 * now, 3 * x.numel())
                step = full_step if back else max(step / 1.5, full_step / 10)
            else:
                rises = sum(values[i + 1] > values[i] for i in range(last_check, k))
                back = rises <= rho * (k - last_check) or (not halved and best_then == values[best])
                halved, best_then, last_check = back, values[best], k
                step = step / 2 if back else step
            if back:
                here, gradient = iterates[best], gradients[best]
        z = nearest(here + step * direction_of(gradient, norm, share), x, eps, norm)
        if norm != "L1" and k > 0:
            z = nearest(here + 0.75 * (z - here) + 0.25 * (here - before), x, eps, norm)
        following.append(z)
        # the momentum counts from the last iterate, even where the climb went back to its best
        # point
        before = here
    return following


@pytest.mark.parametrize(
    ("norm", "loss"), [(norm, loss) for norm in NORMS for loss in ("ce", "dlr")]
)
def test_every_iterate_is_the_textbooks(norm, loss):
    """Each from ours before it: over a hundred steps a difference in the last bit would grow as the
    machine has it.

    Of two points near the top the last bit of the value says which is the best: it is the
    objective's own.
    """
    net, x, ids = conv_net().double(), images(3).double(), torch.arange(3) * 7
    y, watched, radii = (
        predicted(net, x),
        Watched(net),
        EPS[norm] * torch.tensor([1.0, 2.0, 4.0]).double(),
    )
    draw = (
        PerImage(5, ids).uniform(2, 6, 6) * 2 - 1
        if norm == "Linf"
        else PerImage(5, ids).normal(2, 6, 6)
    )
    (run,) = APGD(EPS[norm], norm, loss).runs(5)
    with frozen(watched):
        run(watched, x, y, budget(radii, x), PerImage(5, ids), Hunt(net, x, y))
    seen, values, gradients = watched.seen, [], []
    assert len(seen) == 101
    for batch in seen:
        logits = net(batch.requires_grad_())
        losses = torch.stack([plain_loss(logits[i : i + 1], y[i : i + 1], loss) for i in range(3)])
        values.append(OBJECTIVES[loss](logits, y).detach())
        as_plain = F.softplus(values[-1]) if loss == "ce" else values[-1]
        torch.testing.assert_close(as_plain, losses.detach(), rtol=1e-9, atol=1e-12)
        gradients.append(torch.autograd.grad(losses.sum(), batch)[0])
        batch.requires_grad_(False)
    for i, eps in enumerate(radii.tolist()):
        one, noise = x[i : i + 1], draw[i : i + 1].double()
        length = {"Linf": noise.abs().max(), "L2": noise.norm(), "L1": eps}[norm]
        start = nearest(one + eps * noise / length, one, eps, norm).clamp(0, 1)
        torch.testing.assert_close(seen[0][i : i + 1], start, rtol=0, atol=1e-12)
        own = [[batch[i : i + 1] for batch in batches] for batches in (seen, gradients)]
        following = textbook(own[0], [value[i].item() for value in values], own[1], one, eps, norm)
        torch.testing.assert_close(
            torch.stack(own[0][1:]), torch.stack(following), rtol=0, atol=1e-12
        )


@given(
    st.integers(0, 100_000), st.integers(1, 5), st.floats(0, 2.5), st.sampled_from([0.3, 1.0, 3.0])
)
@settings(max_examples=50, deadline=None)
def test_l1_projection_is_the_nearest_point(seed, dims, eps, scale):
    """Against a solver of the quadratic programme: delta = p - q with p, q >= 0, sum(p + q) <=
    eps, in the box.
    """
    draw = np.random.default_rng(seed)
    x, delta = draw.random(dims).round(1), scale * draw.standard_normal(dims).round(2)
    bounds = [(0, room) for room in (*(1 - x), *x)]
    ball = {"type": "ineq", "fun": lambda pq: eps - pq.sum(), "jac": lambda pq: -np.ones(2 * dims)}

    def distance(pq):
        gap = pq[:dims] - pq[dims:] - delta
        return (gap**2).sum(), 2 * np.concatenate([gap, -gap])

    solved = minimize(
        distance,
        np.zeros(2 * dims),
        jac=True,
        bounds=bounds,
        constraints=ball,
        options={"ftol": 1e-12},
    )
    ours = (
        project_l1(torch.tensor(delta).view(1, 1, 1, -1), torch.tensor(x).view(1, 1, 1, -1), eps)
        .flatten()
        .numpy()
    )
    np.testing.assert_allclose(ours, solved.x[:dims] - solved.x[dims:], atol=1e-5)


def test_l1_projection_of_large_images_stays_in_the_ball():
    x, radius = (
        torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.0, 1.0, 300.0]),
    )
    moved = project_l1(
        torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), x, radius.view(3, 1, 1, 1)
    )
    assert torch.equal(moved[0], torch.zeros_like(moved[0]))
    assert ((size(moved, "L1") - radius).abs() <= 1e-5 * radius).all()
