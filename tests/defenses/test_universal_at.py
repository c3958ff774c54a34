"""Universal adversarial training: the deltas' steps by hand, classes that are absent, and what a
resumed run needs.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crat.attacks import PGD
from crat.attacks.objectives import PlainCrossEntropy
from crat.attacks.universal import fooling_rates
from crat.defenses import Task
from crat.defenses.universal_at import UniversalAT

EPS, STEP, SHAPE, K = 0.1, 0.04, (1, 4, 4), 3


def method(class_wise=True, steps=1, k=K):
    made = UniversalAT(PGD(EPS, STEP, steps, start="none"), class_wise)
    made.prepare(Task(torch.ones(k), SHAPE))
    made.state = {name: value.double() for name, value in made.state.items()}
    return made


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, K),
    )
    return nn.Sequential(*layers).double().train()


def batch(labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor(labels)
    return 0.2 + 0.6 * torch.rand(len(y), *SHAPE, generator=generator, dtype=torch.float64), y


def by_hand(model, x, y, delta):
    """One step of the deltas by autograd through x + delta_y, on the sum of the log-odds; (K, C,
    H, W).
    """
    leaf = delta.clone().requires_grad_()
    p = model.eval()(x + leaf[y]).softmax(1)[torch.arange(len(y)), y]
    (gradient,) = torch.autograd.grad(((1 - p) / p).log().sum(), leaf)
    model.train()
    return (delta + STEP * gradient.sign()).clamp(-EPS, EPS)


def test_each_class_climbs_on_its_own_images_and_an_absent_one_stays(model):
    defense, delta = method(), torch.zeros(K, *SHAPE, dtype=torch.float64)
    for i, labels in enumerate([[0, 2, 2, 0], [2, 2, 1], [0, 0, 2], [2, 0]]):
        x, y = batch(labels, i)
        delta = by_hand(model, x, y, delta)
        x_adv = defense.craft(model, x, y)
        torch.testing.assert_close(defense.state["delta"], delta, rtol=0, atol=1e-15)
        torch.testing.assert_close(x_adv, x + delta[y], rtol=0, atol=1e-15)
    assert defense.state["delta"][1].abs().max() == pytest.approx(STEP)  # one batch had it
    assert defense.state["delta"].abs().max() == pytest.approx(EPS)


def test_one_delta_for_all_is_the_step_of_the_whole_batch(model):
    defense, (x, y) = method(class_wise=False), batch([0, 1, 2, 1])
    x_adv = defense.craft(model, x, y)
    shared = by_hand(model, x, torch.zeros_like(y), torch.zeros(1, *SHAPE, dtype=torch.float64))
    assert defense.state["delta"].shape == (1, *SHAPE)
    assert shared.abs().max() > 0
    leaf = torch.zeros(1, *SHAPE, dtype=torch.float64, requires_grad=True)
    logits = model.eval()(x + leaf)
    odds = (
        logits.scatter(1, y[:, None], -torch.inf).logsumexp(1) - logits.gather(1, y[:, None])[:, 0]
    )
    (gradient,) = torch.autograd.grad(odds.sum(), leaf)
    torch.testing.assert_close(defense.state["delta"], STEP * gradient.sign(), rtol=0, atol=1e-15)
    torch.testing.assert_close(x_adv, x + defense.state["delta"], rtol=0, atol=1e-15)


def test_steps_and_the_warm_up_scale_are_honoured(model):
    x, y = batch([0, 1, 2])
    once, twice = method(), method(steps=2)
    for _ in range(2):
        once.craft(model, x, y)
    twice.craft(model, x, y)
    torch.testing.assert_close(once.state["delta"], twice.state["delta"], rtol=0, atol=0)
    small = method()
    for _ in range(4):
        small.craft(model, x, y, scale=0.5)
    assert small.state["delta"].abs().max() == pytest.approx(EPS / 2)
    none = method()
    torch.testing.assert_close(none.craft(model, x, y, scale=0.0), x, rtol=0, atol=0)


def test_images_stay_in_the_box_and_the_model_as_it_was(model):
    x, y = batch([0, 1, 2])
    x = x.round()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x_adv = method().craft(model, x, y)
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert not x_adv.requires_grad
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_loss_is_the_cross_entropy_of_the_perturbed_images(model):
    defense, (x, y) = method(), batch([0, 2, 2, 1])
    model[4].eval()  # no dropout, so that two passes are one
    x_adv = defense.craft(model, x, y)
    loss, stats = defense.loss(model, x, x_adv, y)
    p = model(x_adv).softmax(1)
    expected = -p[torch.arange(4), y].log().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True),
        torch.autograd.grad(expected, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)
    assert stats.n.tolist() == [1, 1, 2]


def test_the_state_resumes_exactly(model):
    whole, first = method(), method()
    batches = [batch([0, 1, 2], i) for i in range(4)]
    for x, y in batches:
        whole.craft(model, x, y)
    for x, y in batches[:2]:
        first.craft(model, x, y)
    second = method()
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for x, y in batches[2:]:
        second.craft(model, x, y)
    assert torch.equal(whole.state["delta"], second.state["delta"])
    assert not whole.class_values()  # deltas are images, not columns of history.csv


def test_training_on_the_deltas_lowers_the_fooling_rate_that_they_have():
    """Two classes told apart by brightness, within eps, and by one pixel beyond it, which
    training comes to trust.
    """
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 2
    x = (
        0.5
        + 0.05 * (2 * y[:, None, None, None] - 1)
        + 0.1 * torch.rand(64, *SHAPE, generator=generator)
        - 0.05
    )
    x[:, :, 0, 0] = 0.35 + 0.3 * y[:, None]
    rates = {}
    for name in ("plain", "universal"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        defense = UniversalAT(PGD(0.12, 0.03, 1, start="none"))
        defense.prepare(Task(torch.ones(2), SHAPE))
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
        for _ in range(120):
            x_adv = defense.craft(model, x, y)
            loss = defense.loss(model, x, x_adv if name == "universal" else x, y)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rates[name] = fooling_rates(model, x, y, defense.state["delta"], 2).max().item()
    assert rates["universal"] < 0.1 < rates["plain"]


def test_batch_norm_moving_ascends_the_plain_cross_entropy(model):
    defense = UniversalAT(PGD(EPS, STEP, 1, start="none", batch_norm="moving"))
    assert isinstance(defense.ascended(), PlainCrossEntropy)
    defense.prepare(Task(torch.ones(K), SHAPE))
    x, y = batch([0, 1, 2])
    before = model[1].running_mean.clone()
    defense.craft(model, x, y)
    assert not torch.equal(model[1].running_mean, before)
    assert F.cross_entropy(model(x), y).isfinite()
