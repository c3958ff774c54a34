"""What is made to travel: universal perturbations, transfer to another model, and MI-FGSM, which
was made for it.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crat.attacks import MIFGSM, PGD, CrossEntropy, Margin, PerImage
from crat.attacks.logits import AttackError
from crat.attacks.threat import size
from crat.attacks.transfer import transfer
from crat.attacks.universal import apply_universal, fit_universal, fooling_rates

EPS = 0.2


def data(n=60, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 4, 4, generator=generator), torch.arange(n) % classes


def conv():
    torch.manual_seed(0)
    body = [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
    ]
    return nn.Sequential(*body, nn.Linear(64, 3)).train()


class Brightness(nn.Module):
    """Class 1 where the mean pixel is above 1/2, class 0 below: the two need opposite deltas."""

    def forward(self, x):
        bright = x.flatten(1).mean(1) - 0.5
        return torch.stack([-bright, bright], 1)


class FirstPixel(nn.Module):
    """The class is written into the first pixel: floor(K * pixel), as sure logits."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, x):
        return F.one_hot(
            (x[:, 0, 0, 0] * self.classes).long().clamp(0, self.classes - 1), self.classes
        ).float()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fit(model, x, y, **settings):
    defaults = {"eps": EPS, "n_classes": 3, "class_wise": True, "epochs": 2, "batch_size": 15}
    return fit_universal(model, x, y, **{**defaults, **settings})


@pytest.mark.parametrize("objective", [CrossEntropy(), Margin()])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("class_wise", [True, False])
def test_delta_fills_its_ball(norm, class_wise, objective):
    x, y = data()
    delta = fit(conv(), x, y, norm=norm, class_wise=class_wise, objective=objective, epochs=6)
    assert delta.shape == (3 if class_wise else 1, 1, 4, 4)
    assert not delta.requires_grad
    moved = size(delta, norm)
    assert (moved <= EPS + 1e-6).all()
    assert (moved > 0.5 * EPS).all()
    assert 0 <= apply_universal(x, y, delta).min() <= apply_universal(x, y, delta).max() <= 1


def test_each_class_has_its_own_eps_and_an_absent_one_stays_zero():
    x, y = data()
    eps = torch.tensor([0.0, 0.1, 0.2])
    delta = fit(conv(), x, y, eps=eps, epochs=4)
    assert (size(delta, "Linf") <= eps + 1e-6).all()
    assert size(delta, "Linf")[1:].min() > 0.05
    absent = fit(conv(), x[y != 1], y[y != 1])
    assert (absent[1] == 0).all()
    assert (absent[[0, 2]] != 0).any()


def test_opposite_deltas_need_a_delta_for_each_class():
    model, (x, y) = Brightness(), data(80, 2)
    x = 0.5 + 0.1 * (2 * y - 1)[:, None, None, None] + 0.05 * (x - 0.5)
    delta, agnostic = (
        fit(model, x, y, n_classes=2, class_wise=wise, epochs=3) for wise in (True, False)
    )
    assert torch.equal(fooling_rates(model, x, y, delta, 2), torch.ones(2))
    torch.testing.assert_close(delta[0], torch.full((1, 4, 4), EPS))
    torch.testing.assert_close(delta[1], torch.full((1, 4, 4), -EPS))
    assert fooling_rates(model, x, y, agnostic, 2).sum() <= 1
    # of the deltas of the other class, nothing is fooled
    assert (fooling_rates(model, x, y, delta.flip(0), 2) == 0).all()


def test_fit_is_the_mean_gradients_sign():
    """Plain ascent with all images in one batch, by autograd through the clipping."""
    model, (x, y) = conv().double().eval(), data(n=30)
    x, step = x.double(), 0.07

    def cut(logits, labels):
        return CrossEntropy()(logits, labels).clamp_max(1.5)

    expected = torch.zeros(3, 1, 4, 4, dtype=torch.float64)
    for _ in range(4):
        expected.requires_grad_()
        value = cut(model((x + expected[y]).clamp(0, 1)), y).mean()
        (gradient,) = torch.autograd.grad(value, expected)
        expected = (expected.detach() + step * gradient.sign()).clamp(-EPS, EPS)
    ours = fit(model, x, y, step_size=step, objective=cut, epochs=4, batch_size=30)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_seeds_repeat_and_nothing_else_is_touched():
    model, (x, y) = conv(), data()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    first, again, other = (fit(model, x, y, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(fit(model, x, y), fit(model, x, y))
    assert fit(model, x, y, generator=PerImage(3, torch.arange(60))).shape == first.shape
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_bytes_halves_and_non_contiguous_images():
    model, (x, y) = conv(), data()
    bytes_ = (x * 255).round().to(torch.uint8)
    delta = fit(model, bytes_, y)
    torch.testing.assert_close(delta, fit(model, bytes_.float() / 255, y))
    moved = apply_universal(bytes_, y, delta)
    torch.testing.assert_close(moved, (bytes_.float() / 255 + delta[y]).clamp(0, 1))
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    exact = copy.deepcopy(model).double()
    torch.testing.assert_close(fit(exact, turned.double(), y), fit(exact, x.double(), y))
    half = model.bfloat16()
    delta = fit(half, x.bfloat16(), y)
    assert delta.dtype == torch.float32
    assert delta.isfinite().all()
    assert apply_universal(x.bfloat16(), y, delta).dtype == torch.bfloat16
    assert fooling_rates(half, x.bfloat16(), y, delta, 3).isfinite().all()


def test_a_constant_model_and_one_image():
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :3] + torch.tensor([2.0, 1.0, 0.0])

    x, y = data()
    assert (fit(Constant(), x, y) == 0).all()
    delta = fit(conv(), x[:1], y[:1])
    assert (delta[0] != 0).any()
    assert fooling_rates(conv(), x[:1], y[:1], delta, 3).isnan().tolist() == [False, True, True]


def test_fooling_rates_on_hand_made_predictions():
    model = FirstPixel(4)
    before, after = torch.tensor([0, 0, 1, 1, 2, 0]), torch.tensor([1, 0, 1, 2, 2, 0])
    # of class 0: right, right, wrong; of class 1: right, wrong, wrong
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    x = (before / 4 + 0.1)[:, None, None, None].expand(6, 1, 2, 2)

    class Moves(nn.Module):
        """Reads whether the delta is there from the last pixel, then answers `after`."""

        def forward(self, images):
            moved = images[:, 0, 1, 1] - images[:, 0, 0, 0] > 0.05
            place = torch.arange(6)[: len(images)]
            return torch.where(
                moved[:, None], F.one_hot(after, 4)[place], F.one_hot(before, 4)[place]
            ).float()

    delta = torch.zeros(1, 1, 2, 2)
    delta[..., 1, 1] = 0.1
    nan = torch.nan
    assert torch.equal(model(x).argmax(1), before)
    expected = torch.tensor([1 / 3, 1 / 3, nan, nan])
    torch.testing.assert_close(fooling_rates(Moves(), x, y, delta, 4), expected, equal_nan=True)
    expected = torch.tensor([1 / 2, 1.0, nan, nan])
    torch.testing.assert_close(
        fooling_rates(Moves(), x, y, delta, 4, counted="correct"), expected, equal_nan=True
    )
    none = fooling_rates(model, x, y, torch.zeros(4, 1, 2, 2), 4, batch_size=2)
    torch.testing.assert_close(none, torch.tensor([0, 0, nan, nan]), equal_nan=True)


def nan_model():
    model = conv()
    nn.init.constant_(model[5].bias, torch.nan)
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, y: fooling_rates(nan_model(), x, y, torch.zeros(1, 1, 4, 4), 3),
            "logits for 60 of 60 images",
        ),
        (
            lambda x, y: fooling_rates(conv(), x, y, torch.zeros(2, 1, 4, 4), 3),
            "1 or 3 perturbations, not 2",
        ),
        (
            lambda x, y: fooling_rates(conv(), x, y, torch.zeros(3, 1, 4, 4), 3, counted="some"),
            "counted is one of",
        ),
        (lambda x, y: fit(conv(), x, y, norm="L1"), "norm is one of Linf, L2, not 'L1'"),
        (lambda x, y: fit(conv(), x, y, n_classes=2), "labels are 0 to 1, not 0 to 2"),
        (lambda x, y: fit(conv(), x, y, eps=torch.ones(2)), r"shape \(3,\), not \(2,\)"),
        (lambda x, y: fit(nan_model(), x, y), "NaN, infinite or huge logits"),
    ],
)
def test_bad_input_gets_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(*data())
    assert "\n" not in str(error.value)


def test_transfer_crafts_on_one_and_judges_on_the_other():
    crafted_on, judge, (x, y) = conv(), nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), data(6)
    attack = PGD(0.1, 0.02, 3)
    logits = transfer(attack, crafted_on, judge, x, y, eps=0.05, generator=generator(1))
    assert torch.equal(logits, judge(attack(crafted_on, x, y, eps=0.05, generator=generator(1))))
    assert crafted_on.training
    assert all(p.requires_grad for p in judge.parameters())
    with pytest.raises(ValueError, match="logits for 6 of 6 images"):
        transfer(attack, crafted_on, nan_model(), x, y)


def test_momentum_is_the_papers_algorithm():
    """Dong et al. 2018, Algorithm 1, written out: g <- mu g + grad / |grad|_1, x <- x + alpha
    sign(g), clipped.
    """
    model, (x, y) = conv().double().eval(), data(8)
    x, eps, alpha, decay = x.double(), 0.08, 0.02, 0.9
    for target in (None, (y + 1) % 3):
        gathered, x_adv = torch.zeros_like(x), x.clone()
        for _ in range(7):
            x_adv.requires_grad_()
            label, sign = (y, 1) if target is None else (target, -1)
            loss = sign * F.cross_entropy(model(x_adv), label, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x_adv)
            gathered = decay * gathered + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
            x_adv = (x_adv.detach() + alpha * gathered.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        ours = MIFGSM(eps, alpha, 7, decay=decay)(model, x, y, target=target)
        torch.testing.assert_close(ours, x_adv, rtol=0, atol=1e-12)


class Answers(nn.Module):
    """A linear network whose logits pass through a function."""

    def __init__(self, change):
        super().__init__()
        self.linear, self.change = nn.Linear(16, 3), change

    def forward(self, x):
        return self.change(self.linear(x.flatten(1)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda z: (z,), "tuple"),
        (lambda z: z[:, :1], "one output"),
        (lambda z: torch.cat([z[1:], z[:1].detach() * torch.nan]), "NaN"),
        (lambda z: z * 1e35, "huge"),
    ],
)
def test_fitting_goes_through_the_same_door_as_attacks(change, said):
    torch.manual_seed(0)
    x, y = torch.rand(12, 1, 4, 4), torch.arange(12) % 3
    with pytest.raises(AttackError, match=said):
        fit_universal(Answers(change), x, y, eps=0.1, n_classes=3, class_wise=False, epochs=1)


def test_fitting_takes_logits_where_they_are_named():
    torch.manual_seed(0)
    x, y = torch.rand(12, 1, 4, 4), torch.arange(12) % 3
    named, plain = Answers(lambda z: {"logits": z}), Answers(lambda z: z)
    plain.load_state_dict(named.state_dict())
    delta, expected = (
        fit_universal(
            m,
            x,
            y,
            eps=0.1,
            n_classes=3,
            class_wise=False,
            generator=torch.Generator().manual_seed(0),
        )
        for m in (named, plain)
    )
    assert torch.equal(delta, expected)
    assert delta.abs().max() > 0
