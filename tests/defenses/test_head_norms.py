"""The K norms of a head that are tuned behind training, the rival of K biases."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crat.defenses.head_norms import fit_norms


def recalls(z, y):
    return torch.stack([((z.argmax(1) == y)[y == k]).double().mean() for k in y.unique()])


@given(st.integers(0, 10**6), st.integers(2, 6))
@settings(max_examples=6, deadline=None)
def test_never_lowers_the_worst_class(seed, n_classes):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, n_classes, (60,), generator=generator)
    z = torch.randn(60, n_classes, generator=generator) + 2 * torch.eye(n_classes)[y]
    z[:, 0] *= 2  # a long row
    t = fit_norms(z, y, rounds=25)
    assert torch.equal(t, fit_norms(z, y, rounds=25))
    assert t.log().mean().abs() < 1e-5
    limited = fit_norms(z, y, rounds=25, max_drop=0.0)
    before = recalls(z, y)
    for found in (t, limited):
        assert recalls(z / found, y).min() >= before.min()
    assert recalls(z / limited, y).mean() >= before.mean() - 1e-6


def test_goes_to_the_side_that_raises_the_lost_images():
    """A class that loses by a short row gets a longer one, where its logits are negative a
    shorter one; the first round, by hand.
    """
    short = torch.tensor([[1.0, 0.99], [1.0, 0.99], [1.0, 0.1]])
    y = torch.tensor([1, 1, 0])
    step = torch.tensor([1.0, -1.0]).mul(0.03 / 2).exp()
    torch.testing.assert_close(fit_norms(short, y, rounds=1), step)
    assert (short / step).argmax(1).tolist() == [1, 1, 0]
    negative = torch.tensor([[-1.0, -1.01], [-1.0, -1.01], [-1.0, -9.0]])
    torch.testing.assert_close(fit_norms(negative, y, rounds=1), 1 / step)


def test_refuses_what_cannot_be_fitted():
    with pytest.raises(ValueError, match="fit_norms takes logits"):
        fit_norms(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
