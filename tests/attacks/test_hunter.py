"""The hunter, alone and before AutoAttack: it may break more and never less, and draws nothing."""

import warnings

import pytest
import torch
from tiny_runs import shorten_autoattack
from torch import nn

from crat.analysis.two_phase import Design
from crat.attacks import PGD, AutoAttack, Hunter, PerImage, cw
from crat.attacks.hunt import Hunt, pursue
from crat.attacks.judge import attacked_logits
from crat.attacks.threat import budget, size
from crat.attacks.watched import RobustnessWarning
from crat.keys.identity import attack_identity
from crat.outcomes import Outcomes, Sampled, hunting_battery, margins, strong_battery

EPS = {"Linf": 0.06, "L2": 0.5}


def net(classes=5, seed=0):
    torch.manual_seed(seed)
    body = [nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8 * 36, classes)).eval().double()


def batch(model, n=60, seed=0):
    """Images and the model's answers, but every eighth label is wrong."""
    numbers = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 2, 6, 6, generator=numbers, dtype=torch.float64)
    y = model(x).argmax(1)
    y[::8] = 1 - y[::8].clamp(max=1)
    return x, y


class Counted(nn.Module):
    """Counts the images of its passes, forward and backward."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.forwards, self.backwards = inner, 0, 0

    def forward(self, x):
        self.forwards += len(x)
        self.backwards += len(x) * (x.requires_grad and torch.is_grad_enabled())
        return self.inner(x)


class Masked(nn.Module):
    """The logits of another network with the gradients of a linear map that it knows nothing of."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.false = nn.Linear(72, 5, bias=False).double()

    def forward(self, x):
        return self.inner(x.detach()) + self.false((x - x.detach()).flatten(1))


class Waves(nn.Module):
    """What makes a network on top of it far from linear."""

    def forward(self, x):
        return (3 * x).sin()


@pytest.fixture
def short(monkeypatch):
    shorten_autoattack(monkeypatch)


def both(model, x, y, *settings, **call):
    """The battery without and with a hunter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RobustnessWarning)
        plain = AutoAttack(*settings)(model, x, y, **call)
        hunted = AutoAttack(*settings, hunter=True)(model, x, y, **call)
    return plain, hunted


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", EPS)
def test_with_a_hunter_no_image_survives_that_broke_without(short, norm, classes):
    model = net(classes)
    x, y = batch(model)
    noise = PerImage(7, torch.arange(60))
    plain, hunted = both(model, x, y, EPS[norm], norm, generator=noise)
    assert hunted.names == ("clean", "hunter", *plain.names[1:])
    assert ((hunted.broken_by >= 0) | (plain.broken_by < 0)).all()
    assert torch.equal(hunted.broken_by == 0, plain.broken_by == 0)
    by_hunter = hunted.broken_by == 1
    assert by_hunter.any()
    # the others met the battery with the same random numbers
    shifted = plain.broken_by + (plain.broken_by > 0)
    assert torch.equal(hunted.broken_by[~by_hunter], shifted[~by_hunter].to(torch.int8))
    assert torch.equal(hunted.x_adv[~by_hunter], plain.x_adv[~by_hunter])
    assert torch.equal(model(hunted.x_adv).argmax(1) != y, hunted.broken_by >= 0)
    assert (size(hunted.x_adv - x, norm) <= EPS[norm] * (1 + 1e-9)).all()


def test_a_masked_network_is_caught_as_it_is_without(monkeypatch):
    """The gradients lead nowhere, so the hunter and APGD leave what random search breaks."""
    shorten_autoattack(monkeypatch, queries=400)
    model = Masked(net())
    x, y = batch(model.inner)
    plain, hunted = both(model, x, y, EPS["Linf"], search="exact")
    square = len(plain.names) - 1
    assert (plain.broken_by == square).sum() > 3
    assert (hunted.broken_by == square + 1).sum() > 3
    assert ((hunted.broken_by >= 0) | (plain.broken_by < 0)).all()


def test_a_sample_still_tells_of_a_masked_network(monkeypatch):
    """Phase one with a hunter leaves what the battery breaks; the random part says so."""
    shorten_autoattack(monkeypatch, queries=400)
    model = Masked(net())
    x, y = batch(model.inner, 300)
    eps = 0.15
    pgd = PGD(eps, eps / 4, 20)
    attacks = {"PGD-20": pgd, "CW-20": cw(pgd), "Hunter": Hunter(eps)}
    battery = AutoAttack(eps)
    classes = tuple("abcde")
    logits = {name: attacked_logits(model, x, y, attack) for name, attack in attacks.items()}

    def outcomes(logits, labels):
        answers = {name: z.argmax(1).numpy() for name, z in logits.items()}
        arrays = {name: z.detach().numpy() for name, z in logits.items()}
        by = {name: margins.of(z, labels.numpy()) for name, z in arrays.items()}
        return Outcomes("test", classes, labels.numpy(), arrays, answers, {}, by)

    def attack(places):
        chosen, labels = x[places], y[places]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RobustnessWarning)
            z = attacked_logits(model, chosen, labels, battery)
        return outcomes({"clean": model(chosen), "AA-sampled": z}, labels)

    found = outcomes({"clean": model(x), **logits}, y)
    sampled = Sampled.of(found, list(attacks), Design(least=20), attack)
    assert "PGD-20, CW-20 and Hunter left" in sampled.description
    assert "the network hides its gradients" in sampled.warning


def test_the_linear_truth_with_a_radius_for_each_image():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4)).double()
    x = 0.3 + 0.4 * torch.rand(60, 2, 6, 6, dtype=torch.float64)
    z, w = model(x).detach(), model[1].weight.detach()
    y = z.argmax(1)
    gaps, slopes = z.gather(1, y[:, None]) - z, (w[y][:, None] - w).abs().sum(2)
    radius = torch.where(slopes > 0, gaps / slopes, torch.inf).amin(1)
    assert radius.max() < 0.29  # the box does not bind
    factor = torch.tensor([0.99, 1.01]).double().repeat(30)
    x_adv = Hunter(1.0)(model, x, y, eps=radius * factor)
    assert torch.equal(model(x_adv).argmax(1) != y, factor > 1)


def test_a_target_is_where_it_ends():
    model = net()
    x, y = batch(model)
    target = (y + 1) % 5
    for norm, eps in EPS.items():
        x_adv = Hunter(5 * eps, norm)(model, x, y, target=target)
        reached = model(x_adv).argmax(1) == target
        assert reached.float().mean() > 0.5
        away = Hunter(5 * eps, norm)(model, x, y)
        assert not torch.equal(model(away).argmax(1), model(x_adv).argmax(1))


def test_the_more_targets_the_more_break_and_all_are_nearer_than_clean():
    model = nn.Sequential(Waves(), net(8, seed=3))
    x, _ = batch(model, 200)
    y = model(x).argmax(1)
    broken = [
        model(Hunter(0.01, targets=n, near=1.0)(model, x, y)).argmax(1) != y for n in (0, 1, 3)
    ]
    assert broken[0].sum() < broken[2].sum()
    assert (broken[1] | ~broken[0]).all()
    assert (broken[2] | ~broken[1]).all()
    lead = model(x).gather(1, y[:, None])[:, 0] - model(x).topk(2).values[:, 1]
    after = model(Hunter(0.01)(model, x, y))
    rest = after.scatter(1, y[:, None], -torch.inf).amax(1)
    assert (after.gather(1, y[:, None])[:, 0] - rest <= lead + 1e-12).all()


def test_nothing_is_drawn_and_leaving_early_changes_no_verdict():
    model = net()
    x, y = batch(model)
    attack = Hunter(0.04)
    found = [attack(model, x, y, generator=PerImage(seed, torch.arange(60))) for seed in (0, 1)]
    assert torch.equal(*found)
    broken, passes = [], []
    for every in (0, 1, 3):
        counted = Counted(model)
        hunt = Hunt(counted, x, y, every=every)
        pursue(attack, counted, hunt, x, y, budget(0.04, x), PerImage(0, torch.arange(60)))
        broken.append(hunt.broken)
        passes.append(counted.backwards)
        assert torch.equal(model(hunt.x_adv).argmax(1) != y, hunt.broken)
        assert torch.equal(hunt.index, (~hunt.broken).nonzero().flatten())
    assert torch.equal(broken[0], broken[1])
    assert torch.equal(broken[0], broken[2])
    assert passes[1] < passes[2] < passes[0]


def test_what_is_far_from_breaking_costs_the_sprint_only():
    model = net()
    x, _ = batch(model)
    y = model(x).argmax(1)
    counted = Counted(model)
    hunt = Hunt(counted, x, y, every=1)
    pursue(Hunter(1e-4), counted, hunt, x, y, budget(1e-4, x), PerImage(0, torch.arange(60)))
    assert len(hunt) == 60
    assert counted.backwards == 8 * 60
    # the clean image, nine looks, a verdict, the ranking and a verdict again
    assert counted.forwards == 13 * 60


def test_the_hunt_of_some_brings_the_others_back():
    model = net()
    x, _ = batch(model, 10)
    hunt = Hunt(model, x, model(x).argmax(1))
    with hunt.only(torch.tensor([1, 4, 7])):
        assert hunt.index.tolist() == [1, 4, 7]
        hunt.index = hunt.index[torch.tensor([0, 2])]  # one breaks
    assert hunt.index.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_in_l1_nothing_is_tried(short):
    model = net()
    x, y = batch(model, 24)
    assert torch.equal(Hunter(5.0, "L1")(model, x, y), x)
    plain, hunted = both(model, x, y, 5.0, "L1")
    assert torch.equal(plain.x_adv, hunted.x_adv)
    assert 1 not in hunted.broken_by.tolist()


def test_an_empty_batch_has_the_hunter_among_its_names(short):
    model = net()
    x, y = batch(model)
    found = AutoAttack(0.06, hunter=True)(model, x[:0], y[:0])
    assert (len(found.x_adv), found.names[1]) == (0, "hunter")
    assert Hunter(0.06)(model, x[:0], y[:0]).shape == (0, 2, 6, 6)


def test_without_a_hunter_the_name_in_keys_is_as_it_was():
    assert repr(AutoAttack(0.1)) == "AutoAttack(eps=0.1, norm='Linf', version='standard')"
    hunted = AutoAttack(0.1, hunter=True)
    assert repr(hunted) == "AutoAttack(eps=0.1, norm='Linf', version='standard', hunter=True)"
    for attack in (AutoAttack(0.1), hunted, Hunter(0.1)):
        assert attack_identity(attack) == (repr(attack), ())
    assert list(AutoAttack(0.1).attacks(10)) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert list(hunted.attacks(10)) == ["hunter", "apgd-ce", "apgd-t", "fab-t", "square"]


def test_the_sample_is_of_what_the_hunter_left_and_the_battery_is_the_references():
    first = hunting_battery("cifar10")
    assert list(first) == ["PGD-20", "CW-20", "Hunter"]
    assert first["Hunter"] == Hunter(8 / 255)
    assert not strong_battery("cifar10")["AA"].hunter


@pytest.mark.parametrize("wrong", [{"sprint": 0}, {"steps": 0}, {"targets": -1}, {"near": 1.5}])
def test_settings_that_cannot_be_get_one_line(wrong):
    with pytest.raises(ValueError, match="sprint and steps are at least 1, targets at least 0"):
        Hunter(0.1, **wrong)
