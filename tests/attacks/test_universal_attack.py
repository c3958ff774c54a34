"""`Universal`, a perturbation for all images as an attack: what it adds, on whom it is fitted,
what is kept of it.
"""

import pytest
import torch
from torch import nn

from crat import data
from crat.attacks import LogitBias, Universal, apply_universal, fit_universal
from crat.attacks.judge import attacked_logits

EPS, NAME = 0.1, "fashion_mnist_mini"


@pytest.fixture(scope="module")
def shipped():
    return data.load(NAME)


def linear(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()


def by_hand(model, of, class_wise, seed=0):
    settings = {"eps": EPS, "n_classes": 10, "class_wise": class_wise, "epochs": 1}
    return fit_universal(
        model, of.x_train, of.y_train, generator=torch.Generator().manual_seed(seed), **settings
    )


@pytest.mark.parametrize("class_wise", [True, False])
def test_it_adds_what_is_fitted_on_the_training_images(shipped, class_wise):
    model, attack = linear(0), Universal(EPS, NAME, class_wise, epochs=1)
    x, y = shipped.x_test[:300].float() / 255, shipped.y_test[:300]
    delta = by_hand(model, shipped, class_wise)
    assert attack.delta(model).shape == (10 if class_wise else 1, 1, 28, 28)
    assert torch.equal(attack.delta(model), delta)
    assert torch.equal(attack(model, x, y), apply_universal(x, y, delta))
    other = Universal(EPS, NAME, class_wise, epochs=1, seed=1)
    assert not torch.equal(other.delta(model), delta)
    assert torch.equal(other.delta(model), by_hand(model, shipped, class_wise, seed=1))


def test_a_model_is_fitted_once_and_anew_when_it_has_changed(shipped, monkeypatch):
    fits = []
    monkeypatch.setattr(
        "crat.attacks.universal.fit_universal", lambda model, *args, **of: fits.append(model) or 0.0
    )
    first, second, attack = linear(0), LogitBias(linear(0), torch.zeros(10)), Universal(EPS, NAME)
    for model in (first, second, first, second):
        attack.delta(model)
    assert fits == [first, second]
    with torch.no_grad():
        first[1].bias += 1
    second.bias += 1  # which is not in its state_dict
    for model in (first, second, first, second):
        attack.delta(model)
    assert fits == [first, second] * 2


def test_a_transfer_is_fitted_on_the_other_model_and_batches_share_the_fit(shipped):
    judge, source = linear(0), linear(1)
    x, y = shipped.x_test[:90], shipped.y_test[:90]
    attack = Universal(EPS, NAME, epochs=1)
    expected = judge(apply_universal(x, y, by_hand(source, shipped, False)))
    found = attacked_logits(judge, x, y, attack, crafted_on=source, batch_size=40)
    torch.testing.assert_close(found, expected)


def test_its_repr_tells_all_that_decides_and_nothing_else():
    attack = Universal(EPS, NAME, True, 3, 2)
    assert (
        repr(attack)
        == "Universal(eps=0.1, images='fashion_mnist_mini', class_wise=True, epochs=3, seed=2)"
    )
    assert attack == Universal(EPS, NAME, True, 3, 2) != Universal(EPS, NAME, False, 3, 2)
    with pytest.raises(ValueError, match="fitted at one eps"):
        attack(linear(0), torch.zeros(1, 1, 28, 28), torch.zeros(1, dtype=torch.long), eps=0.2)
