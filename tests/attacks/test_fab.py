"""FAB on models whose radii are known, against the authors' numbers."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from crat.attacks.fab import FAB
from crat.attacks.hunt import Hunt, pursue
from crat.attacks.noise import PerImage
from crat.attacks.threat import budget, size

EPS = {"Linf": 0.04, "L2": 0.2, "L1": 0.6}
NORMS = list(EPS)
ATTACKS = [
    FAB(eps, norm, steps=8, restarts=2, targets=targets)
    for norm, eps in EPS.items()
    for targets in (0, 2)
]
each_norm = pytest.mark.parametrize("norm", NORMS)
each_attack = pytest.mark.parametrize(
    "attack", ATTACKS, ids=lambda attack: f"{attack.norm}-{attack.targets}"
)


def scattered(*shape):
    """Numbers in [-1, 1] without a pattern, the same on every version of torch; float64."""
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.7 * (places**2 % 9973)).view(shape)


class Waves(nn.Module):
    """A small smooth net with fixed weights."""

    def __init__(self, classes=4):
        super().__init__()
        self.inner = nn.Parameter(scattered(16, 48).float() / 2)
        self.outer = nn.Parameter(scattered(16, classes).T.float())

    def forward(self, x):
        return torch.tanh((x.flatten(1) - 0.5) @ self.inner.T) @ self.outer.T


class Linear(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1))


def linear(classes=5, scale=1.0):
    """A linear model of 48 inputs in float64, with logits close together where the inputs are
    about 0.5.
    """
    model = Linear(48, classes).double()
    model.weight.data = scattered(classes, 48) * scale
    model.bias.data = -model.weight.data.sum(1) / 2
    return model


def images(n=12, spread=1.0):
    return (scattered(2, n, 3, 4, 4)[1].float() * spread + 1) / 2


def batch(model, n=12, spread=1.0):
    """Images and the labels that the model gives, but for the first image."""
    x = images(n, spread).to(next(model.parameters()).dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
        y[0] = (y[0] + 1) % model(x).shape[1]
    return x, y


def true_radius(model, x, y, norm):
    """min over j of (z_y - z_j) / |w_y - w_j|_dual, 0 where the answer is another; the box does
    not bind.
    """
    z, w = model(x).detach(), model.weight.detach()
    differences = w[y][:, None] - w
    dual = {"Linf": 1, "L2": 2, "L1": float("inf")}[norm]
    radii = (z.gather(1, y[:, None]) - z) / differences.norm(dual, dim=2).clamp_min(1e-12)
    return radii.scatter(1, y[:, None], float("inf")).amin(1).clamp_min(0)


def wrong(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) != y


@each_attack
def test_stays_in_ball_and_box_and_breaks(attack):
    model = Waves()
    x, y = batch(model)
    x_adv = attack(model, x, y)
    assert x_adv.shape == x.shape
    assert not x_adv.requires_grad
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert (size(x_adv - x, attack.norm) <= attack.eps * (1 + 1e-5)).all()
    assert torch.equal(x_adv[0], x[0])  # wrong from the start
    assert 1 < wrong(model, x_adv, y).sum() < len(x)  # else these images decide nothing
    assert eval(repr(attack)) == attack


@each_attack
def test_eps_zero_is_the_identity_and_each_image_has_its_own_eps(attack):
    model = Waves()
    x, y = batch(model)
    assert torch.equal(attack(model, x, y, eps=0.0), x)
    eps = attack.eps * torch.linspace(0, 2, len(x))
    x_adv = attack(model, x, y, eps=eps)
    moved = size(x_adv - x, attack.norm)
    assert (moved <= eps * (1 + 1e-5)).all()
    # what stays right ends on its own sphere: the nearest adversarial point, pulled back
    right = ~wrong(model, x_adv, y) & (eps > 0)
    assert right.any()
    assert moved[right].numpy() == pytest.approx(eps[right].numpy(), rel=1e-4)


@pytest.mark.parametrize("targets", [0, 9])
@each_norm
def test_the_radius_of_a_linear_model_is_exact(norm, targets):
    model = linear()
    x, y = batch(model, 16, spread=0.2)
    radius, x_adv = FAB(1.0, norm, steps=20, targets=targets).radius(model, x, y)
    truth = true_radius(model, x, y, norm)
    assert truth[0] == radius[0] == 0
    assert truth.max() < 0.45  # else the box binds
    assert (radius >= truth - 1e-9).all()
    assert (radius <= truth * 1.01).all()
    assert torch.equal(wrong(model, x_adv, y), torch.ones(16, dtype=torch.bool))
    assert torch.allclose(size(x_adv - x, norm), radius)


# the least norms by fra31/auto-attack's FAB (20 steps, one start, three targets; untargeted the
# same) on `Waves`
AUTHORS = {
    "Linf": [
        0.11228,
        0.06531,
        0.00854,
        0.03406,
        0.00549,
        0.04208,
        0.0432,
        0.09597,
        0.0751,
        0.04335,
        0.00767,
    ],
    "L2": [
        0.5686,
        0.34771,
        0.04451,
        0.17896,
        0.03115,
        0.23503,
        0.24402,
        0.48585,
        0.409,
        0.23882,
        0.04408,
    ],
    "L1": [
        1.7947,
        0.97207,
        0.13467,
        0.58901,
        0.09172,
        0.6894,
        0.67894,
        1.26402,
        1.25487,
        0.70589,
        0.15989,
    ],
}


@pytest.mark.parametrize("targets", [0, 3])
@each_norm
def test_finds_the_norms_of_the_authors_code(norm, targets):
    model = Waves()
    x, y = batch(model)
    radius, _ = FAB(1.0, norm, steps=20, targets=targets).radius(model, x, y)
    assert radius[1:].tolist() == pytest.approx(AUTHORS[norm], rel=1e-3, abs=6e-6)


@each_norm
def test_a_judge_in_float32_makes_a_coarse_search_precise(norm):
    """The search model's logits are rounded to halves, so that on its own it sees no boundary
    where it is.
    """

    class Coarse(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            logits = self.model(x)
            return logits + ((2 * logits).round() / 2 - logits).detach()

    model = linear()
    x, y = batch(model, 16, spread=0.2)
    attack = FAB(1.0, norm, steps=20)
    _, alone = attack.radius(Coarse(model), x, y)
    judged, x_adv = attack.radius(Coarse(model), x, y, judge=model)
    truth = true_radius(model, x, y, norm)
    assert (judged <= 1.01 * truth).all()
    assert (judged >= truth - 1e-9).all()
    assert wrong(model, x_adv, y).all()
    assert wrong(model, alone, y).sum() < 12


@each_norm
def test_a_target_of_the_user_is_reached(norm):
    model = linear()
    x, _ = batch(model, 16, spread=0.2)
    y = model(x).argmax(1)
    target = (y + 1 + torch.arange(16) % 4) % 5
    eps = 1.0 if norm == "Linf" else 2.0
    for attack in (FAB(eps, norm, steps=20, targets=2), FAB(eps, norm, steps=20, targets=0)):
        x_adv = attack(model, x, y, target=target)
        assert torch.equal(model(x_adv).argmax(1), target)
        radius, x_adv = attack.radius(model, x, y, target=target)
        assert torch.equal(model(x_adv).argmax(1), target)
        assert (radius >= true_radius(model, x, y, norm) - 1e-9).all()


@each_attack
def test_batch_size_and_compaction_change_nothing(attack):
    model = Waves().double()
    x, y = batch(model)
    noise = PerImage(3, torch.arange(len(x)))
    whole = attack(model, x, y, generator=noise)
    parts = [
        attack(model, x[at], y[at], generator=noise.take(at))
        for at in torch.arange(len(x)).split(5)
    ]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-9)
    hunts = [Hunt(model, x, y, every=every) for every in (0, 1)]
    for hunt in hunts:
        model.requires_grad_(False)
        pursue(attack, model, hunt, x, y, budget(attack.eps, x), PerImage(3, torch.arange(len(x))))
    kept, compacted = hunts
    assert torch.equal(kept.broken, compacted.broken)
    assert torch.allclose(kept.x_adv[~kept.broken], compacted.x_adv[~kept.broken], atol=1e-9)
    assert wrong(model, compacted.x_adv, y)[kept.broken].all()
    assert (size(compacted.x_adv - x, attack.norm) <= attack.eps * (1 + 1e-9)).all()


@each_attack
def test_the_scale_of_the_logits_does_not_matter(attack):
    model = linear()
    x, y = batch(model, spread=0.2)
    radius, _ = attack.radius(model, x, y)
    for scale in (1e4, 1e-10):
        assert torch.allclose(attack.radius(linear(scale=scale), x, y)[0], radius, rtol=1e-6)


@each_norm
def test_two_classes_and_a_single_image(norm):
    model = linear(classes=2)
    x, y = batch(model, 6, spread=0.2)
    truth = true_radius(model, x, y, norm)
    eps = 1.0 if norm == "Linf" else 2.0
    for attack in (FAB(eps, norm, steps=20), FAB(eps, norm, steps=20, targets=0)):
        assert len(list(attack.runs(2))) == 1
        for i in range(3):
            radius, _ = attack.radius(model, x[i : i + 1], y[i : i + 1])
            assert radius.item() == pytest.approx(truth[i].item(), rel=0.01, abs=1e-9)
            assert wrong(model, attack(model, x[i : i + 1], y[i : i + 1]), y[i]).all()


@each_norm
def test_runs_aim_at_the_classes_by_rank_and_restarts_start_beside_the_image(norm):
    """Class 1 hangs on the first half of the pixels only, class 2, which comes second, on the
    other half.
    """

    class Halves(nn.Module):
        def forward(self, x):
            first, second = (x.flatten(1) - 0.5).split(24, 1)
            return torch.stack([0.3 - 0 * first.sum(1), 0.1 + first.sum(1), second.sum(1)], 1)

    x, y = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.long)
    attack = FAB(0.2, norm, steps=1, restarts=2)
    moved = []
    for run in attack.runs(3):
        noise, hunt = PerImage(0, torch.arange(2)), Hunt(Halves(), x, y)
        moved.append(run(Halves(), x, y, budget(10.0, x), noise, hunt).sub(x).flatten(1).abs())
    assert len(moved) == 4
    for aimed, still in (moved[0].split(24, 1), moved[2].split(24, 1)[::-1]):
        assert (aimed.amax(1) > 0).all()
        assert (still == 0).all()
    start = attack._start(1, 1, x, budget(0.2, x), PerImage(0, torch.arange(2)), None)
    assert size(start - x, norm).tolist() == pytest.approx([0.1, 0.1], rel=1e-4)
    assert not torch.equal(start[0], start[1])


@each_attack
def test_no_images_and_a_target_for_each_other_class(attack):
    model = Waves(3)
    x, y = batch(model)
    assert len(list(replace(attack, targets=9).runs(3))) == 2 * attack.restarts
    assert attack(model, x[:0], y[:0]).shape == x[:0].shape
    assert attack.radius(model, x[:0], y[:0])[0].shape == (0,)


@each_attack
@pytest.mark.parametrize("kind", ["constant", "dead"])
def test_without_a_gradient_nothing_is_found_and_nothing_breaks(attack, kind):
    """Equal logits; logits that do not hang on the image."""

    class Flat(nn.Module):
        def forward(self, x):
            total = x.flatten(1).sum(1, keepdim=True)
            return total * 0 + torch.tensor(
                [1.0, 1.0, 1.0] if kind == "constant" else [3.0, 2.0, 1.0]
            )

    x, y = images(), torch.zeros(12, dtype=torch.long)
    assert torch.isfinite(attack(Flat(), x, y)).all()
    radius, x_adv = attack.radius(Flat(), x, y)
    assert torch.equal(x_adv, x)
    assert torch.isinf(radius).all()


@each_attack
def test_any_layout_and_half_precision(attack):
    model = Waves()
    x, y = batch(model)
    strided = x.double().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not strided.is_contiguous()
    exact = copy.deepcopy(model).double()
    assert torch.allclose(attack(exact, strided, y), attack(exact, x.double(), y), atol=1e-9)
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(model).to(dtype)
        x_adv = attack(half, x.to(dtype), y)
        assert x_adv.dtype == dtype
        assert 0 <= x_adv.min() <= x_adv.max() <= 1
        rounding = torch.finfo(dtype).eps * x[0].numel()
        assert (
            size(x_adv.float() - x.to(dtype).float(), attack.norm) <= attack.eps * 1.01 + rounding
        ).all()
        assert wrong(half, x_adv, y).sum() > 1


@pytest.mark.parametrize(
    "setting",
    [
        {"norm": "L3"},
        {"steps": 0},
        {"restarts": 0},
        {"targets": -1},
        {"alpha_max": 2},
        {"eta": 0},
        {"beta": 1.1},
    ],
)
def test_settings_out_of_range_are_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        FAB(0.1, **setting)
