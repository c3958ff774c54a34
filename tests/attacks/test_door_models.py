"""The door, continued: models with habits of their own, and what an attack gives back."""

import pytest
import torch
from test_door import ATTACKS, batch, net
from torch import nn

from crat.attacks import APGD, PGD, DeepFool, Square
from crat.attacks.judge import attacked_logits
from crat.attacks.logits import AttackError


@pytest.fixture(params=ATTACKS)
def attack(request):
    return ATTACKS[request.param]


class InPlace(nn.Module):
    """A network that normalises where the images lie, or not."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.in_place = nn.Linear(64, 3), in_place

    def forward(self, x):
        x = x.sub_(0.3).div_(0.2) if self.in_place else (x - 0.3) / 0.2
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "attack",
    [PGD(0.05, 0.02, 3), Square(0.05, queries=20), DeepFool(), APGD(0.05, steps=5), None],
    ids=str,
)
def test_a_model_that_normalises_in_place_is_attacked_like_another(attack, dtype):
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before, y = x.clone(), torch.arange(6) % 3
    found, expected = (
        attacked_logits(InPlace(kind), x, y, attack, dtype=dtype) for kind in (True, False)
    )
    assert torch.equal(x, before)
    assert torch.equal(found, expected)
    if attack is not None:
        attack(InPlace(True), x, y)
        assert torch.equal(x, before)


def test_what_a_model_does_not_take_is_a_line(attack):
    x, y = batch()
    for images, model, told in (
        (
            x.double(),
            net(),
            r"the model takes no float64 images of shape \(6, 2, 6, 6\): RuntimeError",
        ),
        (x.half(), net(), "the model takes no float16 images"),
        (x, net().half(), "the model takes no float32 images"),
        (x[:, :1], net(), r"the model takes no float32 images of shape \(6, 1, 6, 6\)"),
    ):
        for call in (attack, lambda *given: attacked_logits(*given, None)):
            with pytest.raises(AttackError, match=told) as error:
                call(model, images, y)
            assert "\n" not in str(error.value)
    with pytest.raises(AttackError, match="a lazy module has no weights yet"):
        attack(nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), x, y)


def test_a_model_that_turns_gradients_off_does_so_for_itself(attack):
    x, y = batch()

    class Off(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            torch.set_grad_enabled(False)
            return self.net(x)

    attacked_logits(Off(), x, y, None)
    assert torch.is_grad_enabled()
    if not isinstance(attack, Square):
        with pytest.raises(AttackError, match="the logits have no gradient"):
            attack(Off(), x, y)
    assert torch.is_grad_enabled()


class Users:
    """An attack of a user's: what it makes of the images."""

    def __init__(self, made, **settings):
        self.made = made
        vars(self).update(settings)

    def __call__(self, model, x, y, *, eps=None, generator=None):
        return self.made(x)


def test_what_an_attack_gives_is_checked():
    x, y = batch()
    for attack, told in (
        (Users(lambda x: x * 5), "images lie in .* not in"),
        (
            Users(lambda x: x[:3]),
            r"the attack gives shape \(3, 2, 6, 6\) for images of shape \(6, 2, 6, 6\)",
        ),
        (Users(lambda x: (x, x)), "the attack gives tuple"),
        (
            Users(lambda x: (x + 0.2).clamp(0, 1), eps=0.1),
            r"moved an image by 0\.2 in Linf, its eps is 0\.1",
        ),
        (
            Users(lambda x: (x + 0.2).clamp(0, 1), eps=0.3, norm="L2"),
            "moved an image by .* in L2, its eps is 0.3",
        ),
    ):
        with pytest.raises(AttackError, match=told):
            attacked_logits(net(), x, y, attack)
    moved = attacked_logits(net(), x, y, Users(lambda x: (x + 0.1).clamp(0, 1), eps=0.1))
    torch.testing.assert_close(moved, net()((x + 0.1).clamp(0, 1)).detach())


def test_the_judges_own_settings_are_checked():
    x, y = batch()
    for settings, told in (
        ({"dtype": "half"}, "dtype is one of float32, bfloat16, not 'half'"),
        ({"batch_size": 0}, "batch_size is at least 1"),
        ({"begin": 7}, "begin one of 6 images, not 500 and 7"),
    ):
        with pytest.raises(ValueError, match=told):
            attacked_logits(net(), x, y, None, **settings)
