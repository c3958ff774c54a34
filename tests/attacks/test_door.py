"""The door of every attack: what would make it weak without a sound is one line, and what may
come in works.
"""

import copy
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from crat.attacks import (
    APGD,
    CWL2,
    DLR,
    FAB,
    FGSM,
    MIFGSM,
    PGD,
    AutoAttack,
    Broken,
    DeepFool,
    LogitBias,
    Margin,
    PerImage,
    Square,
    cw,
    falling_temperature,
    fit_universal,
    fooling_rates,
    minimal_radius,
    temperature_pgd,
    transfer,
)
from crat.attacks.decision import Decision
from crat.attacks.judge import attacked_batches, attacked_logits
from crat.attacks.logits import AttackError
from crat.attacks.watched import RobustnessWarning

ATTACKS = {
    "fgsm": FGSM(0.1),
    "pgd": PGD(0.1, 0.05, 3),
    "pgd-l2": PGD(1.0, 0.5, 3, norm="L2"),
    "pgd-l1": PGD(2.0, 1.0, 3, norm="L1"),
    "pgd-restarts": PGD(0.1, 0.05, 2, restarts=2),
    "temperature": temperature_pgd(PGD(0.1, 0.05, 3), 0.1),
    "temperature-falling": falling_temperature(PGD(0.1, 0.05, 3), 10.0, 0.1),
    "cw": cw(PGD(0.1, 0.05, 3)),
    "mifgsm": MIFGSM(0.1, steps=3),
    "apgd": APGD(0.1, steps=3),
    "apgd-t": APGD(0.1, loss="dlr", steps=3, targets=2),
    "fab": FAB(0.1, steps=3, targets=2),
    "square": Square(0.1, queries=5),
    "deepfool": DeepFool(steps=3),
    "cwl2": CWL2(steps=5, search_steps=2),
    "autoattack": replace(AutoAttack(0.1), version="rand"),
}
GRADIENTS = [name for name in ATTACKS if name != "square"]


def net(classes=5):
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(6 * 36, classes)).eval()


def batch(n=6):
    x = torch.rand(n, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    return x, net()(x).argmax(1) if n else torch.zeros(0, dtype=torch.long)


def images(found):
    return found.x_adv if isinstance(found, Broken) else found


@pytest.fixture(params=ATTACKS)
def attack(request):
    return ATTACKS[request.param]


@pytest.fixture(params=GRADIENTS)
def by_gradient(request):
    return ATTACKS[request.param]


class Answer(nn.Module):
    """What a function makes of the logits of the net, or of the net's pass."""

    def __init__(self, after=lambda z: z, before=lambda x: x, classes=5):
        super().__init__()
        self.net, self.after, self.before = net(classes), after, before

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def test_works_without_gradients_and_asks_for_none(attack):
    x, y = batch()
    plain = images(attack(net(), x, y))
    with torch.no_grad():
        assert torch.equal(images(attack(net(), x, y)), plain)
        assert not torch.is_grad_enabled()
    wanted = x.clone().requires_grad_()
    found = images(attack(net(), wanted, y))
    assert torch.equal(found, plain)
    assert not found.requires_grad
    assert wanted.grad is None


def test_a_batch_of_none_and_of_one_and_labels_of_any_integer_type(attack):
    x, y = batch()
    nobody = attack(net(), x[:0], y[:0])
    assert images(nobody).shape == (0, 2, 6, 6)
    assert not isinstance(nobody, Broken) or nobody.broken_by.shape == (0,)
    assert images(attack(net(), x[:1], y[:1])).shape == (1, 2, 6, 6)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(images(attack(net(), x, y.to(dtype))), images(attack(net(), x, y)))


def test_tensors_of_inference_mode_are_taken_but_not_the_mode_itself(attack):
    x, y = batch()
    with torch.inference_mode():
        inside = x.clone()
        with pytest.raises(AttackError, match=r"torch\.inference_mode\(\) forbids"):
            attack(net(), x, y)
        made = net()
    assert torch.equal(images(attack(net(), inside, y)), images(attack(net(), x, y)))
    with pytest.raises(AttackError, match="the model was made under torch"):
        attack(made, x, y)


def wrong_images():
    x, _ = batch()
    spoilt = x.clone()
    spoilt[0, 0, 0, 0] = torch.nan
    way_out = "put the normalisation into the model"
    return {
        rf"images lie in \[-1\.\d+, 2\.\d+\], not in \[0, 1\]: {way_out}": (x - 0.4) / 0.25,
        r"images lie in \[-1, 0\.\d+\], not in \[0, 1\]: put the normalisation": (
            2 * x - 1 - x.min() * 2
        ),
        r"images lie in \[0\.\d+, 2\d\d\], not in \[0, 1\]: divide by 255": x * 255,
        "one is not finite": spoilt,
        r"images are floats in \[0, 1\], not uint8: x.float\(\) / 255": (x * 255).to(torch.uint8),
        r"images are floats in \[0, 1\], not int64": (x * 255).long(),
        r"images are of shape \(N, C, H, W\), not \(6, 72\): a vector is": x.flatten(1),
        "images are a torch.Tensor of shape .*, not ndarray": x.numpy(),
    }


@pytest.mark.parametrize("told", wrong_images())
def test_images_that_attacks_were_not_made_for(attack, told):
    with pytest.raises(AttackError, match=told) as error:
        attack(net(), wrong_images()[told], batch()[1])
    assert "\n" not in str(error.value)


WRONG_LABELS = {
    r"labels are whole numbers \(int64\), not float32$": lambda y: y.float(),
    "labels are whole numbers .*one-hot or soft labels are argmax": lambda y: nn.functional.one_hot(
        y, 5
    ).float(),
    r"labels are of shape \(6,\), one an image, not \(6, 5\)": lambda y: nn.functional.one_hot(
        y, 5
    ),
    r"labels are of shape \(6,\), one an image, not \(6, 1\)": lambda y: y[:, None],
    r"labels are of shape \(6,\), one an image, not \(5,\)": lambda y: y[:5],
    r"labels are of shape \(6,\), one an image, not \(7,\)": lambda y: torch.cat([y, y[:1]]),
    "labels are 0 to 4, the model's classes, not . to 5": lambda y: y.clone().index_fill_(
        0, torch.tensor([2]), 5
    ),
    "labels are 0 to 4, the model's classes, not -1 to": lambda y: y.clone().index_fill_(
        0, torch.tensor([2]), -1
    ),
    "labels are whole numbers .*, not bool": lambda y: y > 1,
    "labels are a torch.Tensor of whole numbers, not list": lambda y: y.tolist(),
}


@pytest.mark.parametrize("told", WRONG_LABELS)
def test_labels_that_are_none(attack, told):
    x, y = batch()
    with pytest.raises(AttackError, match=told):
        attack(net(), x, WRONG_LABELS[told](y))
    if not isinstance(attack, (FGSM, PGD)):
        return
    with pytest.raises(AttackError, match=told.replace("labels are", "(labels|targets) are")):
        attack(net(), x, y, target=WRONG_LABELS[told](y))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: PGD(8, 2 / 255),
            r"eps in Linf is in \[0, 1\] for images in \[0, 1\], not 8: is 8 / 255 meant\?",
        ),
        (
            lambda: PGD(8 / 255, 2),
            r"step_size in Linf is in \[0, 1\] .*, not 2: is 2 / 255 meant\?",
        ),
        (lambda: FGSM(8), "eps in Linf"),
        (lambda: MIFGSM(8), "eps in Linf"),
        (lambda: APGD(8), "eps in Linf"),
        (lambda: FAB(8), "eps in Linf"),
        (lambda: Square(8), "eps in Linf"),
        (lambda: AutoAttack(8), "eps in Linf"),
        (lambda: PGD(-0.1, 0.1), "eps in Linf is in .*, not -0.1"),
        (lambda: PGD(float("nan"), 0.1), "eps in Linf is in .*, not nan"),
        (lambda: PGD(float("inf"), 1, norm="L2"), "eps in L2 is finite and at least 0"),
        (lambda: PGD("8/255", 0.1), r"eps is a number or a tensor \(N,\), not '8/255'"),
    ],
)
def test_a_radius_that_no_image_has_room_for_is_refused_when_it_is_made(make, told):
    with pytest.raises(AttackError, match=told):
        make()


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_radius_is_checked_against_the_images_when_it_is_called(norm):
    x, y = batch()
    widest = {"Linf": 1.0, "L2": 72**0.5, "L1": 72.0}[norm]
    attack = PGD(0.1, 0.1, 1, norm=norm)
    attack(net(), x, y, eps=widest)
    for eps in (
        widest * 1.01,
        torch.full((6,), widest).index_fill_(0, torch.tensor([3]), 1.01 * widest),
        -0.1,
    ):
        with pytest.raises(AttackError, match=f"eps in {norm} is in"):
            attack(net(), x, y, eps=eps)
    with pytest.raises(AttackError, match="eps in L2 is in"):
        CWL2(steps=2)(net(), x, y, eps=9.0)


def spoiling(value):
    """A gradient with this in its place for every third image, where the logits are as they
    were.
    """

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            gradient = gradient.clone()
            gradient[::3] = value
            return gradient

    return Answer(before=Spoil.apply)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_no_robustness(by_gradient, value):
    x, y = batch()
    with pytest.raises(
        AttackError, match=r"the gradient by the image is NaN or infinite for \d of 6 images"
    ):
        by_gradient(spoiling(value), x, y)
    with pytest.raises(AttackError, match="is NaN or infinite"):
        attacked_logits(spoiling(value), x, y, by_gradient)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e35])
def test_logits_that_are_not_finite_are_no_verdict(attack, value):
    x, y = batch()
    bad = Answer(lambda z: torch.where(torch.arange(len(z))[:, None] == 1, value, z))
    for call in (lambda: attack(bad, x, y), lambda: attacked_logits(bad, x, y, attack)):
        with pytest.raises(AttackError, match=r"(NaN|huge) logits for \d of \d images"):
            call()
    with pytest.raises(AttackError, match=r"(NaN|huge) logits for 1 of 6 images"):
        attacked_logits(bad, x, y, None)
    with pytest.raises(AttackError, match=r"(NaN|huge) logits for 1 of 6 images"):
        transfer(FGSM(0.1), net(), bad, x, y)


def test_large_logits_are_attacked_as_small_ones():
    x, y = batch(20)
    for attack in (PGD(0.1, 0.05, 5), cw(PGD(0.1, 0.05, 5)), APGD(0.1, steps=10)):
        small, large = (
            attacked_logits(Answer(lambda z, s=s: s * z), x, y, attack) for s in (1.0, 1e8)
        )
        assert ((large.argmax(1) != y).sum() - (small.argmax(1) != y).sum()).abs() <= 2


def test_a_gradient_that_is_always_zero_is_told(by_gradient):
    x, y = batch(12)
    y[:3] = (y[:3] + 1) % 5  # some are wrong from the start, and leave the batch of many attacks
    steps = Answer(before=lambda x: (x * 255).round() / 255)  # an input of 8 bits has no slope
    with pytest.warns(RobustnessWarning, match="zero gradient"):
        by_gradient(steps, x, y)


def test_logits_without_a_gradient_are_refused(by_gradient):
    x, y = batch()
    for cut in (Answer(before=lambda x: x.detach()), Answer(after=lambda z: z.detach())):
        with pytest.raises(AttackError, match="the logits have no gradient by the images"):
            by_gradient(cut, x, y)


def test_square_needs_no_gradient():
    x, y = batch()
    square = Square(0.1, queries=5)
    plain = attacked_logits(net(), x, y, square)
    torch.testing.assert_close(
        attacked_logits(Answer(after=lambda z: z.detach()), x, y, square), plain
    )


@pytest.mark.parametrize(
    "named",
    [
        lambda z: {"logits": z, "loss": 0},
        lambda z: SimpleNamespace(logits=z),
        lambda z: {"features": 1, "logits": z},
    ],
    ids=["dict", "output", "among others"],
)
def test_logits_are_taken_where_they_are_named(attack, named):
    x, y = batch()
    assert torch.equal(images(attack(Answer(named), x, y)), images(attack(net(), x, y)))
    assert torch.equal(
        attacked_logits(Answer(named), x, y, None), attacked_logits(net(), x, y, None)
    )
    torch.testing.assert_close(
        attacked_logits(Answer(named), x, y, attack), attacked_logits(net(), x, y, attack)
    )
    assert torch.equal(Decision(Answer(named), slice(3))(x), net()(x)[:, :3])
    assert torch.equal(LogitBias(Answer(named), torch.ones(5))(x), net()(x) + 1)


SIGMOID = r"one output an image, \(6, 1\); attacks need K >= 2 logits: of a sigmoid's z, return"
WRONG_ANSWERS = {
    "the model answers with a tuple, not with logits": lambda z: (z, z),
    "the model answers with a dict of scores, not with logits": lambda z: {"scores": z},
    r"the model answers with int64 of shape \(6,\) for 6 images": lambda z: z.argmax(1),
    r"the model answers with float32 of shape \(6,\) for 6 images": lambda z: z[:, 0],
    r"the model answers with float32 of shape \(6, 5, 1\) for 6 images": lambda z: z[..., None],
    r"the model answers with float32 of shape \(3, 5\) for 6 images": lambda z: z[:3],
    SIGMOID: lambda z: z[:, :1],
}


@pytest.mark.parametrize("told", WRONG_ANSWERS)
def test_answers_that_are_no_logits(attack, told):
    x, y = batch()
    model = Answer(WRONG_ANSWERS[told])
    for call in (
        attack,
        lambda *given: attacked_logits(*given, attack),
        lambda *given: attacked_logits(*given, None),
    ):
        with pytest.raises(AttackError, match=told) as error:
            call(model, x, y)
        assert "\n" not in str(error.value)


def test_two_logits_of_a_sigmoid_are_attacked():
    x, _ = batch()
    model = Answer(lambda z: torch.cat([-z, z], 1) / 2, classes=1)
    y = model(x).argmax(1)
    assert (attacked_logits(model, x, y, PGD(0.5, 0.2, 5)).argmax(1) != y).all()


def test_modules_that_cannot_be_frozen_are_told(attack):
    x, y = batch()
    with warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(net(), x)
    exported = torch.export.export(net(), (x,))
    for model, told in (
        (
            traced,
            "a TorchScript module cannot be frozen or copied: attack the nn.Module that it was "
            "made from",
        ),
        (nn.Sequential(traced), "a TorchScript module"),
        (
            exported,
            "an exported program has no eval mode: attack the nn.Module that it was exported from",
        ),
        (exported.module(), "an exported program has no eval mode"),
        (lambda x: x, "the model is an nn.Module, not function: call it in the forward of one"),
        (net().state_dict(), "the model is an nn.Module, not OrderedDict"),
    ):
        for call in (attack, lambda *given: attacked_logits(*given, None)):
            with pytest.raises(AttackError, match=told):
                call(model, x, y)


def test_the_other_doors():
    x, y = batch()
    bright = (x - 0.4) / 0.25
    for call in (
        lambda: minimal_radius(PGD(0.1, 0.02), net(), bright, y, largest=0.3),
        lambda: transfer(FGSM(0.1), net(), net(), bright, y),
        lambda: FAB(0.1).radius(net(), bright, y),
        lambda: attacked_logits(net(), bright, y, None),
        lambda: fit_universal(net(), bright, y, eps=0.1, n_classes=5, class_wise=False),
        lambda: fooling_rates(net(), bright, y, torch.zeros(1, 2, 6, 6), 5),
    ):
        with pytest.raises(AttackError, match="put the normalisation into the model"):
            call()
    with pytest.raises(AttackError, match="eps in Linf"):
        minimal_radius(PGD(0.1, 0.02), net(), x, y, largest=3.0)
    with pytest.raises(AttackError, match=r"labels are of shape \(6,\)"):
        attacked_logits(net(), x, torch.cat([y, y]), None)
    with pytest.raises(AttackError, match="labels are 0 to 4"):
        attacked_logits(net(), x, y + 5, None)
    assert minimal_radius(PGD(0.1, 0.02), net(), x[:0], y[:0], largest=0.3).shape == (0,)
    assert FAB(0.1).radius(net(), x[:0], y[:0])[0].shape == (0,)
    assert attacked_logits(net(), x[:0], y[:0], PGD(0.1, 0.02)).shape == (0, 5)


def test_uint8_images_are_taken_where_whole_sets_are_judged():
    x, y = batch()
    pixels = (x * 255).round()
    for attack in (None, PGD(0.1, 0.05, 3)):
        assert torch.equal(
            attacked_logits(net(), pixels.to(torch.uint8), y, attack),
            attacked_logits(net(), pixels / 255, y, attack),
        )


def test_the_model_is_left_as_found_when_the_door_is_shut(attack):
    x, y = batch()
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AttackError):
        attack(model, x, y + 5)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks or part._backward_hooks for part in model.modules())


def test_a_batterys_verdict_is_one_where_outputs_are_random():
    """Which part broke an image, and the prediction that is counted, come from the same pass."""
    x, y = batch(40)
    noise = torch.Generator().manual_seed(5)
    random = Answer(lambda z: z + 0.05 * torch.randn(z.shape, generator=noise))
    (judged,) = attacked_batches(random, x, y, AutoAttack(0.002, version="rand"), batch_size=40)
    assert 0 < (judged.broken_by < 0).sum() < 40
    assert torch.equal(judged.logits.argmax(1) == y, judged.broken_by < 0)


def test_dlr_and_margin_do_not_warn_of_images_that_are_wrong(recwarn):
    x, y = batch(20)
    for objective in (DLR(), Margin()):
        PGD(0.1, 0.05, 3, objective=objective)(
            net(), x, (y + 1) % 5, generator=PerImage(0, torch.arange(20))
        )
    assert not [w for w in recwarn if issubclass(w.category, RobustnessWarning)]
