"""BatchNorm, dropout and sums over a batch that three processes share are the whole batch's."""

import copy

import torch
import torch.nn.functional as F
from test_distributed import together
from torch import nn

from crat.training.whole_batch import see_the_whole_batch

# Each rank compares its share with what it computes from the whole batch itself.
PREAMBLE = """
import copy, os, sys, torch, traceback
# the other processes do not wait for one that fails
sys.excepthook = lambda *error: (traceback.print_exception(*error), os._exit(1))
from torch import nn
from torch.testing import assert_close
from crat import distributed
from crat.training.whole_batch import see_the_whole_batch
torch.set_num_threads(1)
device = distributed.join(torch.device("cpu"))

def shared_out(total):
    return distributed.share(total, device)

def pair(layer):
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    alone, shared = nn.Sequential(copy.deepcopy(layer)), nn.Sequential(copy.deepcopy(layer))
    see_the_whole_batch(shared)
    assert list(shared.state_dict()) == list(alone.state_dict())
    return alone, shared

torch.manual_seed(1)
"""
END = """
distributed.leave()
os._exit(0)  # a thread of gloo may outlive the interpreter, and then aborts the process
"""

# shares of 3, 2, 2 images; 1, 1 and none; 1, none and none
NORMS = """
SHAPES = (
    (nn.BatchNorm1d, (4,)),
    (nn.BatchNorm1d, (4, 5)),
    (nn.BatchNorm2d, (4, 3, 2)),
    (nn.BatchNorm3d, (4, 2, 1, 2)),
)
SETTINGS = ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False})
for kind, shape in SHAPES:
    for settings in SETTINGS:
        alone, shared = pair(kind(4, **settings).double())
        for total in (7, 2, 1, 5):
            if total == 1 and shape == (4,):
                continue
            part = shared_out(total)
            # two passes move the running statistics twice, and one pass of two halves counts both
            for halves in (1, 2):
                x = torch.randn(halves, total, *shape).double() * 3 + 5
                into = torch.randn_like(x)
                whole, own = (t.flatten(0, 1).requires_grad_() for t in (x, x[:, part.own]))
                y = alone(whole)
                expected = torch.autograd.grad(y, [whole, *alone.parameters()], into.flatten(0, 1))
                with distributed.sharing(part):
                    z = shared(own)
                    into_own = into[:, part.own].flatten(0, 1)
                    found = torch.autograd.grad(z, [own, *shared.parameters()], into_own)
                    of_parameters = distributed.sum_over_ranks(found[1:]) if found[1:] else []
                assert z.dtype == torch.float64
                if part.weight:
                    for mine, all_ranks in ((z, y), (found[0], expected[0])):
                        of_own = all_ranks.unflatten(0, x.shape[:2])[:, part.own]
                        assert_close(mine, of_own.flatten(0, 1))
                else:  # the others' sums do not reach an image that does not count
                    assert not found[0].any()
                assert_close(of_parameters, list(expected[1:]))
                assert_close(shared.state_dict(), alone.state_dict())
        x = torch.randn(6, *shape).double()
        shared.eval()
        # the eval mode sends no message, so one rank can do it alone
        if settings.get("track_running_stats", True) and distributed.rank() == 0:
            with distributed.sharing(shared_out(6)):
                assert_close(shared(x), alone.eval()(x))

alone, shared = pair(nn.BatchNorm1d(4))
for forward in (lambda: alone(torch.ones(1, 4)), lambda: shared(torch.ones(1, 4))):
    try:
        with distributed.sharing(shared_out(1)):
            forward()
    except ValueError as error:
        assert "Expected more than 1 value per channel when training" in str(error)
    else:
        raise AssertionError("the variance of one value is none")
"""

# What rounds is the sum of 300 float32 numbers and, last, the output in bfloat16 (2^-8)
BFLOAT16 = """
alone, shared = pair(nn.BatchNorm2d(4))
x = (torch.randn(12, 4, 5, 5) * 3 + 5).bfloat16().contiguous(memory_format=torch.channels_last)
part = shared_out(len(x))
with torch.autocast("cpu", torch.bfloat16), distributed.sharing(part):
    y, z = alone(x), shared(x[part.own])
assert z.dtype == y.dtype == torch.bfloat16
assert z.is_contiguous(memory_format=torch.channels_last)
assert_close(z, y[part.own], rtol=2**-7, atol=2**-7)
assert_close(shared.state_dict(), alone.state_dict(), rtol=300 * 2**-24, atol=300 * 2**-24)
"""

FAR = """
# a mean of 3000 standard deviations, whose squares in float32 would lose the variance
alone, shared = pair(nn.BatchNorm1d(4))
x, part = torch.randn(300, 4) + 3000, shared_out(300)
shared.double()  # its statistics only; the sums are x's, in float32
with distributed.sharing(part):
    shared(x[part.own])
exact = x.double().var(0)
assert_close(shared[0].running_var, .9 + .1 * exact, rtol=1e-3, atol=0)
"""

DROPOUT = """
alone, shared = pair(nn.Dropout(.3))
for total in (7, 2, 1):
    part = shared_out(total)
    for halves in (1, 2):
        x = torch.randn(halves, total, 6)
        torch.manual_seed(total)
        y = alone(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        after = torch.rand(1)
        torch.manual_seed(total)
        with distributed.sharing(part):
            z = shared(x[:, part.own].flatten(0, 1)).unflatten(0, (halves, len(part.own)))
        assert torch.equal(z, y[:, part.own])
        assert torch.equal(torch.rand(1), after)  # as much was drawn
assert torch.equal(shared.eval()(x), x)
"""

WHOLE = """
for total in (7, 2, 1):
    part, x = shared_out(total), torch.randn(total, 3).double().requires_grad_()
    with distributed.sharing(part):
        own = x[part.own]
        assert torch.equal(distributed.places(own), part.own)
        assert torch.equal(distributed.whole(part.own), torch.arange(total))
        every = distributed.whole(own)
        assert torch.equal(every, x)
        # each image's loss looks at all images
        loss = part.weight * (own[:, None] * every).sum((1, 2)).pow(2).mean() / distributed.world()
        (found,) = distributed.sum_over_ranks(torch.autograd.grad(loss, x))
    (expected,) = torch.autograd.grad((x[:, None] * x).sum((1, 2)).pow(2).mean(), x)
    assert_close(found, expected)
"""


def test_three_processes_see_one_batch(tmp_path):
    together(PREAMBLE + NORMS + BFLOAT16 + FAR + DROPOUT + WHOLE + END, 3, tmp_path / "three")


def test_between_batches_nothing_is_changed():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.5))
    shared = copy.deepcopy(net)
    see_the_whole_batch(shared)
    see_the_whole_batch(shared)  # twice is once
    assert [type(m).__mro__[2] for m in (shared[0], shared[2])] == [nn.BatchNorm2d, nn.Dropout]
    x = torch.rand(4, 3, 2, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = net(x)
        torch.manual_seed(0)
        assert torch.equal(shared(x), expected)
    assert torch.equal(shared[0].running_mean, net[0].running_mean)
    assert F.mse_loss(copy.deepcopy(shared).eval()(x), net.eval()(x)) == 0
