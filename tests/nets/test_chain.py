"""The chain's pass gives autograd's bits: features, gradients, and nothing else is touched."""

import copy

import pytest
import torch
from torch import nn

from crat.attacks import PGD
from crat.attacks.frozen import frozen
from crat.device import autocast
from crat.nets import chain, models
from crat.nets.bodies import small_cnn

CPU = torch.device("cpu")
PRECISIONS = ("float32", "bfloat16")
SHAPES = ((1, 28, 28), (3, 32, 32), (2, 9, 14))


def body_of(shape, seed=0):
    """A small_cnn whose BatchNorm has statistics and weights that are not those of a new one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = small_cnn(shape, width=8)[0].to(memory_format=torch.channels_last)
        for layer in body:
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.data.uniform_(-0.5, 1.5)
                layer.bias.data.normal_()
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.2, 2)
    return body


def images_of(shape, n=32):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def features_and_gradient(call, x, dtype):
    """What `call` gives for x, and the gradient of a fixed weighing of it by x."""
    x = x.clone().requires_grad_()
    with autocast(CPU, dtype):
        features = call(x)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((features.float() * weights).sum(), x)
    return features.detach(), gradient


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_attacks_pass_has_the_bits_of_autograd(shape, dtype, mode):
    body, x = body_of(shape), images_of(shape)
    before = copy.deepcopy(body.state_dict())
    with frozen(body, mode):
        expected = features_and_gradient(body, x, dtype)
        given = features_and_gradient(lambda images: chain.through(body, images), x, dtype)
    for ours, plain in zip(given, expected, strict=True):
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    assert given[1].abs().max() > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in body.state_dict().items())


def nodes_of(features):
    """The names of the nodes of a graph."""
    found, rest = set(), [features.grad_fn]
    while rest:
        node = rest.pop()
        if node is not None:
            found.add(node.name())
            rest += [before for before, _ in node.next_functions]
    return found


def test_an_attacks_pass_has_both_nodes_and_a_trainings_pass_the_last():
    body, x = body_of((1, 28, 28)), images_of((1, 28, 28)).requires_grad_()
    with frozen(body):
        assert nodes_of(chain.through(body, x)) >= {"_ConvolvedBackward", "_FlattenedBackward"}
    nodes = nodes_of(chain.through(body, x))
    assert "_ConvolvedBackward" not in nodes
    assert "_FlattenedBackward" in nodes


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_trainings_pass_has_the_bits_of_autograd(dtype):
    x = images_of((1, 28, 28))
    weighing = None
    found = []
    for fast in (False, True):
        body = body_of((1, 28, 28)).train()
        with autocast(CPU, dtype):
            features = chain.through(body, x) if fast else body(x)
        if weighing is None:
            weighing = torch.randn(features.shape, generator=torch.Generator().manual_seed(3))
        (features.float() * weighing).sum().backward()
        found.append([p.grad for p in body.parameters()] + list(body.buffers()))
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0)


def test_a_gradient_is_taken_twice_from_one_pass():
    """Attacks that need one gradient a class keep the graph; nothing in it is written over."""
    body, x = body_of((1, 28, 28)), images_of((1, 28, 28)).requires_grad_()
    with frozen(body):
        features = chain.through(body, x)
        weights = torch.ones_like(features)
        kept = weights.clone()
        first, second = (
            torch.autograd.grad(features, x, weights, retain_graph=True)[0] for _ in range(2)
        )
    assert torch.equal(first, second)
    assert torch.equal(weights, kept)


def test_a_features_map_of_one_place_does_not_write_over_the_callers_gradient():
    body = body_of((1, 4, 4))
    x = images_of((1, 4, 4)).requires_grad_()
    with frozen(body):
        features = chain.through(body, x)
        weights = -torch.ones_like(features)
        torch.autograd.grad(features, x, weights)
    assert torch.equal(weights, -torch.ones_like(features))


def test_precision_of_the_backward_is_that_of_the_forward():
    body, x = body_of((1, 28, 28)), images_of((1, 28, 28)).requires_grad_()
    with frozen(body):
        features = chain.through(body, x)
        (plain,) = torch.autograd.grad(features.sum(), x, retain_graph=True)
        with autocast(CPU, "bfloat16"):
            (within,) = torch.autograd.grad(features.sum(), x)
    assert torch.equal(plain, within)


def _with_a_hook(body):
    body.conv2.register_forward_hook(lambda module, given, out: out * 2)


def _with_a_forward(body):
    plain = body.bn1.forward
    body.bn1.forward = lambda x: plain(x) + 1


def _with_another_layer(body):
    body.relu3 = nn.LeakyReLU()


def _with_a_half_flatten(body):
    body.flatten = nn.Flatten(2)


CHANGES = (_with_a_hook, _with_a_forward, _with_another_layer, _with_a_half_flatten)


@pytest.mark.parametrize("layers", [[], [nn.Flatten()], [nn.BatchNorm2d(1), nn.Flatten()]], ids=len)
def test_a_body_without_a_convolution_goes_its_own_way(layers):
    body, x = nn.Sequential(*layers).eval(), images_of((1, 28, 28)).requires_grad_()
    assert torch.equal(chain.through(body, x), body(x))


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_plain_chain_goes_its_own_way(change):
    body, x = body_of((1, 28, 28)), images_of((1, 28, 28)).requires_grad_()
    change(body)
    assert not chain.is_chain(body)
    with frozen(body):
        assert torch.equal(chain.through(body, x), body(x))


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("settings", [{"stride": 2}, {"bias": True}, {"padding_mode": "reflect"}])
def test_another_first_convolution_is_computed_as_it_is(settings, dtype):
    conv = nn.Conv2d(1, 8, 3, **{"padding": 1, "bias": False} | settings)
    body = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()).eval()
    body = body.to(memory_format=torch.channels_last)
    x = images_of((1, 28, 28))
    with frozen(body):
        expected = features_and_gradient(body, x, dtype)
        given = features_and_gradient(lambda images: chain.through(body, images), x, dtype)
    assert torch.equal(given[0], expected[0])
    assert torch.equal(given[1], expected[1])


def test_statistics_that_an_attack_moves_are_moved_once():
    ours, plain = body_of((1, 28, 28)), body_of((1, 28, 28))
    x = images_of((1, 28, 28)).requires_grad_()
    with frozen(ours, "moving"), frozen(plain, "moving"):
        assert torch.equal(chain.through(ours, x), plain(x))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert int(ours.bn1.num_batches_tracked) == 1


def test_a_wide_kernel_gives_the_gradient_of_neighbouring_pixels():
    """In float64 both forms are the convolution's gradient, up to rounding."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=False).double()
    x = torch.rand(2, 3, 6, 8, generator=generator, dtype=torch.float64)
    g = torch.rand(2, 5, 6, 8, generator=generator, dtype=torch.float64)
    weight = conv.weight.detach()
    expected = chain._plain(g, x, weight)
    torch.testing.assert_close(chain._grouped(g, weight), expected, rtol=1e-12, atol=1e-12)


def test_a_grouped_gradient_that_has_other_bits_is_not_used(monkeypatch):
    body, x = body_of((1, 28, 28)), images_of((1, 28, 28))
    monkeypatch.setattr(chain, "_SAME_BITS", {})
    grouped = chain._grouped
    monkeypatch.setattr(chain, "_grouped", lambda g, weight: grouped(g, weight) * (1 + 2**-6))
    with frozen(body):
        expected = features_and_gradient(body, x, "float32")
        given = features_and_gradient(lambda images: chain.through(body, images), x, "float32")
    assert list(chain._SAME_BITS.values()) == [False]
    assert torch.equal(given[1], expected[1])


def test_the_trial_tells_two_orders_of_a_sum_apart(monkeypatch):
    """On images that are turned round, the same sums are taken in the other order."""
    conv = nn.Conv2d(1, 16, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x, weight = images_of((1, 28, 28)), conv.weight.detach()
    g = torch.rand(32, 16, 28, 28).contiguous(memory_format=torch.channels_last)
    grouped = chain._grouped

    def turned(g, weight):
        return grouped(g.flip(2, 3), weight.flip(2, 3)).flip(2, 3)

    torch.testing.assert_close(turned(g, weight), grouped(g, weight))
    passed = [chain._tried(g, x, weight)]
    monkeypatch.setattr(chain, "_grouped", turned)
    passed.append(chain._tried(g, x, weight))
    assert sum(passed) < 2


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_attack_ends_where_it_ends_without_the_chain(dtype, mode, monkeypatch):
    net = models.build("small_cnn", 10, (1, 28, 28), mean=(0.3,), std=(0.35,))
    net = net.to(memory_format=torch.channels_last)
    x = images_of((1, 28, 28))
    y = torch.arange(len(x)) % 10
    attack = PGD(0.1, 0.025, 3, batch_norm=mode)
    with autocast(CPU, dtype):
        ours = attack.perturb(net, x, y)
        monkeypatch.setattr(models, "through", lambda body, images: body(images))
        plain = attack.perturb(net, x, y)
    assert torch.equal(ours, plain)
    assert not torch.equal(ours, x)
