"""Our losses, gradients, attacks and class-wise updates against what the authors' code gave:
benchmarks/parity.
"""

import contextlib
import importlib
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from crat.defenses import DEFENSES

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "parity"
sys.path.insert(0, str(FOLDER))
import harness  # noqa: E402

CASES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize("case", CASES)
def test_ours_gives_the_authors_numbers(case):
    recorded = harness.read(case)
    found = importlib.import_module(case).ours(torch.float64)
    assert found.keys() == recorded["numbers"].keys()
    for item, numbers in recorded["numbers"].items():
        assert harness.difference(harness.digest(found[item]), numbers) <= 1e-9, item


@contextlib.contextmanager
def crafting(through):
    """Within, the images that a method crafts pass `through` a function: once, however many
    methods it is made of.
    """
    depth = []

    def around(craft):
        def crafted(*given, **more):
            depth.append(craft)
            x_adv = craft(*given, **more)
            depth.pop()
            return x_adv if depth else through(x_adv)

        return crafted

    owners = {
        owner for method in DEFENSES.values() for owner in method.__mro__ if "craft" in vars(owner)
    }
    with contextlib.ExitStack() as stack:
        for owner in owners:
            stack.enter_context(mock.patch.object(owner, "craft", around(owner.craft)))
        yield


# A convolution of the harness sums 192 products, each sum rounded by 2^-24 of what it has; ten
# layers stand in a row
ROUNDING = 10 * 192 * 2**-24
# of the pixels: those whose slope is zero but for its rounding, where one sign turns a whole step
# round
FLIPPED = 0.01


@pytest.mark.parametrize("case", CASES)
def test_float32_gives_them_but_for_its_rounding(case):
    """A sign has no condition number: few of the crafted pixels differ, and what follows is
    compared on equal ones.
    """
    ours, kept, far = importlib.import_module(case).ours, [], [0.0]

    def replaced(x_adv):
        exact = kept.pop(0)
        far.append(((x_adv - exact).abs() > ROUNDING).double().mean().item())
        return exact.to(x_adv.dtype)

    with crafting(lambda x_adv: kept.append(x_adv) or x_adv):
        expected = ours(torch.float64)
    assert kept
    with crafting(replaced):
        found = ours(torch.float32)
    assert not kept
    assert max(far) < FLIPPED
    for item, exact in expected.items():
        assert harness.difference(found[item], exact) <= ROUNDING, item


def test_every_case_was_recorded_within_the_bound():
    modules = {path.stem for path in FOLDER.glob("*.py")} - {"harness", "record"}
    assert modules == set(CASES)
    for case in CASES:
        recorded = harness.read(case)
        assert "@" in recorded["code"]
        assert max(recorded["differences"].values()) <= 1e-9


def test_the_table_is_the_records():
    assert importlib.import_module("record").table() in (FOLDER / "README.md").read_text(
        encoding="utf-8"
    )


def test_a_wrong_number_is_seen():
    recorded = harness.read("cfa")["numbers"]["trades/loss"]
    assert harness.difference([recorded[0] * (1 + 1e-6)], recorded) > 1e-9
