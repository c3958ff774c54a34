"""The copy that attacks search with: folded where it may be, in the precision asked for; the
decision function.
"""

import copy

import pytest
import torch
from torch import nn

from crat.attacks import PGD, Decision
from crat.attacks.judge import attacked_logits
from crat.attacks.looked import SearchWarning
from crat.attacks.search import searcher
from crat.config import ModelConfig
from crat.nets import models

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


@pytest.mark.parametrize(
    ("name", "left"), [("small_cnn", 0), ("resnet18", 0), ("preact_resnet18", 9)]
)
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


def conv_net(head=None):
    torch.manual_seed(0)
    body = [
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
    ]
    return nn.Sequential(*body, head or nn.Linear(96, 5)).eval()


class Wide(nn.Module):
    """Layers that compute in float64, which no autocast reaches."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = conv_net().double(), nn.Linear(5, 5, bias=False)
        nn.init.eye_(self.head.weight)

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.inner(x.double()).float())


def normed(kind, head=None):
    return conv_net(kind(head or nn.Linear(96, 5)))


LEGITIMATE = {
    "spectral": lambda: normed(nn.utils.parametrizations.spectral_norm),
    "weight": lambda: normed(nn.utils.parametrizations.weight_norm),
    "orthogonal": lambda: normed(nn.utils.parametrizations.orthogonal),
    "old spectral": lambda: normed(nn.utils.spectral_norm),
    "old weight": lambda: normed(nn.utils.weight_norm),
    "float64": Wide,
    "half": lambda: nn.Sequential(conv_net(), nn.Hardtanh(-10, 10)),
}


@pytest.mark.parametrize("kind", LEGITIMATE)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::crat.attacks.looked.SearchWarning")
def test_every_model_is_searched_in_bfloat16_or_told_why_not(kind):
    """And what is found holds for the model itself."""
    model, x = LEGITIMATE[kind]().eval(), images(24)
    y = model(x).argmax(1)
    fast = searcher(model, x[:16], "bfloat16")
    assert fast.dtype in ("bfloat16", "float32")
    attack = PGD(0.3, 0.1, 8)
    slow, quick = (
        attacked_logits(model, x, y, attack, dtype=dtype).argmax(1)
        for dtype in ("float32", "bfloat16")
    )
    assert (slow == quick).float().mean() > 0.8
    assert (slow != y).any()


def test_where_bfloat16_fails_or_differs_a_line_says_why():
    x = images(24)
    model = normed(nn.utils.parametrizations.spectral_norm)
    with pytest.warns(SearchWarning, match="the search is in float32: in bfloat16 it fails"):
        assert searcher(model, x, "bfloat16").dtype == "float32"

    class Fine(nn.Module):
        """Logits that are a difference of 1e-4, which bfloat16 cannot tell."""

        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 6, 3), conv_net()

        def forward(self, x):
            z = self.conv(x)
            return (
                self.head(x) * 1e-3
                + 1e3 * ((z + 1).mean((1, 2, 3)) - z.mean((1, 2, 3)) - 1)[:, None]
            )

    with pytest.warns(SearchWarning, match="in bfloat16 it changed the logits by"):
        assert searcher(Fine().eval(), x, "bfloat16").dtype == "float32"


def hooked(where):
    """A network whose gradient, but not its logits, is changed by a hook."""
    model = conv_net()
    if where == "module":
        model[0].register_full_backward_hook(
            lambda module, into, out: (-into[0],) if into[0] is not None else None
        )
    return model


def test_a_model_with_backward_hooks_is_attacked_with_them():
    x, model = images(24), hooked("module")
    fast = searcher(model, x)
    assert fast.unfolded == "it has hooks"
    assert batch_norms(fast) == 1
    attack, y = PGD(0.1, 0.05, 4, start="none"), model(x).argmax(1)
    assert torch.equal(attack(fast, x, y), attack(model, x, y))
    assert not torch.equal(attack(model, x, y), attack(conv_net(), x, y))


def test_folding_that_changes_the_gradient_is_seen():
    """Tracing drops the backward pass of an own autograd function: the logits agree, the
    gradients do not.
    """

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return -gradient

    class Straight(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = conv_net()

        def forward(self, x):
            return self.inner(Through.apply(x))

    x, model = images(24), Straight().eval()
    fast = searcher(model, x)
    assert "folding changed the gradient by 200%" in fast.unfolded
    attack, y = PGD(0.1, 0.05, 4, start="none"), model(x).argmax(1)
    assert torch.equal(attack(fast, x, y), attack(model, x, y))


def test_a_model_that_cannot_be_copied_is_searched_itself():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = conv_net()

        def __deepcopy__(self, memo):
            raise RuntimeError("there is only one")

        def forward(self, x):
            return self.inner(x) if x.sum() > -1e9 else None  # not traceable either

    x, model = images(24), Single().train()
    fast = searcher(model, x)
    assert fast.net is model
    y = model.eval()(x).argmax(1)
    model.train()
    found = PGD(0.1, 0.05, 4)(fast, x, y)
    assert model.training
    assert model.inner.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(found, PGD(0.1, 0.05, 4)(model, x, y))
