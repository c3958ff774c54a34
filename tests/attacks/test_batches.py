"""The size of an evaluation's batches: by memory on a GPU, 500 elsewhere; it decides no outcome."""

import pytest
import torch
from torch import nn

from crat.attacks import APGD, FAB, FGSM, PGD, AutoAttack, Square, batches, judge
from crat.attacks.judge import attacked_batches, attacked_logits, one_by_one

GIB = 2**30


def net():
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(6 * 36, 5)).double().eval()


def batch(n):
    x = torch.rand(n, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, net()(x).argmax(1)


@pytest.fixture
def memory(monkeypatch):
    """A device that counts its memory: 1 MiB for the passes of 16 images."""

    def has(free):
        monkeypatch.setattr(batches, "counts_memory", lambda device: True)
        monkeypatch.setattr(judge, "counts_memory", lambda device: True)
        monkeypatch.setattr(batches, "free_memory", lambda device: free)
        monkeypatch.setattr(batches, "peak", lambda net, images: 2**16 * len(images))

    return has


@pytest.mark.parametrize(
    ("free", "size"),
    [(0, 64), (2**24, 64), (2**25, 192), (2**28, 1536), (GIB, 4096), (80 * GIB, 4096)],
)
def test_half_of_the_free_memory_is_filled(free, size, memory):
    memory(free)
    x, _ = batch(16)
    each = 2**16 + batches.STATE * 4 * 72
    assert batches.fitting_batch(net(), x) == size
    assert size in (64, 4096) or size * each <= free / 2 < (size + 64) * each


def test_a_device_that_counts_no_memory_has_500():
    x, _ = batch(16)
    assert batches.fitting_batch(net(), x) == 500
    assert batches.fitting_batch(net(), x[:0]) == 500


def lengths(x, y, attack, **settings):
    return [len(b.logits) for b in attacked_batches(net(), x, y, attack, **settings)]


def test_which_evaluations_are_cut_by_memory(memory):
    x, y = batch(600)
    assert lengths(x, y, FGSM(0.1)) == [500, 100]
    memory(2**24)
    assert lengths(x, y, FGSM(0.1)) == [64] * 9 + [24]
    assert lengths(x, y, None, begin=500) == [64, 36]
    assert lengths(x, y, FGSM(0.1), batch_size=300) == [300, 300]
    assert lengths(x[:0], y[:0], FGSM(0.1)) == [0]
    # where images meet, the batch decides the outcome
    assert lengths(x, y, FGSM(0.1, batch_norm="train")) == [500, 100]
    assert lengths(x, y, lambda model, x, y, **settings: x) == [500, 100]


def test_whose_outcomes_are_their_own():
    assert one_by_one(None)
    assert one_by_one(AutoAttack(0.1))
    assert not one_by_one(PGD(0.1, 0.1, batch_norm="train"))
    assert not one_by_one(lambda model, x, y: x)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(0.1, 0.02, 5),
        APGD(0.1, steps=5),
        FAB(0.1, steps=4, targets=2),
        Square(0.1, queries=30),
        Square(0.5, norm="L2", queries=30),
        AutoAttack(0.05, version="rand"),
    ],
    ids=str,
)
def test_the_batch_decides_no_outcome(attack, memory):
    x, y = batch(100)
    expected = attacked_logits(net(), x, y, attack)
    memory(0)
    assert lengths(x, y, attack) == [64, 36]
    torch.testing.assert_close(attacked_logits(net(), x, y, attack), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_peak_is_measured():
    model = net().float().cuda()
    x = batch(64)[0].float().cuda()
    small, large = (batches.peak(model, x[:n]) for n in (16, 64))
    assert 0 < small < large
    assert batches.free_memory(x.device) > 0
    assert 64 <= batches.fitting_batch(model, x[:16]) <= 4096
