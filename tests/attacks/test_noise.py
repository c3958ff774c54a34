"""Random numbers per image: the batch, its order and its size decide nothing."""

import pytest
import torch

from crat.attacks.noise import PerImage, source


def test_an_image_draws_the_same_in_any_company():
    everybody, some = PerImage(3, torch.arange(10)), torch.tensor([7, 2, 4])
    few = PerImage(3, some)
    assert torch.equal(everybody.uniform(2, 5)[some], few.uniform(2, 5))
    assert torch.equal(everybody.normal(6)[some], few.normal(6))
    assert torch.equal(everybody.take(some).uniform(4), few.uniform(4))  # where the stream is now
    assert torch.equal(everybody.fork("t", 1).take(some).uniform(4), few.fork("t", 1).uniform(4))
    everybody.uniform()  # `few` drew once more
    assert torch.equal(everybody.shared_uniform(5), few.shared_uniform(5))


def test_streams_differ_by_seed_image_draw_and_fork():
    noise = PerImage(0, torch.arange(2))
    draws = [
        noise.uniform(64),
        noise.uniform(64),
        PerImage(1, torch.arange(2)).uniform(64),
        noise.fork(0).uniform(64),
    ]
    rows = torch.cat(draws)
    assert (torch.corrcoef(rows) - torch.eye(len(rows))).abs().max() < 0.5
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


def test_the_distributions():
    noise = PerImage(5, torch.arange(300))
    u, z = noise.uniform(1000), noise.normal(1000)
    assert u.dtype == torch.float32
    assert 0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    counts = torch.histc(u, 20, 0, 1)
    assert (counts / u.numel() * 20 - 1).abs().max() < 0.03
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.01
    assert abs((z**4).mean() - 3) < 0.1
    neighbours = torch.corrcoef(torch.stack([u[:, :-1].flatten(), u[:, 1:].flatten()]))[0, 1]
    images = torch.corrcoef(torch.stack([u[:-1].flatten(), u[1:].flatten()]))[0, 1]
    assert max(abs(neighbours), abs(images)) < 0.01


def test_the_numbers_are_pinned():
    """Kept outcomes depend on them: another machine, device or version must draw these."""
    noise = PerImage(0, torch.tensor([0, 9999]))
    first = noise.uniform(2)
    assert torch.equal(first * 2**24, (first * 2**24).round())
    assert (first * 2**24).long().tolist() == PINNED


PINNED = [[5348762, 12588908], [7933359, 6602605]]


def test_sources():
    x = torch.rand(3, 1, 2, 2)
    assert torch.equal(source(None, x).uniform(4), PerImage(0, torch.arange(3)).uniform(4))
    one, two = (source(torch.Generator().manual_seed(1), x).uniform(4) for _ in range(2))
    assert torch.equal(one, two)
    noise = PerImage(0, torch.arange(3))
    assert source(noise, x) is noise
    with pytest.raises(ValueError, match="noise for 3 images, but 2 are attacked"):
        source(noise, x[:2])
