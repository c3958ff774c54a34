"""DAFA, Tian et al.'s changes, CODAT and FAAL: losses as formulas, worst distributions against
SciPy, fitted biases.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from crat.attacks import PGD
from crat.attacks.decision import LogitBias
from crat.config import ConfigError
from crat.defenses import ClassStats, Task, codat, faal
from crat.defenses.codat import CODAT
from crat.defenses.dafa import DAFA, class_weights
from crat.defenses.faal import FAAL
from crat.defenses.tian2021 import Tian2021, fit_bias

K, BETA = 3, 4.0
ATTACK = PGD(0.1, 0.03, 3)
METHODS = [
    DAFA(ATTACK, "trades", beta=BETA),
    DAFA(ATTACK, "pgd_at"),
    DAFA(ATTACK, "pgd_at", unweighted_step=True),
    Tian2021(ATTACK),
    Tian2021(ATTACK, "temperature"),
    CODAT(ATTACK, "pgd_at", 0.4),
    CODAT(ATTACK, "trades", 0.4, BETA),
    *(FAAL(ATTACK, base, 0.3, BETA, warmup=0) for base in ("pgd_at", "trades", "mart")),
]
each = pytest.mark.parametrize(
    "method", METHODS, ids=lambda m: f"{type(m).__name__}-{list(vars(m).values())[1]}"
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, K)
    return nn.Sequential(*layers).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(10, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 0, 0, 1, 2, 0, 0, 0])


def prepared(method, n_classes=K):
    method.state.clear()
    method.prepare(Task(torch.ones(n_classes), (1, 6, 6), 11))
    return method


def written_out(method, model, x, x_adv, y):
    """Each paper's loss in probabilities and plain logarithms; class-wise means by loops."""
    rows = torch.arange(len(y))
    q = model(x_adv).softmax(1)
    name, base = type(method).__name__, getattr(method, "base", "pgd_at")
    if name == "Tian2021" and method.form == "temperature":
        z = model(x_adv) / method.state["temperature"].double()[y][:, None]
        return -z.softmax(1)[rows, y].log().mean()
    adversarial = -q[rows, y].log()
    if base == "pgd_at":
        clean, rest = adversarial, 0 * adversarial
    else:
        p = model(x).softmax(1)
        clean, rest = -p[rows, y].log(), BETA * (p * (p / q).log()).sum(1)
    if base == "mart":
        others = torch.stack(
            [q[i, [k for k in range(K) if k != y[i]]].max() for i in range(len(y))]
        )
        clean, rest = adversarial - (1.0001 - others).log(), rest * (1.0000001 - p[rows, y])
    if name in ("DAFA", "Tian2021"):
        return (method.state["weight"].double()[y] * clean + rest).mean()
    present = [k for k in range(K) if (y == k).any()]
    means = torch.stack([(clean + rest)[y == k].mean() for k in present])
    if name == "CODAT":  # the closed form; rho is small enough here
        return means.mean() + method.rho**0.5 * means.std(correction=0)
    margin = torch.stack(
        [q[i, [k for k in range(K) if k != y[i]]].max() - q[i, y[i]] for i in range(len(y))]
    ).detach()
    gain = np.array([margin[y == k].sum().item() for k in range(K)])
    weights = torch.tensor(best_in(gain, lambda p: method.radius + np.log(K * p).mean()))
    return K * (weights[y] * (clean + rest)).mean()


def best_in(gain, inside):
    """The p on the simplex with inside(p) >= 0 that maximises gain @ p, by SciPy."""
    size, scale = len(gain), max(np.ptp(gain), 1e-12)
    found = minimize(
        lambda p: -(gain @ p) / scale,
        np.ones(size) / size,
        jac=lambda p: -gain / scale,
        bounds=[(1e-9, 1)] * size,
        constraints=[{"type": "eq", "fun": lambda p: p.sum() - 1}, {"type": "ineq", "fun": inside}],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return found.x


@each
def test_loss_is_the_formula_with_its_whole_gradient(method, model, batch):
    x, y = batch
    method = prepared(method)
    for name in {"weight", "temperature"} & method.state.keys():
        method.state[name] = torch.tensor([0.5, 1.0, 1.5])
    x_adv = method.craft(model.train(), x, y, generator=torch.Generator().manual_seed(1))
    loss, stats = method.loss(model, x, x_adv, y)
    expected = written_out(method, model, x, x_adv, y)
    within = 1e-6 if isinstance(method, FAAL) else 1e-10  # SciPy's own accuracy
    torch.testing.assert_close(loss, expected, rtol=within, atol=0)
    pairs = (
        torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        for value in (loss, expected)
    )
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=100 * within, atol=10 * within)
    torch.testing.assert_close(stats.loss.sum() / len(y), loss.detach())


@each
def test_absent_classes_and_warm_up_scale(method, model, batch):
    """A batch of one class out of five: finite loss and gradient, images within half of eps,
    same draw, same images.
    """
    x, _ = batch
    y = torch.zeros(len(x), dtype=torch.long)
    model[-1] = nn.Linear(64, 5).double()
    method = prepared(method, 5)
    images = [
        method.craft(model, x, y, scale=0.5, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert torch.equal(*images)
    assert (images[0] - x).abs().max() <= 0.05 + 1e-6
    loss, stats = method.loss(model, x, images[0], y)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    method.epoch_end(stats, None)
    assert all(value.isfinite().all() for value in method.state.values())


def statistics(soft, n, robust=None):
    n = torch.tensor(n, dtype=torch.float64)
    empty, soft = torch.zeros_like(n), torch.tensor(soft, dtype=torch.float64)
    robust = empty if robust is None else torch.tensor(robust, dtype=torch.float64)
    return ClassStats(n, empty, robust, empty, empty, empty, soft, soft)


def test_dafa_moves_once_at_the_end_of_its_warm_up_by_algorithm_2():
    """S = [[.4 .5 .1] [.2 .7 .1] [0 .3 .7]] by hand: 0 gains S_01 S_11 + S_02 S_22, which 1 and
    2 pay; 1 equals 2.
    """
    dafa = prepared(DAFA(ATTACK, lam=2.0))  # 70 of 110: the 7th of 11 epochs
    soft = [[4.0, 5.0, 1.0], [4.0, 14.0, 2.0], [0.0, 3.0, 7.0]]
    for epoch in range(1, 12):
        dafa.epoch_end(statistics(soft, [10, 20, 10]), None)
        assert epoch >= 7 or dafa.state["weight"].tolist() == [1, 1, 1]
        soft = [[10.0, 0.0, 0.0]] * 3 if epoch >= 7 else soft
    w = torch.tensor(
        [1 + 2 * (0.5 * 0.7 + 0.1 * 0.7), 1 - 2 * 0.5 * 0.7, 1 - 2 * 0.1 * 0.7], dtype=torch.float64
    )
    torch.testing.assert_close(dafa.state["weight"], w)
    torch.testing.assert_close(dafa.state["eps"], 0.1 * w)
    torch.testing.assert_close(dafa.state["step_size"], 0.03 * w)
    similarity = torch.tensor(
        [[0.4, 0.5, 0.1], [0.2, 0.7, 0.1], [0.0, 0.3, 0.7]], dtype=torch.float64
    )
    seen = torch.tensor([True, True, True])
    # the code: equals pay each other
    ties = torch.tensor([0.0, 2 * 0.3 * 0.7, 2 * 0.1 * 0.7], dtype=torch.float64)
    torch.testing.assert_close(
        class_weights(similarity, seen, 2.0, ties_lose=True), (w - ties).clamp_min(0)
    )
    alone = class_weights(similarity, torch.tensor([True, False, True]), 1.0)
    torch.testing.assert_close(alone, torch.tensor([1.07, 1, 0.93], dtype=torch.float64))


def test_dafa_class_wise_margins_reach_the_attack(model, batch):
    x, y = batch
    for base in ("trades", "pgd_at"):
        dafa = prepared(DAFA(PGD(0.1, 0.03, 5, start="gaussian"), base))
        dafa.take(torch.tensor([0.0, 0.5, 1.5]))
        moved = (dafa.craft(model, x, y) - x).abs().amax((1, 2, 3))
        assert moved[y == 0].max() < 1e-9
        assert 0.04 < moved[y == 1].max() <= 0.05 + 1e-8 < 0.1 < moved[y == 2].max() <= 0.15 + 1e-8


def test_dafas_second_step_ends_within_the_common_eps(model, batch):
    x, y = batch
    dafa = prepared(DAFA(PGD(0.1, 0.03, 5, start="gaussian"), "pgd_at", unweighted_step=True))
    dafa.take(torch.tensor([0.0, 0.5, 1.5]))
    moved = (dafa.craft(model, x, y) - x).abs().amax((1, 2, 3))
    # one common step from a margin of 0
    assert 0.029 < moved[y == 0].max() <= 0.03 + 1e-9 < moved.max() <= 0.1 + 1e-9


@pytest.mark.parametrize("form", ["weight", "temperature"])
def test_tians_factor_rises_for_the_most_vulnerable_class_only(form):
    method = prepared(Tian2021(ATTACK, form, rate=0.2, limit=1.3))
    soft = [[0.0] * 3] * 3
    train, valid = (
        statistics(soft, [10, 10, 10], [1, 9, 9]),
        statistics(soft, [10, 10, 0], [8, 2, 0]),
    )
    method.epoch_end(train, valid)  # validation decides: class 1; class 2 is absent there
    factor = torch.tensor([1, 1.2, 1]) / (3.2 / 3)
    torch.testing.assert_close(method.state[form], factor if form == "weight" else 1 / factor)
    method.epoch_end(train, None)  # class 0
    second = factor * torch.tensor([1.2, 1, 1])
    second /= second.mean()
    torch.testing.assert_close(method.state[form], second if form == "weight" else 1 / second)
    for _ in range(30):
        method.epoch_end(train, None)
    values = method.state[form] if form == "weight" else 1 / method.state[form]
    assert values.mean().item() == pytest.approx(1)
    assert values.max() <= 1.3 + 1e-6


@given(st.integers(0, 10**6), st.integers(2, 6))
@settings(max_examples=6, deadline=None)
def test_fit_bias_never_lowers_the_worst_class(seed, n_classes):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, n_classes, (60,), generator=generator)
    z = torch.randn(60, n_classes, generator=generator) + 2 * torch.eye(n_classes)[y]
    z[:, 0] += 1  # a class that takes the others' images
    bias = fit_bias(z, y, rounds=25)
    assert torch.equal(bias, fit_bias(z, y, rounds=25))
    limited = fit_bias(z, y, rounds=25, max_drop=0.0)

    def worst_and_mean(b):
        recall = [((z + b).argmax(1) == y)[y == k].double().mean() for k in y.unique()]
        return min(recall), sum(recall) / len(recall)

    assert worst_and_mean(bias)[0] >= worst_and_mean(0)[0]
    assert worst_and_mean(limited)[0] >= worst_and_mean(0)[0]
    assert worst_and_mean(limited)[1] >= worst_and_mean(0)[1] - 1e-6
    assert bias.mean().abs() < 1e-5


def test_fit_bias_lifts_a_class_that_loses_by_an_offset_and_the_attack_sees_it(model):
    z = torch.tensor([[1.0, 0.6], [1.0, 0.7], [1.0, 0.9], [1.0, 0.1], [1.0, 0.2]])
    y = torch.tensor([1, 1, 1, 0, 0])
    bias = fit_bias(z, y)
    assert ((z + bias).argmax(1) == y).all()
    with pytest.raises(ValueError, match="logits"):
        fit_bias(z[:0], y[:0])
    x = torch.rand(4, 1, 6, 6, dtype=torch.float64)
    b, t = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([1.0, 2.0, 0.5])
    biased = LogitBias(model.eval(), b, t)
    torch.testing.assert_close(biased(x), model(x) / t + b)
    x.requires_grad_()
    (ours,) = torch.autograd.grad(biased(x)[:, 1].sum(), x)
    (plain,) = torch.autograd.grad(model(x)[:, 1].sum() / 2, x)
    torch.testing.assert_close(ours, plain)
    assert "bias" not in biased.state_dict()
    for wrong in ((b[None], None), (b, t[:2]), (b, 0 * t)):
        with pytest.raises(ValueError, match=r"bias|temperatures"):
            LogitBias(model, *wrong)


gains = st.lists(st.floats(-3, 3, width=16), min_size=2, max_size=7)


@given(gains, st.floats(0.01, 3))
@settings(max_examples=12, deadline=None)
def test_faals_distribution_is_the_best_in_the_kl_ball(gain, radius):
    a = torch.tensor(gain, dtype=torch.float64)
    p = faal.worst_distribution(a, radius).numpy()
    assert p.sum() == pytest.approx(1)
    assert -np.log(len(p) * p).mean() <= radius + 1e-9
    best = best_in(a.numpy(), lambda q: radius + np.log(len(q) * q).mean())
    assert a.numpy() @ p >= a.numpy() @ best - 1e-5
    single = faal.worst_distribution(a.float(), radius)
    torch.testing.assert_close(single, torch.tensor(p).float(), rtol=0, atol=1e-4)


@given(gains, st.floats(0, 8))
@settings(max_examples=12, deadline=None)
def test_codats_distribution_is_the_best_in_the_chi_square_ball(loss, rho):
    losses = torch.tensor(loss, dtype=torch.float64)
    k = len(loss)
    p = codat.worst_distribution(losses, torch.ones(k, dtype=torch.bool), rho).numpy()
    assert p.sum() == pytest.approx(1)
    assert p.min() >= 0
    assert k * ((p - 1 / k) ** 2).sum() <= rho + 1e-9
    best = best_in(losses.numpy(), lambda q: rho - k * ((q - 1 / k) ** 2).sum())
    assert losses.numpy() @ p >= losses.numpy() @ best - 1e-5


def test_closed_forms_by_hand():
    """chi^2: p = (1 + sqrt(rho) (L - Lbar) / sigma) / K; an absent class; equals at the edge.
    KL: two classes.
    """
    chi, kl, ones = (
        codat.worst_distribution,
        faal.worst_distribution,
        torch.ones(3, dtype=torch.bool),
    )
    for loss, present, rho, p in (
        ([1.0, 2.0, 3.0], ones, 0.24, [(1 - 0.6) / 3, 1 / 3, (1 + 0.6) / 3]),
        ([1.0, 9.0, 3.0], torch.tensor([True, False, True]), 0.25, [0.25, 0.0, 0.75]),
        ([1.0, 1.0, 1.0], ones, 0.5, [1 / 3] * 3),
        ([1.0, 2.0, 2.0], ones, 2.0, [0.0, 0.5, 0.5]),
    ):
        torch.testing.assert_close(chi(torch.tensor(loss), present, rho), torch.tensor(p))
    p = kl(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.5)
    # the ball is used up
    torch.testing.assert_close(-(2 * p).log().mean(), torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(kl(torch.ones(4), 0.5), torch.full((4,), 0.25))


def test_faal_trains_its_base_during_the_warm_up(batch, model):
    x, y = batch
    method, z, seen = prepared(FAAL(ATTACK)), model(x).detach(), []
    for _ in range(11):
        seen.append(
            torch.equal(method.distribution(z, y), torch.full((K,), 1 / K, dtype=torch.float64))
        )
        method.epoch_end(statistics([[0.0] * 3] * 3, [1, 1, 1]), None)
    assert seen == [True] * 5 + [False] * 6
    assert prepared(FAAL(ATTACK, radius=0.0, warmup=0)).distribution(z, y) == pytest.approx(
        [1 / 3] * 3
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (DAFA(ATTACK, "fat"), "base of dafa is one of trades, pgd_at, not 'fat'"),
        (DAFA(ATTACK, warmup=0), "warmup of dafa is at least 1"),
        (Tian2021(ATTACK, "bias"), "form of tian2021 is one of weight, temperature"),
        (CODAT(ATTACK, rho=-1.0), "rho of codat is at least 0"),
        (FAAL(ATTACK, radius=-0.1), "radius of faal is between 0 and 50"),
        (FAAL(ATTACK, "he"), "base of faal is one of"),
    ],
)
def test_a_wrong_setting_gets_one_line(wrong, says):
    with pytest.raises(ConfigError, match=says):
        prepared(wrong)
