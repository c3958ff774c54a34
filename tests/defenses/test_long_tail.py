"""AT-BSL, REAT and RoBal against their formulas written out; accuracy by groups of a long tail."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crat.analysis.longtail import balanced_accuracy, group_table, groups, mean_interval
from crat.analysis.metrics import MetricError, wilson
from crat.attacks import PGD
from crat.config import ConfigError
from crat.defenses import ClassStats, Task
from crat.defenses.at_bsl import ATBSL
from crat.defenses.reat import REAT, effective_weights
from crat.defenses.robal import RoBal, calibrated
from crat.nets.models import Classifier, CosineHead, Normalize

EPS, STEP = 0.1, 0.04
COUNTS = (5, 40, 1)  # in no order
METHODS = {"at_bsl": ATBSL, "reat": REAT, "robal": RoBal}


def network(cosine=False, k=3):
    generator = torch.Generator().manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten())
    head = CosineHead(16, k, 10.0, bias=False) if cosine else nn.Linear(16, k)
    model = Classifier("tiny", Normalize((0.0,), (1.0,), 1), body, head, k).double().train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def batch(labels=(0, 1, 1, 2, 0, 1, 2), seed=0):
    x = torch.rand(
        len(labels), 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return x, torch.tensor(labels)


def method(name, counts=COUNTS, **options):
    kind = METHODS[name]
    made = kind(PGD(EPS, STEP, 3, start=kind.start, batch_norm=kind.batch_norm), **options)
    made.prepare(Task(torch.tensor(counts), (1, 4, 4)))
    return made


def features(model, x):
    return model.body(model.normalize(x))


def cross_entropy(logits, y):
    """-log of the softmax, from exponentials."""
    e = logits.exp()
    return -(e[torch.arange(len(y)), y] / e.sum(1)).log()


def at_bsl_written_out(model, x, x_adv, y):
    return cross_entropy(model(x_adv) + torch.tensor(COUNTS).double().log(), y).mean()


def reat_written_out(model, x, x_adv, y):
    """The code's term image by image and pair by pair; of three classes only the last by count
    is rare.
    """
    f, n = features(model, x_adv), torch.tensor(COUNTS).double()
    v, q, pairs, terms = (n.sum() / n).sqrt(), f.softmax(1), len(y), []
    for i in (i for i in range(len(y)) if y[i] == 2):
        p = q[i].detach()
        divergence = sum((p * (p / q[j]).log()).sum() for j in range(pairs)) / (pairs * f.shape[1])
        terms.append(
            divergence
            * sum((-1 if y[i] == y[j] else 1) * (v[y[i]] + v[y[j]]) for j in range(pairs))
            / pairs
        )
    return cross_entropy(model(x_adv) + n.log(), y).mean() + sum(terms) / len(terms)


def robal_written_out(model, x, x_adv, y, m=0.1, tau_m=0.3, tau_b=1.5, beta=6.0, gamma=0.25):
    n, w, s = torch.tensor(COUNTS).double(), model.head.weight, 10
    unit = w / (w.norm(dim=1, keepdim=True) + gamma)

    def cosines(images):
        f = features(model, images)
        return f / f.norm(dim=1, keepdim=True) @ unit.T

    clean, adversarial = cosines(x), cosines(x_adv)
    margin = F.one_hot(y, 3) * (s * m + tau_m * (n / n.min()).log())
    p, q = clean.softmax(1), adversarial.softmax(1)
    divergence = (p * (p / q).log()).sum(1)
    return (
        cross_entropy(s * adversarial - margin + tau_b * (n / n.sum()).log(), y) + beta * divergence
    ).mean()


FORMULAS = {
    "at_bsl": (at_bsl_written_out, {}),
    "reat": (reat_written_out, {}),
    "robal": (robal_written_out, {"tau_m": 0.3, "tau_b": 1.5, "gamma": 0.25}),
}


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_the_formula_with_its_whole_gradient(name):
    written_out, options = FORMULAS[name]
    defense, model, (x, y) = method(name, **options), network(name == "robal"), batch()
    x_adv = defense.craft(model, x, y, generator=torch.Generator().manual_seed(1))
    assert (x_adv - x).abs().max() == pytest.approx(EPS, abs=0.002)
    loss, stats = defense.loss(model, x, x_adv, y)
    expected = written_out(model, x, x_adv, y)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    parameters = list(model.parameters())
    ours, theirs = (
        torch.autograd.grad(value, parameters, retain_graph=True) for value in (loss, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(stats.loss.sum().double() / len(y), loss.detach(), rtol=1e-6, atol=0)
    assert stats.n.tolist() == [2, 3, 2]


@pytest.mark.parametrize("name", METHODS)
def test_absent_classes_give_finite_numbers(name):
    """One without training images, and batches with one class only."""
    defense, model = method(name, (0, 40, 3, 9)), network(name == "robal", 4)
    for labels in ((1, 1, 1), (2, 2), (3,)):
        x, y = batch(labels)
        model.train(len(labels) > 1)
        x_adv = defense.craft(model, x, y)
        loss, stats = defense.loss(model, x, x_adv, y)
        loss.backward()
        defense.epoch_end(stats, None)
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert all(value.isfinite().all() for value in defense.class_values().values())


def test_reat_weights_by_hand():
    """n = (4, 2, 1): b = (3/4, 1/2, 0); answers (2, 0, 3): E = (1 + 3/4, 0, 1)."""
    weights = effective_weights(
        torch.tensor([4.0, 2, 1]).double(), torch.tensor([2.0, 0, 3]).double()
    )
    inverse = torch.tensor([1 / (1.75 + 1e-5), 1e5, 1 / (1 + 1e-5)], dtype=torch.float64)
    torch.testing.assert_close(weights, inverse / inverse.sum() * 3, rtol=1e-12, atol=0)
    defense = method("reat", (4, 2, 1))
    first = torch.tensor([1 / (4 * (1 - 0.75**4)), 1 / 1.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(defense.state["weight"], first / first.sum() * 3, rtol=1e-4, atol=0)
    adversarial = torch.eye(3)[[0, 0, 2, 2, 2]] * 9
    defense.epoch_end(
        ClassStats.of(torch.tensor([0, 1, 1, 2, 2]), torch.zeros(5), adversarial), None
    )
    torch.testing.assert_close(defense.state["weight"], weights, rtol=1e-12, atol=0)


def test_reat_weights_turn_steps_only_where_samples_meet():
    model, (x, y) = network(), batch()
    plain, weighted = method("reat"), method("reat")
    plain.state["weight"] = torch.ones(3)
    assert torch.equal(*(m.craft(model, x, y) for m in (plain, weighted)))
    for m in (plain, weighted):
        m.attack = PGD(EPS, STEP, 3, batch_norm="train")
    assert not torch.equal(*(m.craft(model, x, y) for m in (plain, weighted)))


@pytest.mark.parametrize(
    ("counts", "rare"),
    [
        ((5, 40, 1), {2}),
        ((1, 40), {0}),
        ((3, 9, 1, 7, 8, 2, 6, 5, 10, 4), {0, 2, 5}),
        ((1,) * 7, {5, 6}),
    ],
)
def test_reat_finds_the_rarest_classes_in_any_order(counts, rare):
    assert set(method("reat", counts).state["rare"].nonzero()[:, 0].tolist()) == rare


def test_reat_without_its_term_is_the_balanced_softmax():
    model, (x, y) = network(), batch()
    loss = method("reat", tail_term=False).loss(model, x, x, y)[0]
    torch.testing.assert_close(loss, at_bsl_written_out(model, x, x, y))


def test_robal_attacks_the_scaled_cosines_and_its_code_flatter_ones_from_half_the_ball():
    model, (x, y) = network(cosine=True), batch()
    x = 0.2 + 0.6 * x
    found = {}
    for released in (False, True):
        defense = method("robal", released_attack=released)
        found[released] = defense.craft(model, x, y, generator=torch.Generator().manual_seed(2))
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
        by_hand, s = x + EPS * (noise if released else 2 * noise - 1), 1 if released else 10
        for _ in range(3):
            by_hand.requires_grad_()
            loss = cross_entropy(model.eval()(by_hand) * s / 10, y).sum()
            step = STEP * torch.autograd.grad(loss, by_hand)[0].sign()
            by_hand = torch.min(torch.max(by_hand.detach() + step, x - EPS), x + EPS).clamp(0, 1)
        torch.testing.assert_close(found[released], by_hand, rtol=0, atol=1e-12)
    assert not torch.equal(found[False], found[True])


def test_robal_options_for_the_divergence_and_the_passes():
    model, (x, y) = network(cosine=True), batch()
    x_adv = batch(seed=1)[0]
    flat, scaled, none = (
        method("robal", **o).loss(model, x, x_adv, y)[0]
        for o in ({}, {"kl_scaled": True}, {"beta": 0.0})
    )
    p, q = model(x).softmax(1), model(x_adv).softmax(1)
    torch.testing.assert_close(
        scaled - none, 6 * (p * (p / q).log()).sum(1).mean(), rtol=1e-9, atol=0
    )
    assert 0 < flat - none < (scaled - none) / 20
    counted = {}
    for released in (False, True):
        model = network(cosine=True)
        method("robal", released_passes=released).loss(model, x, x_adv, y)
        counted[released] = int(model.body[1].num_batches_tracked)
    assert counted == {False: 2, True: 4}


def test_robal_calibrates_what_answers():
    model, (x, _) = network(cosine=True).eval(), batch()
    pi = torch.tensor(COUNTS).double() / 46
    torch.testing.assert_close(
        calibrated(model, torch.tensor(COUNTS), 1.5)(x), model(x) - 1.5 * pi.log()
    )
    length = model.head.weight.norm(dim=1)
    shrunk = model(x) * length / (length + 0.5) - 0.1 * pi.log()
    torch.testing.assert_close(calibrated(model, torch.tensor(COUNTS), gamma=0.5)(x), shrunk)
    with pytest.raises(ConfigError, match="cosine head"):
        calibrated(network(), torch.tensor(COUNTS))
    with pytest.raises(ConfigError, match="tau_b of robal is at least 0 and finite, not -1"):
        method("robal", tau_b=-1)


def test_groups_follow_the_counts_not_the_labels():
    assert groups([1, 9, 5]).tolist() == ["tail", "head", "medium"]
    assert groups([1, 9, 5, 5]).tolist() == ["tail", "head", "medium", "medium"]
    assert groups([3, 8]).tolist() == ["tail", "head"]
    assert groups([19, 20, 100, 101], (20, 100)).tolist() == ["tail", "medium", "medium", "head"]
    with pytest.raises(MetricError, match="low <= high"):
        groups([1, 2], (5, 2))
    with pytest.raises(MetricError, match="vector of counts"):
        groups([-1, 2])


def test_balanced_accuracy_counts_classes_not_images():
    y = [0, 0, 0, 0, 1, 3]
    assert balanced_accuracy(
        y, np.array([True, True, False, False, True, False]), 4
    ) == pytest.approx(0.5)
    with pytest.raises(MetricError, match="bool"):
        balanced_accuracy(y, y, 4)


def test_the_interval_of_a_mean_is_wilsons_for_one_class_and_covers_for_several():
    low, high = wilson(7, 20)
    assert mean_interval([7, 0], [20, 0]) == pytest.approx((0.35, low, high))
    assert np.isnan(mean_interval([0], [0])).all()
    rng, n, p = np.random.default_rng(0), np.array([20, 100, 300]), np.array([0.05, 0.5, 0.9])
    drawn = [mean_interval(k, n) for k in rng.binomial(n, p, (600, 3))]
    assert 0.92 < np.mean([low <= p.mean() <= high for _, low, high in drawn]) < 0.98


def test_group_table_by_hand():
    """Classes of 1, 9 and 5 training images: tail, head, medium; 2, 4 and 2 test images; class 3
    has none of either.
    """
    y = np.array([0, 0, 1, 1, 1, 1, 2, 2])
    clean = np.array([0, 0, 1, 1, 1, 0, 2, 2])
    attacked = np.array([0, 1, 1, 1, 0, 1, 0, 0])  # the sixth is right only under attack
    table = group_table(
        y, clean, {"PGD": attacked}, [1, 9, 5, 0], ["tail", "head", "medium", "tail"]
    )
    assert table.columns.tolist() == [
        "attack",
        "group",
        "classes",
        "train_n",
        "n",
        "accuracy",
        "low",
        "high",
    ]
    assert table[table.attack == "clean"].accuracy.tolist() == pytest.approx([0.75, 1, 1, 2.75 / 3])
    pgd = table[table.attack == "PGD"].set_index("group")
    assert pgd.accuracy.to_dict() == pytest.approx(
        {"head": 0.5, "medium": 0, "tail": 0.5, "all": 1 / 3}
    )
    assert pgd.n.to_dict() == {"head": 4, "medium": 2, "tail": 2, "all": 8}
    assert pgd.classes.to_dict() == {"head": 1, "medium": 1, "tail": 2, "all": 4}
    assert pgd.train_n.to_dict() == {"head": 9, "medium": 5, "tail": 1, "all": 15}
    assert (pgd.low <= pgd.accuracy).all()
    assert (pgd.accuracy <= pgd.high).all()
    with pytest.raises(MetricError, match="4 classes but 2 groups"):
        group_table(y, clean, {}, [1, 9, 5, 0], ["head", "tail"])
