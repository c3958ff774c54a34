"""What hunted attacks share: the state of the images still hunted, and the face that any
callable gets.
"""

import pytest
import torch
from torch import nn

from crat.attacks.apgd import APGD
from crat.attacks.door import Attack, as_attack
from crat.attacks.fab import FAB
from crat.attacks.gradient import FGSM, MIFGSM, PGD
from crat.attacks.hunt import Hunted, State
from crat.attacks.judge import attacked_batches
from crat.attacks.minimal import CWL2, minimal_radius
from crat.attacks.noise import PerImage
from crat.attacks.objectives import Margin
from crat.attacks.square import Square


class Some(State):
    def __init__(self, n):
        self.x = torch.arange(float(n))[:, None]
        self.found = torch.arange(n) % 2 == 0
        self.noise = PerImage(3, torch.arange(n))
        self.target = None
        self.sides = [torch.zeros(5)]


def test_take_keeps_the_same_images_of_every_tensor_and_stream():
    state, keep = Some(6), torch.tensor([4, 1])
    expected = state.noise.uniform(2)[keep]
    state.noise = PerImage(3, torch.arange(6))
    state.take(keep)
    assert state.x.tolist() == [[4.0], [1.0]]
    assert state.found.tolist() == [True, False]
    assert torch.equal(state.noise.uniform(2), expected)
    assert state.target is None
    assert len(state.sides[0]) == 5  # no tensor of the images


def test_the_kernels_are_hunted_and_every_attack_has_the_face():
    for attack in (APGD(0.1), FAB(0.1), Square(0.1)):
        assert isinstance(attack, Hunted)
    for attack in (PGD(0.1, 0.02), FGSM(0.1), MIFGSM(0.1), CWL2()):
        assert isinstance(attack, Attack)
        assert attack.names == ()
        assert as_attack(attack) is attack
    assert (CWL2().norm, CWL2().setting("eps"), FGSM(0.1).steps, PGD(0.1, 0.02).steps) == (
        "L2",
        None,
        1,
        10,
    )
    with pytest.raises(NotImplementedError, match="Hunted must define its runs"):
        Hunted().runs(3)


def shifted(model, x, y, *, eps=0.1, generator=None):
    return (x + torch.as_tensor(eps).view(-1, 1, 1, 1)).clamp(0, 1)


def test_any_callable_is_an_attack():
    """With the defaults of the face, or with the attributes that it has."""
    face = as_attack(shifted)
    assert (face.norm, face.batch_norm, face.setting("eps"), repr(face)) == (
        "Linf",
        "eval",
        None,
        repr(shifted),
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x, y = torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.long)
    (batch,) = attacked_batches(model, x, y, shifted)
    torch.testing.assert_close(batch.logits, model(shifted(model, x, y)))
    assert minimal_radius(shifted, model, x, y, largest=0.5, rounds=2).shape == (5,)


def test_each_attack_says_how_it_follows_another_radius():
    eps = torch.tensor([0.2, 0.4])
    assert {name: value.tolist() for name, value in PGD(0.1, 0.025).within(eps).items()} == {
        "eps": eps.tolist(),
        "step_size": pytest.approx([0.05, 0.1]),
    }
    assert list(MIFGSM(0.1).within(eps)) == list(APGD(0.1).within(eps)) == ["eps"]
    with pytest.raises(ValueError, match="does not follow eps"):
        MIFGSM(0.1, step_size=0.02).within(eps)
    assert FGSM(0.1).towards_the_nearest(3).objective == Margin()
    assert PGD(0.1, 0.02, objective=Margin()).towards_the_nearest(3) == PGD(
        0.1, 0.02, objective=Margin()
    )
    assert (APGD(0.1).towards_the_nearest(3).loss, APGD(0.1).towards_the_nearest(2).loss) == (
        "dlr",
        "ce",
    )
