"""Our losses, gradients, attacks and class-wise updates against what the authors' code gave: benchmarks/parity."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "parity"
sys.path.insert(0, str(FOLDER))
import harness  # noqa: E402

CASES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=("64", "32"))
@pytest.mark.parametrize("case", CASES)
def test_ours_gives_the_authors_numbers(case, dtype, within):
    recorded = harness.read(case)
    found = importlib.import_module(case).ours(dtype)
    assert found.keys() == recorded["numbers"].keys()
    for item, numbers in recorded["numbers"].items():
        assert harness.difference(harness.digest(found[item]), numbers) <= within, item


def test_every_case_was_recorded_within_the_bound():
    modules = {path.stem for path in FOLDER.glob("*.py")} - {"harness", "record"}
    assert modules == set(CASES)
    for case in CASES:
        recorded = harness.read(case)
        assert "@" in recorded["code"]
        assert max(recorded["differences"].values()) <= 1e-9


def test_the_table_is_the_records():
    assert importlib.import_module("record").table() in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_a_wrong_number_is_seen():
    recorded = harness.read("cfa")["numbers"]["trades/loss"]
    assert harness.difference([recorded[0] * (1 + 1e-6)], recorded) > 1e-9
