"""FRL, WAT, BAT and CFOL: each loss against its formula written out, each class-wise update
against numbers by hand.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crat import data
from crat.attacks import PGD
from crat.config import ConfigError
from crat.defenses import ClassStats, Task
from crat.defenses.bat import BAT
from crat.defenses.cfol import CFOL
from crat.defenses.frl import FRL
from crat.defenses.wat import WAT

K = 3


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, K)
    ).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(9, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(9) % K


def ready(method, *, eps=0.1, step=0.03, steps=3, epochs=8, counts=(30, 20, 10), **options):
    defense = method(
        PGD(eps, step, steps, start=method.start, batch_norm=method.batch_norm), **options
    )
    defense.prepare(Task(torch.tensor(counts), (1, 6, 6), epochs))
    return defense


def sums(n, **known):
    """Statistics of which only some sums are known, the rest NaN."""
    nan = torch.full((K,), float("nan"))
    rest = dict.fromkeys(
        ("clean", "robust", "loss", "clean_loss", "divergence", "confusion", "soft_confusion"), nan
    )
    return ClassStats(
        **{"n": torch.tensor(n), **rest, **{name: torch.tensor(v) for name, v in known.items()}}
    )


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


def agree(model, loss, expected):
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for ours, theirs in zip(gradients(model, loss), gradients(model, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12)


def probabilities(model, *images):
    return [model(x).softmax(1) for x in images]


def cross_entropies(p, y):
    return -p[torch.arange(len(y)), y].log()


def divergences(p, q):
    return (p * (p / q).log()).sum(1)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


# WAT


def test_wat_loss_is_the_formula(model, batch):
    x, y = batch
    wat = ready(WAT, beta=4.0)
    wat.load_state_dict({"weight": numbers(0.5, 1.5, 2.0), "plain_weight": numbers(0.7)[0]})
    x_adv = wat.craft(model.train(), x, y, generator=torch.Generator().manual_seed(1))
    loss, stats = wat.loss(model, x, x_adv, y)
    p, q = probabilities(model, x, x_adv)
    losses = cross_entropies(p, y) + 4 * divergences(p, q)
    expected = (
        sum((numbers(0.5, 1.5, 2.0)[k] * losses[y == k]).sum() for k in range(K)) / 9
        + 0.7 * losses.mean()
    )
    agree(model, loss, expected)
    torch.testing.assert_close(
        stats.loss, torch.stack([losses[y == k].sum() for k in range(K)]).detach()
    )


def test_wat_weighs_by_what_validation_has_cost():
    """Class costs 2 and 0.7, of all images 6.8 / 6; the absent class counts as that."""
    wat = ready(WAT, beta=2.0, eta=1.0)
    assert wat.state["weight"].tolist() == [1, 1, 1]
    valid = sums([2.0, 4.0, 0.0], clean_loss=[2.0, 2.0, 0.0], divergence=[1.0, 0.4, 0.0])
    for epoch in (1, 2):
        wat.epoch_end(valid, valid)
        exponents = [math.exp(epoch * c) for c in (2, 0.7, 6.8 / 6, 6.8 / 6)]
        weights = [K * e / sum(exponents) for e in exponents]
        assert wat.state["weight"].tolist() == pytest.approx(weights[:3], rel=1e-5)
        assert wat.state["plain_weight"].item() == pytest.approx(weights[3], rel=1e-5)
    before = dict(wat.state)
    wat.epoch_end(valid, None)
    wat.epoch_end(valid, sums([0.0] * 3, clean_loss=[0.0] * 3, divergence=[0.0] * 3))
    assert all(torch.equal(before[name], value) for name, value in wat.state.items())


def test_wat_default_rate_is_the_code_s_at_100_epochs():
    assert ready(WAT, epochs=100).rate == pytest.approx(0.1)
    assert ready(WAT, epochs=4).rate == pytest.approx(0.5)


# FRL


@pytest.mark.parametrize("remargin", [False, True])
def test_frl_loss_is_the_formula(remargin, model, batch):
    x, y = batch
    frl = ready(FRL, remargin=remargin)
    u, v = numbers(0.2, 0.5, 0.3), numbers(0.6, 0.3, 0.1)
    frl.load_state_dict({"clean_weight": u, "boundary_weight": v})
    x_adv = frl.craft(model.train(), x, y, generator=torch.Generator().manual_seed(1))
    loss, _ = frl.loss(model, x, x_adv, y)
    p, q = probabilities(model, x, x_adv)
    expected = (u[y] * cross_entropies(p, y)).sum() / u[y].sum()
    expected = expected + 1.5 * (v[y] * divergences(p, q)).sum() / v[y].sum()
    agree(model, loss, expected)


def moved(**options):
    """Clean accuracies 0.9, 0.7, 0.5, robust 0.6, 0.2, 0.4; so the clean errors exceed that of all
    by -0.2, 0, 0.2,

    the boundary errors by 0, 0.2, -0.2.
    """
    frl = ready(FRL, bound=0.1, rate_1=0.5, rate_2=0.4, warmup=2, **options)
    valid = sums([10.0] * 3, clean=[9.0, 7.0, 5.0], robust=[6.0, 2.0, 4.0])
    frl.epoch_end(valid, valid)
    assert frl.state["clean_weight"].tolist() == pytest.approx([1 / 3] * 3)  # the warm-up
    frl.epoch_end(valid, valid)
    return frl, valid


def test_frl_moves_weights_and_margins_by_the_errors_on_validation():
    frl, _ = moved()
    assert frl.state["clean_multiplier"].tolist() == pytest.approx([0, 0, 0.05], abs=1e-6)
    assert frl.state["boundary_multiplier"].tolist() == pytest.approx([0, 0.1, 0], abs=1e-6)
    assert frl.state["clean_weight"].tolist() == pytest.approx(
        [0.95 / 3, 0.95 / 3, 0.95 / 3 + 0.05], abs=1e-6
    )
    assert frl.state["boundary_weight"].tolist() == pytest.approx([0.3, 0.4, 0.3], abs=1e-6)
    assert frl.state["margin_exponent"].tolist() == pytest.approx([-0.04, 0.04, -0.12], abs=1e-6)
    assert frl.state["eps"].tolist() == pytest.approx(
        [0.098, 0.1 * math.exp(0.08), 0.098], abs=1e-6
    )


def test_frl_without_remargin_keeps_one_eps():
    frl, _ = moved(remargin=False)
    assert set(frl.class_values()) == {
        f"{a}_{b}" for a in ("clean", "boundary") for b in ("multiplier", "weight")
    }


def test_frl_multipliers_stay_below_their_limit_and_margins_below_the_widest():
    frl, valid = moved()
    for _ in range(60):
        frl.epoch_end(valid, valid)
    assert frl.state["clean_multiplier"].sum().item() == pytest.approx(0.5)
    assert frl.state["eps"].tolist() == pytest.approx([0.098, 0.3, 0.098])
    for which in ("clean", "boundary"):
        assert frl.state[f"{which}_weight"].min() > 0
        assert frl.state[f"{which}_weight"].sum().item() == pytest.approx(1)


def test_frl_class_that_validation_lacks_keeps_its_multipliers():
    frl, _ = moved()
    frl.epoch_end(None, sums([10.0, 0.0, 10.0], clean=[9.0, 0.0, 7.0], robust=[6.0, 0.0, 4.0]))
    assert frl.state["boundary_multiplier"][1].item() == pytest.approx(0.1)
    assert frl.state["eps"][1].item() == pytest.approx(0.1 * math.exp(0.08))
    assert all(value.isfinite().all() for value in frl.state.values())


@pytest.mark.parametrize(
    ("present", "widest"), [((0, 1, 2), math.exp(0.4)), ((0, 2), 1.0)], ids=str
)
def test_frl_steps_as_wide_as_the_widest_margin_of_the_batch(present, widest, model, batch):
    keep = torch.isin(batch[1], torch.tensor(present))
    x, y = batch[0][keep] * 0.2 + 0.4, batch[1][keep]
    frl = ready(FRL, eps=0.2, steps=1)
    frl.load_state_dict(
        {"margin_exponent": numbers(0, 0.2, 0), "eps": numbers(0.2, 0.2 * math.exp(0.4), 0.2)}
    )
    moved_by = (frl.craft(model, x, y, generator=torch.Generator().manual_seed(1)) - x).abs()
    assert moved_by.median().item() == pytest.approx(0.03 * widest, abs=4e-4)
    wide = frl.attack(
        model, x, y, eps=frl.state["eps"][y], step_size=1.0, generator=torch.Generator()
    )
    assert [round((wide - x)[y == k].abs().max().item(), 3) for k in present] == [
        pytest.approx(frl.state["eps"][k].item(), abs=1e-3) for k in present
    ]


def test_frl_default_schedule_moves_the_policy_as_far_as_the_code_s_40_epochs():
    frl = ready(FRL, epochs=200)
    assert frl.first == 150
    assert frl.rates == pytest.approx([0.05 * 40 / 50, 0.2 * 40 / 50])
    assert ready(FRL, epochs=1).first == 1


# BAT


@pytest.mark.parametrize("tau", [0, 1])
def test_bat_crafts_both_sides_as_one_sample_at_a_time_would(tau, model, batch):
    x = torch.cat([batch[0], batch[0] * 0.3 + 0.3])
    model.eval()
    # most images are right at first
    y = torch.where(torch.arange(18) < 15, model(x).argmax(1), batch[1].repeat(2))
    bat = ready(BAT, eps=0.15, step=0.03, steps=6, tau=tau)
    first, last = bat.craft(model, x, y, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    stopped = set()
    for i in range(18):
        way, left, right = (x[i : i + 1] + 0.001 * noise[i : i + 1]).clamp(0, 1), tau, True
        before = way
        for t in range(6):
            way.requires_grad_()
            logits = model(way)
            wrong = bool(logits.argmax() != y[i])
            right = right and not wrong
            before = way.detach() if right else before
            if wrong and left == 0:
                stopped.add(t)
                break
            left -= wrong
            kl = F.kl_div(logits.log_softmax(1), model(x[i : i + 1]).softmax(1), reduction="sum")
            way = way.detach() + 0.03 * torch.autograd.grad(kl, way)[0].sign()
            way = way.clamp(x[i : i + 1] - 0.15, x[i : i + 1] + 0.15).clamp(0, 1)
        before = way.detach() if right else before
        torch.testing.assert_close(first[i : i + 1], way.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(last[i : i + 1], before, rtol=0, atol=1e-12)
    assert len(stopped) > 1  # on the way, too, not only at once


def test_bat_loss_is_the_formula(model, batch):
    x, y = batch
    bat = ready(BAT, beta=4.0, balance=0.5)
    x_adv = bat.craft(model.train(), x, y, generator=torch.Generator().manual_seed(1))
    loss, stats = bat.loss(model, x, x_adv, y)
    first, last, clean = probabilities(model, x_adv[0], x_adv[1], x)
    uniform = torch.full((9, K), 1 / K, dtype=x.dtype)
    losses = cross_entropies(last, y) + 4 * divergences(clean, first)
    losses = losses + 0.5 * (divergences(last, uniform) + divergences(first, uniform))
    agree(model, loss, losses.mean())
    assert stats.robust.sum().item() == (first.argmax(1) == y).sum().item()


# CFOL


def test_cfol_moves_by_the_wrong_images_over_the_probability():
    """Two epochs by hand; in the second no image of the last class is drawn."""
    cfol = ready(CFOL, eta=0.1, gamma=0.4)
    assert cfol.class_probs().tolist() == pytest.approx([1 / 3] * 3)
    w, p = [0.0] * 3, [1 / 3] * 3
    for n, robust in (([10.0, 10.0, 10.0], [9.0, 5.0, 2.0]), ([5.0, 20.0, 0.0], [4.0, 10.0, 0.0])):
        cfol.epoch_end(sums(n, robust=robust), None)
        w = [v + 0.1 * (a - b) / c for v, a, b, c in zip(w, n, robust, p, strict=True)]
        p = [0.4 / 3 + 0.6 * math.exp(v) / sum(map(math.exp, w)) for v in w]
        assert cfol.state["score"].tolist() == pytest.approx(w, rel=1e-5)
        assert cfol.class_probs().tolist() == pytest.approx(p, rel=1e-5)


def test_cfol_classes_are_drawn_as_it_says():
    cfol = ready(CFOL, eta=0.1, gamma=0.1)
    cfol.epoch_end(sums([10.0] * 3, robust=[10.0, 10.0, 0.0]), None)
    y = torch.tensor([0] * 900 + [1] * 300 + [2] * 100)
    images = torch.zeros(1300, 1, 4, 4, dtype=torch.uint8)
    drawn = data.Batches(
        images, y, 1300, generator=torch.Generator().manual_seed(0), class_probs=cfol.class_probs()
    )
    shares = next(iter(drawn))[1].bincount(minlength=3) / 1300
    torch.testing.assert_close(shares, cfol.class_probs(), rtol=0, atol=0.04)
    assert shares[2] > 0.8


def test_cfol_default_rate_is_the_code_s_on_its_draws():
    assert ready(CFOL, epochs=100, counts=(20_000, 15_000, 5_000)).rate == pytest.approx(5e-6)
    assert ready(CFOL, epochs=25, counts=(20_000, 15_000, 5_000)).rate == pytest.approx(1e-5)


def test_cfol_loss_is_that_of_adversarial_training(model, batch):
    x, y = batch
    cfol = ready(CFOL)
    x_adv = cfol.craft(model.train(), x, y, generator=torch.Generator().manual_seed(1))
    loss, _ = cfol.loss(model, x, x_adv, y)
    agree(model, loss, cross_entropies(*probabilities(model, x_adv), y).mean())


@pytest.mark.parametrize(
    ("method", "options", "line"),
    [
        (WAT, {"eta": -1}, "eta of wat is at least 0, not -1"),
        (FRL, {"warmup": 0}, "warmup of frl is at least 1"),
        (FRL, {"limit": 1.0}, r"limit of frl is in \[0, 1\)"),
        (BAT, {"tau": -1}, "tau of bat is at least 0, not -1"),
        (BAT, {"tau": "one"}, "tau of bat is at least 0, not 'one'"),
        (CFOL, {"gamma": 0}, r"gamma of cfol is in \(0, 1\], not 0"),
        (CFOL, {"eta": -1}, "eta of cfol is at least 0"),
    ],
)
def test_settings_out_of_range_are_one_line(method, options, line):
    with pytest.raises(ConfigError, match=line):
        ready(method, **options)
