"""AutoAttack and its parts under one table of properties: whatever the model, the batch or the
precision.
"""

import copy
import warnings

import pytest
import torch
from tiny_runs import shorten_autoattack
from torch import nn

from crat.attacks import (
    APGD,
    CWL2,
    FAB,
    FGSM,
    MIFGSM,
    PGD,
    AutoAttack,
    DeepFool,
    Hunter,
    PerImage,
    Square,
    cw,
)
from crat.attacks.door import Broken
from crat.attacks.hunt import Hunt, pursue
from crat.attacks.judge import attacked_batches, attacked_logits
from crat.attacks.objectives import CrossEntropy, Margin  # noqa: F401 (the reprs name them)
from crat.attacks.threat import budget, size
from crat.attacks.watched import RobustnessWarning, check_square

EPS = {"Linf": 0.06, "L2": 0.5, "L1": 5.0}
QUICK = {
    "fgsm": FGSM(0.06),
    "pgd": PGD(0.06, 0.02, 5),
    "pgd-l1": PGD(5.0, 1.0, 5, norm="L1"),
    "pgd-first": PGD(0.06, 0.02, 5, stop="first"),
    "mi-fgsm": MIFGSM(0.06, steps=5),
    "cw": cw(PGD(0.06, 0.02, 5)),
    "deepfool": DeepFool(steps=5),
    "cw-l2": CWL2(steps=50, search_steps=3, initial_const=1.0, lr=0.05),
    **{f"apgd-{norm}": APGD(eps, norm, steps=10) for norm, eps in EPS.items()},
    "apgd-t": APGD(0.06, loss="dlr", targets=3, steps=10),
    **{f"fab-{norm}": FAB(eps, norm, steps=5, targets=3) for norm, eps in EPS.items()},
    **{f"square-{norm}": Square(eps, norm, queries=60) for norm, eps in EPS.items()},
    "hunter": Hunter(0.06, steps=5),
    "hunter-L2": Hunter(0.5, "L2", steps=5),
    "aa": AutoAttack(0.06),
    "aa-hunter": AutoAttack(0.06, hunter=True),
}


@pytest.fixture(autouse=True)
def short_autoattack(monkeypatch):
    """The battery with its parts shortened: its own logic is tested here, the parts' strength
    elsewhere.
    """
    shorten_autoattack(monkeypatch)


def net(classes=5, seed=0):
    """A small smooth network with BatchNorm and dropout, half of whose images a radius of 0.06
    breaks.
    """
    torch.manual_seed(seed)
    body = [
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
    ]
    return nn.Sequential(*body, nn.Linear(8 * 36, classes))


def batch(model, n=24, seed=0):
    """Images, labelled as the model sees them but for every eighth."""
    x = torch.rand(n, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    y = copy.deepcopy(model).eval()(x).argmax(1)
    y[::8] = 1 - y[::8].clamp(max=1)
    return x, y


def exact(n=24):
    """A network and its batch in float64: where rounding could decide a step, two right
    computations may differ.
    """
    model = net().eval()
    x, y = batch(model, n)
    return model.double(), (x.double(), y)


def images(found):
    return found.x_adv if isinstance(found, Broken) else found


@pytest.fixture(params=QUICK)
def attack(request):
    return QUICK[request.param]


def test_ball_box_and_a_model_left_as_found(attack):
    model = net().train()
    x, y = batch(model)
    model[1].eval()
    next(model.parameters()).requires_grad_(False)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    wanted, state = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    eps = {"eps": 1.0} if isinstance(attack, (DeepFool, CWL2)) else {}
    x_adv = images(attack(model, x, y, **eps))
    norm = getattr(attack, "norm", "L2")
    assert (size(x_adv - x, norm) <= (getattr(attack, "eps", 1.0)) * (1 + 1e-5)).all()
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert not x_adv.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert eval(repr(attack)) == attack  # the id in cards


def test_eps_zero_and_eps_per_sample(attack):
    model = net().eval()
    x, y = batch(model)
    assert torch.equal(images(attack(model, x, y, eps=0.0)), x)
    eps = getattr(attack, "eps", 1.0) * torch.tensor([0.0, 0.5, 1.0]).repeat(8)
    x_adv = images(attack(model, x, y, eps=eps))
    assert (size(x_adv - x, getattr(attack, "norm", "L2")) <= eps * (1 + 1e-5)).all()
    assert (x_adv != x).any()


def test_the_batch_decides_nothing(attack):
    """What is drawn belongs to the image, so a seed's verdicts do not depend on who else is in
    the batch.
    """
    model, (x, y) = exact(40)
    whole = images(attack(model, x, y, generator=PerImage(1, torch.arange(40))))
    parts = [
        images(attack(model, x[i], y[i], generator=PerImage(1, i)))
        for i in torch.arange(40).split(9)
    ]
    assert torch.equal(model(whole).argmax(1), model(torch.cat(parts)).argmax(1))


@pytest.mark.parametrize("seen", [1, 2])
def test_unusual_input(attack, seen):
    model, (x, y) = exact()
    alone = images(attack(model, x[:1], y[:1]))
    assert alone.shape == x[:1].shape
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    apart = (
        (images(attack(model, strided, y)) - images(attack(model, x, y))).flatten(1).abs().amax(1)
    )
    # as hills have it: see test_square
    rounding = 10 * 2**-52 / 1e-12 * getattr(attack, "eps", 1.0)
    assert (apart < rounding).all() or (
        isinstance(attack, Square) and (apart < rounding).float().mean() > 0.8
    )
    half = images(attack(net(seed=seen).eval().half(), x.half(), y))
    assert half.isfinite().all()
    assert half.dtype == torch.float16


def test_two_classes_and_a_constant_model_end(attack):
    two = net(2).eval()
    x, y = batch(two)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RobustnessWarning)
        if getattr(attack, "loss", "") == "dlr":
            with pytest.raises(ValueError, match="needs at least 4 classes, the model gives 2"):
                attack(two, x, y)
        else:
            assert images(attack(two, x, y)).isfinite().all()
        constant = nn.Sequential(nn.Flatten(), nn.Linear(72, 5))
        nn.init.zeros_(constant[1].weight)
        with torch.no_grad():
            constant[1].bias.copy_(torch.arange(5.0))
        x_adv = images(attack(constant, x, torch.full_like(y, 4)))
    assert x_adv.isfinite().all()
    assert (constant(x_adv).argmax(1) == 4).all()


def test_nan_logits_get_one_line(attack):
    class Broke(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :5] * float("nan")

    x = torch.rand(4, 2, 6, 6)
    with pytest.raises(
        ValueError, match=r"the model gives NaN(, infinite or huge)? logits for 4 of 4 images"
    ):
        attacked_logits(Broke(), x, torch.zeros(4, dtype=torch.long), attack)


def test_autoattack_tells_what_broke_each_image():
    model = net().eval()
    x, y = batch(model, 60)
    found = AutoAttack(0.06)(model, x, y)
    wrong = model(found.x_adv).argmax(1) != y
    assert torch.equal(wrong, found.broken_by >= 0)
    assert torch.equal(found.broken_by == 0, model(x).argmax(1) != y)
    assert torch.equal(found.x_adv[~wrong], x[~wrong])
    assert found.names == ("clean", "apgd-ce", "apgd-t", "fab-t", "square")
    assert 0.2 < wrong.float().mean() < 1
    weak = APGD(0.06, steps=10)(model, x, y)
    assert (wrong | (model(weak).argmax(1) == y)).all()  # never behind its first part


def test_leaving_early_changes_no_verdict():
    model, (x, y) = exact(60)
    broken = []
    for every in (0, 1, 3):
        hunt = Hunt(model, x, y, every=every)
        for kernel in AutoAttack(0.06).attacks(5).values():
            pursue(kernel, model, hunt, x, y, budget(0.06, x), PerImage(0, torch.arange(60)))
        broken.append(hunt.broken)
    assert torch.equal(broken[0], broken[1])
    assert torch.equal(broken[0], broken[2])


def test_no_model_is_asked_about_nothing():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            assert len(x)
            return self.net(x)

    model = Picky().eval()
    x, y = batch(model, 6)
    assert (AutoAttack(0.9)(model, x, y).broken_by >= 0).all()


def test_a_search_copy_may_be_wrong_the_judge_decides():
    model, blind = net().eval(), net(seed=5).eval()
    x, y = batch(model, 30)
    found = AutoAttack(0.06)(blind, x, y, judge=model)
    assert torch.equal(model(found.x_adv).argmax(1) != y, found.broken_by >= 0)


@pytest.mark.parametrize("norm", EPS)
def test_scaling_the_logits_leaves_the_verdict(norm):
    model, (x, y) = exact(40)

    class Scaled(nn.Module):
        def forward(self, images):
            return 10_000 * model(images)

    plain, scaled = (AutoAttack(EPS[norm], norm)(m, x, y).broken_by >= 0 for m in (model, Scaled()))
    assert torch.equal(plain, scaled)


def test_linear_truth_class_by_class():
    """No success below (z_y - z_j) / |w_y - w_j|_1, success above, with a budget per class."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4)).double()
    x = 0.3 + 0.4 * torch.rand(60, 2, 6, 6, dtype=torch.float64)
    z, w = model(x).detach(), model[1].weight.detach()
    y = z.argmax(1)
    gaps, slopes = z.gather(1, y[:, None]) - z, (w[y][:, None] - w).abs().sum(2)
    radius = torch.where(slopes > 0, gaps / slopes, torch.inf).amin(1)
    assert radius.max() < 0.29  # the box does not bind
    factor_of_class = torch.tensor([0.99, 1.02, 0.99, 1.02], dtype=torch.float64)
    found = AutoAttack(1.0)(model, x, y, eps=radius * factor_of_class[y])
    assert torch.equal(found.broken_by >= 0, factor_of_class[y] > 1)


def test_versions_hold_the_reference_settings():
    kernels = AutoAttack(0.1).attacks(10)
    assert [type(k) for k in kernels.values()] == [APGD, APGD, FAB, Square]
    assert (kernels["apgd-t"].targets, kernels["apgd-t"].loss, kernels["fab-t"].targets) == (
        9,
        "dlr",
        9,
    )
    plus = AutoAttack(0.1, version="plus").attacks(10)
    assert list(plus) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert (plus["apgd-ce"].restarts, plus["fab"].restarts, plus["fab"].targets) == (5, 5, 0)
    rand = AutoAttack(0.1, version="rand").attacks(10)
    assert {name: kernel.eot for name, kernel in rand.items()} == {"apgd-ce": 20, "apgd-dlr": 20}
    sparse = AutoAttack(8.0, "L1").attacks(10)
    assert (
        sparse["apgd-ce"].restarts,
        sparse["apgd-t"].targets,
        sparse["apgd-t"].larger_radii,
    ) == (5, 5, True)
    with pytest.raises(ValueError, match="version is one of standard, plus, rand, not 'best'"):
        AutoAttack(0.1, version="best")


class Random(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :5] + torch.randn(
            len(x), 5, generator=torch.Generator().manual_seed(next(SEEDS))
        )


SEEDS = iter(range(10**6))


@pytest.mark.parametrize(
    ("model", "warned"),
    [
        (Random(), "outputs are random"),
        (nn.Sequential(net(), nn.Softmax(1)), "outputs look like probabilities"),
        (nn.Sequential(nn.Flatten(), nn.Threshold(2.0, 0.5), nn.Linear(72, 5)), "zero gradient"),
        (net(3), "with 3 classes there is no targeted DLR loss"),
        (net(2), "with 2 classes there is no DLR loss"),
    ],
)
def test_what_makes_a_number_unbelievable_warns_in_one_line(model, warned):
    x = torch.rand(6, 2, 6, 6)
    with pytest.warns(RobustnessWarning, match=warned) as seen:
        AutoAttack(0.01)(model, x, model.eval()(x).argmax(1))
    assert all("\n" not in str(w.message) for w in seen)


def test_square_beating_gradients_warns():
    with pytest.warns(RobustnessWarning, match="Square broke 3 of 1000 images"):
        check_square(3, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_square(2, 1000)


def test_batches_carry_what_broke_them_and_resume():
    model, (x, y) = exact(50)
    whole = list(attacked_batches(model, x, y, AutoAttack(0.06), batch_size=20))
    rest = list(attacked_batches(model, x, y, AutoAttack(0.06), batch_size=7, begin=20))
    assert torch.equal(
        torch.cat([b.broken_by for b in whole])[20:] >= 0,
        torch.cat([b.broken_by for b in rest]) >= 0,
    )
    assert torch.equal(
        torch.cat([b.logits for b in whole]).argmax(1) != y,
        torch.cat([b.broken_by for b in whole]) >= 0,
    )
