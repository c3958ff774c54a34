"""PGD in L-inf that stops where an image walks in a circle: the same images for fewer passes."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from crat import data
from crat.attacks import PGD, CrossEntropy, Margin, PerImage, Toward
from crat.attacks.gradient import ascend, ascend_until_circles
from crat.attacks.threat import over_images
from crat.nets import models

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Counted(nn.Module):
    """Counts the images of its passes."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.passed = inner, 0

    def forward(self, x):
        self.passed += len(x)
        return self.inner(x)


@pytest.fixture(scope="module")
def robust():
    """A robust network in float64, where no rounding by the size of a batch tips a sign."""
    whole = data.load("fashion_mnist_mini")
    model = models.build(models.ModelConfig("small_cnn", width=8), 10, whole.image_shape)
    models.load_checkpoint(model, FIXTURES / "strength_net.safetensors")
    x = whole.x_test[:12].double().div(255)
    return model.eval().double(), x, whole.y_test[:12]


@pytest.mark.parametrize("steps", [40, 77, 120])
def test_the_last_iterates_are_the_same_for_fewer_passes(robust, steps):
    model, x, y = robust
    counted = Counted(model)
    noise = PerImage(0, torch.arange(12))
    attack = PGD(0.1, 0.025, steps)
    whole = attack.perturb(model, x, y, generator=noise.fork("start"))
    early = attack(counted, x, y, generator=noise.fork("start"), search="exact")
    assert torch.equal(early, whole)
    assert counted.passed < (0.95 if steps < 50 else 0.8) * steps * 12


@pytest.mark.parametrize(("objective", "step"), [(CrossEntropy(), 0.04), (Margin(), 0.1)])
def test_each_image_has_its_radius_step_and_target(robust, objective, step):
    model, x, y = robust
    eps = over_images(torch.linspace(0.02, 0.12, 12).double(), x)
    steps = over_images(torch.linspace(0.5, 1, 12).double(), x) * step
    for target in (None, (y + 3) % 10):
        counted = Counted(model)
        goal = objective if target is None else Toward(target, objective)
        whole = ascend(model, x, x, y, eps, steps, 60, "Linf", goal)
        early = ascend_until_circles(counted, x, x, y, eps, steps, 60, objective, target)
        assert torch.equal(early, whole)
        assert counted.passed < 56 * 12


class Turning(nn.Module):
    """Logits whose gradient at a point of the circle points to the next, `period` steps round."""

    def __init__(self, period):
        super().__init__()
        self.period = period

    def forward(self, x):
        place = (x[:, 0, 0, 0].detach() * 32).round().long()
        up = torch.where(place % self.period < self.period // 2, 1.0, -1.0).to(x)
        return torch.stack([-(x.flatten(1).sum(1) * up), 0 * up], 1)


@pytest.mark.parametrize("period", [2, 4, 6, 14])
def test_a_circle_of_any_length_is_walked_to_the_right_end(period):
    """Up and down between two ends; circles longer than a window are walked, not guessed."""
    x = torch.arange(8.0).double().view(8, 1, 1, 1) / 32 + 0.25
    y = torch.zeros(8, dtype=torch.long)
    for steps in range(40, 54):
        counted = Counted(Turning(period))
        loop = (x, x, y, 0.25, 1 / 32, steps)
        whole = ascend(counted.inner, *loop, "Linf", Margin())
        assert torch.equal(ascend_until_circles(counted, *loop, Margin()), whole)
        assert counted.passed <= steps * 8


def test_what_may_not_stop_early_does_not():
    """A short attack, a norm without signs, images that meet, an objective that holds images."""

    class Own:
        def __call__(self, logits, y):
            return Margin()(logits, y)

    x = torch.full((4, 1, 2, 2), 0.5)
    y = torch.zeros(4, dtype=torch.long)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    full = partial(PGD, 0.1, 0.025)
    kinds = {
        "long": (full(steps=50), 0),
        "short": (full(steps=30), 30 * 4),
        "L2": (full(steps=50, norm="L2"), 50 * 4),
        "first": (full(steps=50, stop="first"), 50 * 4),
        "own": (full(steps=50, objective=Own()), 50 * 4),
        "train": (full(steps=50, batch_norm="train"), 50 * 4),
    }
    for name, (attack, passes) in kinds.items():
        counted = Counted(flat)
        attack(counted, x, y, search="exact")
        assert counted.passed == passes or (name == "long" and counted.passed <= 20 * 4), name
    counted = Counted(flat)
    full(steps=50).perturb(counted, x, y)  # a training's loop, which may not wait
    assert counted.passed == 50 * 4
