"""The nearest point of a hyperplane within the box, against scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from crat.attacks.hyperplane import to_hyperplane

NORMS = ("Linf", "L2", "L1")
each_norm = pytest.mark.parametrize("norm", NORMS)

WEIGHT = st.one_of(st.just(0.0), st.floats(1e-3, 3), st.floats(-3, -1e-3))
PIXEL = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@st.composite
def hyperplanes(draw):
    """x, w and a gap, up to half as much again as the box allows."""
    d = draw(st.integers(1, 6))
    x, w = (np.array(draw(st.lists(kind, min_size=d, max_size=d))) for kind in (PIXEL, WEIGHT))
    share = draw(st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1.5, 1.5)))
    return x, w, share * reach(x, w * np.sign(share))


def reach(x, w):
    return np.maximum(w * (1 - x), -w * x).sum()


def least_norm(x, w, gap, norm):
    """The norm of the smallest move that closes the gap within the box, or as far as the box
    allows.
    """
    w, gap = (w, gap) if gap >= 0 else (-w, -gap)
    gap, d = min(gap, reach(x, w)), len(x)
    if norm == "L2":  # move = clip(m w) for one multiplier m
        low, high = 0.0, 1e4
        for _ in range(100):
            middle = (low + high) / 2
            move = np.clip(middle * w, -x, 1 - x)
            low, high = (middle, high) if move @ w < gap else (low, middle)
        return np.linalg.norm(np.clip(high * w, -x, 1 - x))
    # moves up (u) and down (v), each coordinate's below t for L-inf; the least t, or the least sum
    ones, none = np.eye(d), np.zeros((d, d))
    if norm == "L1":
        problem = {
            "c": np.ones(2 * d),
            "A_eq": [np.r_[w, -w]],
            "bounds": [(0, r) for r in np.r_[1 - x, x]],
        }
    else:
        rows = np.block([[ones, none, -np.ones((d, 1))], [none, ones, -np.ones((d, 1))]])
        problem = {
            "c": np.r_[np.zeros(2 * d), 1],
            "A_eq": [np.r_[w, -w, 0]],
            "A_ub": rows,
            "b_ub": np.zeros(2 * d),
        }
        problem["bounds"] = [(0, r) for r in np.r_[1 - x, x, 1]]
    return linprog(**problem, b_eq=[gap]).fun


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each_norm
@given(problem=hyperplanes())
@settings(max_examples=30)
def test_the_projection_is_the_nearest_point(norm, dtype, problem):
    x, w, gap = problem
    delta = (
        to_hyperplane(*(torch.tensor(part, dtype=dtype)[None] for part in (x, w, gap)), norm)[0]
        .double()
        .numpy()
    )
    slack = 1e-6 if dtype == torch.float64 else 1e-4
    inside = x.astype(np.float32 if dtype == torch.float32 else np.float64) + delta
    assert inside.min() >= -slack / 10
    assert inside.max() <= 1 + slack / 10
    closed = np.clip(gap, -reach(x, -w), reach(x, w))
    assert delta @ w == pytest.approx(closed, abs=slack)
    moved = {"Linf": np.abs(delta).max(), "L2": np.linalg.norm(delta), "L1": np.abs(delta).sum()}[
        norm
    ]
    wide = np.sign(gap) * slack
    assert least_norm(x, w, gap - wide if abs(gap) > slack else 0.0, norm) - slack <= moved
    assert moved <= least_norm(x, w, gap + wide, norm) + slack
    assert (delta[w == 0] == 0).all()


@each_norm
def test_the_rows_of_a_projection_do_not_meet(norm):
    scales = torch.logspace(-30, 30, 20)[:, None]
    generator = torch.Generator().manual_seed(0)
    x, w = (
        torch.rand(20, 48, generator=generator),
        torch.randn(20, 48, generator=generator) * scales,
    )
    gap = torch.linspace(-30, 30, 20) * w.abs().amax(1)
    together = to_hyperplane(x, w, gap, norm)
    alone = torch.cat(
        [to_hyperplane(x[i : i + 1], w[i : i + 1], gap[i : i + 1], norm) for i in range(20)]
    )
    assert torch.allclose(together, alone, atol=10 * 48 * 2**-24)  # sums of 48 products, rounded
    assert torch.isfinite(together).all()
