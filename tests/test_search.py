"""The copy that attacks search with: folded where it may be, in the precision asked for; the decision function."""

import copy

import pytest
import torch
from torch import nn

from crat import models
from crat.attacks import PGD, Decision
from crat.attacks.search import searcher
from crat.config import ModelConfig

BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)


def trained_like(name, **settings):
    """A network whose BatchNorm has seen something, so that folding it wrongly would show."""
    model = models.build(ModelConfig(name, **settings), 5, (2, 16, 16), seed=0)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 2, generator=generator)
    return model


def images(n=6):
    return torch.rand(n, 2, 16, 16, generator=torch.Generator().manual_seed(1))


def batch_norms(model):
    return sum(isinstance(module, BATCH_NORMS) for module in model.modules())


@pytest.mark.parametrize(("name", "left"), [("small_cnn", 0), ("resnet18", 0), ("preact_resnet18", 9)])
def test_folds_what_follows_a_convolution(name, left):
    model, x = trained_like(name, width=4), images()
    before = copy.deepcopy(model.state_dict())
    fast = searcher(model, x)
    assert (batch_norms(fast), fast.unfolded) == (left, "")
    assert batch_norms(model) > left
    torch.testing.assert_close(fast(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert batch_norms(searcher(model, x, fold=False)) == batch_norms(model)


def test_a_model_that_cannot_be_traced_or_does_not_match_keeps_its_batch_norm():
    class Unruly(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.norm(self.conv(x))
            return x.mean((2, 3)) if x.mean() > -1e9 else x.amax((2, 3))

    model, x = Unruly().eval(), images()
    fast = searcher(model, x)
    assert "cannot be traced" in fast.unfolded
    torch.testing.assert_close(fast(x), model(x))

    class Lies(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.calls = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), 0

        def forward(self, x):
            self.calls += 1
            return (self.norm(self.conv(x)) * self.calls).mean((2, 3))

    assert "changed the logits by" in searcher(Lies().eval(), x).unfolded


def test_bfloat16_is_near_and_gives_float32():
    model, x = trained_like("small_cnn", width=4).eval(), images()
    fast = searcher(model, x, "bfloat16")
    assert fast(x).dtype == torch.float32
    assert 0 < (fast(x) - model(x)).abs().max() < 0.05 * model(x).abs().max()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    y = model(x).argmax(1)
    found = [PGD(0.05, 0.01, 5)(net, x, y) for net in (model, fast)]
    assert (found[0] - found[1]).abs().mean() < 0.02


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_in_bfloat16_the_last_layer_computes_in_float32(head):
    model, x = trained_like("small_cnn", width=4, head=head).eval(), images(64)
    logits = searcher(model, x, "bfloat16")(x)
    assert not torch.equal(logits, model(x)), "nothing was computed in bfloat16"
    assert not torch.equal(logits, logits.bfloat16().float()), "the logits were rounded to bfloat16"


def test_the_decision_function_is_a_parameter():
    model, x = trained_like("small_cnn", width=4).eval(), images()
    logits = model(x)
    assert torch.equal(Decision(model, slice(3))(x), logits[:, :3])
    assert torch.equal(Decision(model, [4, 0])(x), logits[:, [4, 0]])
    assert torch.equal(Decision(model, scale=16.0)(x), 16 * logits)
    fast = searcher(Decision(model, slice(3), 8.0), x)
    assert (batch_norms(fast), fast.unfolded) == (0, "")
    torch.testing.assert_close(fast(x), 8 * logits[:, :3], rtol=1e-4, atol=1e-5)
