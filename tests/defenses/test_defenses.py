"""Each loss against its formula written out; class statistics against counting; the registry."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crat.attacks import PGD
from crat.config import ConfigError, TrainConfig
from crat.defenses import ClassStats, make_defense
from crat.defenses.stats import judged_stats
from crat.defenses.trades import TRADES

CONFIG = TrainConfig(eps=0.1, step_size=0.03, steps=3)
BETA = 4.0


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    ).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(9, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(9) % 3


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)


def written_out(name, model, x, x_adv, y):
    """The papers' formulas, in probabilities and with plain logarithms."""

    def cross_entropy(images):
        return -model(images).softmax(1)[torch.arange(len(y)), y].log().mean()

    if name == "standard":
        return cross_entropy(x)
    if name == "pgd_at":
        return cross_entropy(x_adv)
    p, q = model(x).softmax(1), model(x_adv).softmax(1)
    return -p[torch.arange(len(y)), y].log().mean() + BETA * (p * (p / q).log()).sum() / len(y)


@pytest.mark.parametrize("name", ["standard", "pgd_at", "trades"])
def test_loss_is_the_formula_with_its_whole_gradient(name, model, batch):
    x, y = batch
    options = {"beta": BETA} if name == "trades" else {}
    defense = make_defense(TrainConfig(**{**vars(CONFIG), "defense": name, "options": options}), 3)
    x_adv = defense.craft(model.train(), x, y, generator=torch.Generator().manual_seed(1))
    loss, stats = defense.loss(model, x, x_adv, y)
    expected = written_out(name, model, x, x_adv, y)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for ours, theirs in zip(gradients(model, loss), gradients(model, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(stats.loss.sum() / 9, loss.detach())


def test_trades_crafts_as_the_released_code_describes(model, batch):
    """Start x + 0.001 N(0, 1), eval mode, sign ascent on KL(p(x) || p(x')) with p(x) anew in
    every step.
    """
    x, y = batch
    attack = PGD(0.1, 0.03, 4, start="gaussian")
    ours = TRADES(attack).craft(model.train(), x, y, generator=torch.Generator().manual_seed(2))
    assert model.training
    model.eval()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    x_adv = x + 0.001 * noise
    for _ in range(4):
        x_adv.requires_grad_()
        kl = F.kl_div(model(x_adv).log_softmax(1), model(x).softmax(1), reduction="sum")
        (grad,) = torch.autograd.grad(kl, x_adv)
        x_adv = x_adv.detach() + 0.03 * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - 0.1), x + 0.1).clamp(0, 1)
    torch.testing.assert_close(ours, x_adv, rtol=0, atol=1e-12)


def test_class_statistics_are_counts():
    y = torch.tensor([0, 0, 1, 3])
    adversarial = torch.eye(4)[[0, 1, 1, 0]] * 5
    clean = torch.eye(4)[[0, 0, 2, 3]]
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    s = ClassStats.of(y, losses, adversarial, clean)
    assert s.n.tolist() == [2, 1, 0, 1]
    assert s.clean.tolist() == [2, 0, 0, 1]
    assert s.robust.tolist() == [1, 1, 0, 0]
    assert s.loss.tolist() == [3, 3, 0, 4]
    assert s.confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    torch.testing.assert_close(s.soft_confusion.sum(1), s.n)
    twice = s + s
    assert twice.n.tolist() == [4, 2, 0, 2]
    assert ClassStats.of(y, losses, adversarial).clean.isnan().all()


def test_judged_images_count_as_robust_where_both_answers_are_right():
    """R_k: an image that is right on one side only counts on that side only; a class without
    images counts nothing.
    """
    y = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    clean = torch.eye(4)[[0, 0, 1, 1, 1, 0, 3]] * 2
    robust = torch.eye(4)[[0, 1, 0, 1, 1, 1, 2]] * 3
    s = judged_stats(y, clean, robust)
    assert s.n.tolist() == [4, 2, 0, 1]
    assert s.clean.tolist() == [2, 1, 0, 1]
    assert s.robust.tolist() == [1, 1, 0, 0]
    # the attacked answers
    assert s.confusion.tolist() == [[2, 2, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    # the cross-entropy of logits 3, 0, 0, 0 where the class is not the first
    wrong = math.log(math.exp(3) + 3)
    right = wrong - 3
    torch.testing.assert_close(s.loss, torch.tensor([2 * right + 2 * wrong, 2 * right, 0, wrong]))


def test_counts_are_exact_under_bfloat16_autocast():
    y = torch.zeros(999, dtype=torch.long)
    logits = torch.tensor([[2.0, 1.0]]).expand(999, 2)
    with torch.autocast("cpu", torch.bfloat16):
        stats = ClassStats.of(y, torch.full((999,), 1.001), logits, logits)
    assert stats.n.tolist() == stats.robust.tolist() == [999, 0]
    assert stats.confusion.tolist() == [[999, 0], [0, 0]]
    assert stats.loss[0].item() == pytest.approx(999.999, abs=0.01)


def test_unknown_method_and_unresolved_config_get_one_line():
    with pytest.raises(
        ConfigError, match=r"unknown defense 'trade'; known: standard, pgd_at, trades"
    ):
        make_defense(TrainConfig("trade"), 10)
    with pytest.raises(ConfigError, match="resolved"):
        make_defense(TrainConfig("pgd_at"), 10)
