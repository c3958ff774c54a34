"""A call of an attack searches on a copy: which model has one, when it is used again, and what
stays as it was without one.
"""

import copy
import gc
import inspect
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from torch import nn

from crat.attacks import (
    APGD,
    CWL2,
    FAB,
    FGSM,
    MIFGSM,
    PGD,
    AutoAttack,
    CrossEntropy,
    DeepFool,
    PerImage,
    PlainCrossEntropy,
    Square,
    door,
    search,
)
from crat.attacks.judge import quick_logits
from crat.attacks.logits import AttackError, finite_logits
from crat.attacks.looked import FOLDED, SearchWarning, difference
from crat.attacks.search import SMALL, Searcher, to_search
from crat.attacks.watched import RobustnessWarning
from crat.config import ModelConfig
from crat.nets import models

ATTACKS = {
    "fgsm": FGSM(0.1),
    "pgd": PGD(0.1, 0.02, 5),
    "pgd-train": PGD(0.1, 0.02, 5, batch_norm="train"),
    "pgd-restarts": PGD(0.1, 0.05, 3, restarts=2),
    "mifgsm": MIFGSM(0.1, steps=5),
    "apgd": APGD(0.1, steps=5),
    "apgd-t": APGD(0.1, loss="dlr", steps=3, targets=2),
    "fab": FAB(0.1, steps=3, targets=2),
    "square": Square(0.1, queries=20),
    "autoattack": AutoAttack(0.05, version="rand"),
}


def net(classes=5):
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(8 * 36, classes))
    model[1].running_mean.normal_(0, 0.3)
    model[1].running_var.uniform_(0.5, 2)
    return model


def batch(n=64):
    x = torch.rand(n, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    return x, net().eval()(x).argmax(1)


def images(found):
    return found.x_adv if hasattr(found, "x_adv") else found


@pytest.fixture
def everything_pays(monkeypatch):
    """A copy even where it costs more than it saves."""
    monkeypatch.setattr(search, "SMALL", 0)


@pytest.fixture
def in_float32(monkeypatch):
    monkeypatch.setattr(search, "pick_dtype", lambda dtype, device: "float32")


@pytest.fixture
def made(monkeypatch):
    """The copies that were made and kept; None for a model that has none."""
    copies, put = [], weakref.WeakKeyDictionary.__setitem__

    def noted(kept, model, value):
        if kept is search._KEPT:
            copies.append(value.search)
        put(kept, model, value)

    # not in crat, whose replaced code belongs to the identity of a model
    monkeypatch.setattr(weakref.WeakKeyDictionary, "__setitem__", noted)
    return copies


@pytest.mark.parametrize("name", ATTACKS)
def test_a_call_searches_on_a_copy_and_finds_what_the_model_itself_finds(
    name, everything_pays, in_float32, made
):
    model, (x, y) = net().train(), batch()
    before = copy.deepcopy(model.state_dict())
    fast, exact = (
        images(ATTACKS[name](model, x, y, search=kind, generator=torch.Generator().manual_seed(3)))
        for kind in ("fast", "exact")
    )
    assert len(made) == 1
    # a gradient near zero may change its sign by rounding, and an image its side
    assert ((fast - exact).abs() < 1e-3).float().mean() > 0.9
    right = [(finite_logits(model.eval(), found).argmax(1) == y).sum() for found in (fast, exact)]
    assert abs(right[0] - right[1]) <= 3
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert fast.is_contiguous()


@pytest.mark.parametrize("name", ATTACKS)
def test_in_bfloat16_a_call_breaks_as_many(name, everything_pays, monkeypatch):
    monkeypatch.setattr(search, "pick_dtype", lambda d, device: "bfloat16" if d == "auto" else d)
    model, (x, y) = net().eval(), batch()
    fast, exact = (images(ATTACKS[name](model, x, y, search=kind)) for kind in ("fast", "exact"))
    kept = search._KEPT[model].search
    assert kept.dtype == ("float32" if name == "pgd-restarts" else "bfloat16")
    right = [(finite_logits(model, found).argmax(1) == y).sum() for found in (fast, exact)]
    assert abs(right[0] - right[1]) <= 6


def test_a_verdict_is_the_models_own(everything_pays, monkeypatch):
    """An image that a battery gives back as broken is misclassified by the model in float32."""
    monkeypatch.setattr(search, "pick_dtype", lambda dtype, device: "bfloat16")
    model, (x, y) = net().eval(), batch()
    broken = AutoAttack(0.02, version="rand")(model, x, y)
    wrong = finite_logits(model, broken.x_adv).argmax(1) != y
    assert 0 < wrong.sum() < len(x)
    assert torch.equal(wrong, broken.broken_by >= 0)
    found = FAB(0.1, steps=5)(model, x, y)
    radius, nearest = FAB(0.1, steps=5).radius(model, x, y)
    assert found.shape == nearest.shape
    assert (
        finite_logits(model, nearest)[radius.isfinite()].argmax(1) != y[radius.isfinite()]
    ).all()


def test_the_copy_is_used_again_while_the_model_is_the_same(everything_pays, made):
    model, (x, y) = net().eval(), batch()
    attack = PGD(0.1, 0.02, 3)
    first = attack(model, x, y)
    assert torch.equal(attack(model, x, y), first)
    model.train()  # the mode does not matter to what searches in eval mode
    assert torch.equal(attack(model, x, y), first)
    assert len(made) == 1
    changes = (
        lambda: model[4].bias.data.add_(1),  # which no version counter sees
        lambda: model[1].running_mean.mul_(2),
        lambda: setattr(model, "2", nn.LeakyReLU()),
        lambda: setattr(model[2], "negative_slope", 0.5),
        lambda: setattr(model[4], "weight", nn.Parameter(model[4].weight * 2)),
    )
    for number, change in enumerate(changes, start=2):
        change()
        attack(model, x, y)
        assert len(made) == number
    attack(model, x[:, :, :, :], y)
    assert len(made) == number
    PGD(0.1, 0.02, 3, batch_norm="train")(model, x, y)
    assert len(made) == number + 1


def test_a_change_of_code_is_a_change(everything_pays, made):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.after = net(), lambda z: z

        def forward(self, x):
            return self.after(self.inner(x))

    model, (x, y) = Own().eval(), batch()
    attack = FGSM(0.1)
    attack(model, x, y)
    attack(model, x, y)
    assert len(made) == 1
    model.after = lambda z: -z
    away = attack(model, x, y, search="exact")
    assert (attack(model, x, y).sub(x).sign() == away.sub(x).sign()).float().mean() > 0.9
    assert len(made) == 2


def test_what_cannot_be_read_is_copied_anew(everything_pays, made):
    class Guarded(nn.Module):
        """Its state has a part that has no content to be read."""

        copied = 0

        def __init__(self):
            super().__init__()
            self.inner, self.guard = net(), memoryview(b"")

        def __deepcopy__(self, memo):
            type(self).copied += 1
            return type(self)().eval()

        def forward(self, x):
            return self.inner(x)

    model, (x, y) = Guarded().eval(), batch()
    for number in (1, 2):
        before = Guarded.copied
        assert isinstance(to_search(model, x, 10, "eval"), Searcher)
        assert Guarded.copied > before, number
    FGSM(0.1)(model, x, y)
    assert not made


def test_a_copy_goes_with_its_model(everything_pays):
    model, (x, y) = net().eval(), batch()
    FGSM(0.1)(model, x, y)
    held = weakref.ref(model)
    assert model in search._KEPT
    del model
    gc.collect()
    assert held() is None


def counting():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = net(), 0

        def forward(self, x):
            self.calls += 1
            return self.inner(x)

    return Counting()


def moving():
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x):
            self.mean.lerp_(x.detach().mean(), 0.1)
            return self.inner(x)

    return Moving()


def hooked():
    model = net()
    model[0].register_forward_hook(lambda module, args, out: out * 2)
    return model


def single():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def __deepcopy__(self, memo):
            raise RuntimeError("there is only one")

        def forward(self, x):
            return self.inner(x)

    return Single()


def double():
    return net().double()


def half():
    return net().bfloat16()


THEMSELVES = {f.__name__: f for f in (counting, moving, hooked, single, double, half)}


@pytest.mark.parametrize("kind", THEMSELVES)
def test_models_that_are_searched_themselves(kind, everything_pays):
    x, y = batch()
    x = x.to({"double": torch.float64, "half": torch.bfloat16}.get(kind, torch.float32))
    model, other = THEMSELVES[kind]().eval(), THEMSELVES[kind]().eval()
    attack = PGD(0.1, 0.02, 3)
    assert torch.equal(attack(model, x, y), attack(other, x, y, search="exact"))
    assert to_search(model, x, 3, "eval") is model
    for one, same in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, same)
    if kind == "counting":
        assert model.calls == other.calls == 3  # a trial is none of its passes


@pytest.mark.parametrize("mode", ["as_is", "moving"])
def test_modes_that_need_the_models_own_state_search_on_it(mode, everything_pays, made):
    x, y = batch()
    model, other = net().train(), net().train()
    attack = PGD(0.1, 0.02, 3, batch_norm=mode)
    assert torch.equal(attack(model, x, y), attack(other, x, y, search="exact"))
    assert all(map(torch.equal, model.buffers(), other.buffers()))
    assert not made


def test_a_caller_who_chose_a_precision_or_a_judge_has_no_other_copy(everything_pays, made):
    model, (x, y) = net().eval(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        FGSM(0.1)(model, x, y)
    APGD(0.1, steps=2)(model, x, y, judge=net().eval())
    FGSM(0.1)(Searcher(model, "float32", ""), x, y)
    for attack in (DeepFool(steps=2), CWL2(steps=2, search_steps=1)):
        attack(model, x[:4], y[:4])
    quick_logits(model, x, y, PGD(0.1, 0.02, 20), seed=0, dtype="float32")
    FGSM(0.1)(model, x, y, search="exact")
    assert not made
    FGSM(0.1)(model, x, y)
    assert len(made) == 1


def test_a_small_call_searches_on_the_model_itself(made):
    model, (x, y) = net().eval(), batch()
    PGD(0.1, 0.02, SMALL // 64 - 1)(model, x, y)
    assert not made
    PGD(0.1, 0.02, SMALL // 64)(model, x, y)
    assert len(made) == 1


def test_search_is_a_setting_of_every_call():
    model, (x, y) = net().eval(), batch(4)
    for attack in (*ATTACKS.values(), DeepFool(steps=1), CWL2(steps=1, search_steps=1)):
        assert inspect.signature(attack.__call__).parameters["search"].default == "fast"
        with pytest.raises(ValueError, match="search is one of fast, exact, not 'slow'"):
            attack(model, x, y, search="slow")


@pytest.mark.parametrize("generator", [torch.Generator(), PerImage(5, torch.arange(64))])
def test_where_the_copy_fails_the_model_itself_is_searched(generator, everything_pays, monkeypatch):
    """With the same random numbers."""
    model, (x, y) = net().eval(), batch()
    exact = PGD(0.1, 0.02, 3)(model, x, y, search="exact", generator=copy.deepcopy(generator))

    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("this layer has no such kernel")

    monkeypatch.setattr(door, "to_search", lambda *args: Fails())
    with pytest.warns(SearchWarning, match="the search was made anew on the model itself; on its"):
        found = PGD(0.1, 0.02, 3)(model, x, y, generator=generator)
    assert torch.equal(found, exact)


class Spoil(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[::3] = torch.nan
        return gradient


def test_what_spoils_a_gradient_is_told_of_the_model_itself(everything_pays):
    x, y = batch(6)

    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            return self.inner(Spoil.apply(x))

    with pytest.raises(AttackError, match="is NaN or infinite for 2 of 6 images"):
        PGD(0.1, 0.02, 3)(Spoilt().eval(), x, y)


class Threshold(nn.Module):
    """An image whose first pixel is below the threshold has no gradient; `given` rounds it."""

    def __init__(self, inner, given=lambda x: x):
        super().__init__()
        self.inner, self.given = inner, given

    def forward(self, x):
        alive = (self.given(x[:, :1, :1, :1]) > 0.5).to(x.dtype)
        return self.inner(x * alive) + 0 * x.sum()


def test_a_gradient_that_only_the_copy_lacks_is_no_warning(everything_pays, monkeypatch):
    """And one that the model lacks is, whatever the copy has."""
    model, (x, y) = net().eval(), batch()
    dead = Threshold(net().eval())
    attack = FGSM(0.1)
    monkeypatch.setattr(door, "to_search", lambda *args: dead)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attack(model, x, y)
    assert not [w for w in caught if issubclass(w.category, RobustnessWarning)]
    labels = dead(x).argmax(1)
    with pytest.warns(RobustnessWarning, match="zero gradient"):
        attack(Threshold(net().eval()), x, labels)


def test_a_copy_with_other_zero_gradients_than_the_model_is_none(monkeypatch):
    """What it would report of them would not be the model's."""
    x, _ = batch(16)
    model = Threshold(net().eval())
    dead = (x[:, 0, 0, 0] <= 0.5).nonzero().flatten()
    assert 0 < len(dead) < 16
    looked = search._look(model, x)
    other = looked._replace(gradient=looked.gradient.clone())
    other.gradient[dead[0]] = 1e-12
    assert difference(looked, looked, FOLDED) == ""
    assert "zero" in difference(looked, other, FOLDED)


def test_a_saturated_objective_is_still_told(everything_pays):
    """The gradient vanishes in the objective, not in the copy."""
    x, _ = batch()

    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            return 1e6 * self.inner(x)

    model = Steep().eval()
    y = model(x).argmax(1)
    for kind in ("fast", "exact"):
        with pytest.warns(RobustnessWarning, match="zero gradient"):
            FGSM(0.1, objective=PlainCrossEntropy())(model, x, y, search=kind)


def test_random_numbers_of_a_model_are_the_same_in_the_first_call_and_the_next(everything_pays):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            return self.inner(x + 0.05 * torch.randn(x.shape))

    model, (x, y) = Noisy().eval(), batch()
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(PGD(0.1, 0.02, 3)(model, x, y))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["small_cnn", "preact_resnet18"])
def test_networks_of_crat_have_copies(name, everything_pays, made):
    model = models.build(ModelConfig(name, width=4), 5, (2, 16, 16), seed=0).eval()
    x = torch.rand(16, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    attack = PGD(0.1, 0.05, 4)
    fast = [attack(model, x, y) for _ in range(2)]
    assert torch.equal(*fast)
    assert len(made) == 1
    found = (x, fast[0], attack(model, x, y, search="exact"))
    clean, fast_loss, exact_loss = (CrossEntropy()(model(f), y).mean() for f in found)
    assert abs(fast_loss - exact_loss) < 0.3 * (exact_loss - clean)


FRESH = """
import torch
from crat.attacks import FGSM
if {called}:
    x = torch.rand(300, 1, 4, 4)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    FGSM(0.1)(model, x, model(x).argmax(1))
import crat.outcomes.cache
from crat.keys.identity import attack_identity
assert attack_identity(FGSM(0.1)).text == repr(FGSM(0.1)), attack_identity(FGSM(0.1))
"""


@pytest.mark.parametrize("called", [False, True])
def test_what_an_attack_is_kept_under_is_what_it_was(called):
    """The identity of crat's code is noted when all of it is there: keys do not change."""
    subprocess.run([sys.executable, "-c", FRESH.format(called=called)], check=True)
