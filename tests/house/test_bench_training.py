"""The benchmark of training: all sides in one table, work that is counted by hand."""

import pytest
import torch
import training

from crat.config import ConfigError
from crat.defenses import DEFENSES


def test_one_table_of_all_sides_in_one_run(tmp_path, capsys):
    out = tmp_path / "train.md"
    training.main(["cfa", "trades"], "small_cnn", 8, 2, None, out)
    assert "pgd_at" in capsys.readouterr().out
    lines = out.read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[4:]] == [
        "| textbook",
        "| pgd_at",
        "| cfa",
        "| trades",
    ]
    row = dict(
        zip(lines[2].strip("| ").split(" | "), lines[6].strip("| ").split(" | "), strict=True)
    )
    assert row["base"] == "pgd_at"
    assert float(row["images/s"]) > 0
    assert float(row["TFLOP/s"]) > 0


def test_flops_are_counted_by_hand():
    with training.Flops() as counter:
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert counter.total == 2 * 3 * 4 * 5


def test_the_authors_clone_must_be_one(tmp_path):
    with pytest.raises(ConfigError, match="is no clone of PKU-ML/CFA"):
        training.authors_step(tmp_path, 4, 2, torch.device("cpu"))


def test_every_policy_has_its_base_in_the_table():
    for name, base in training.OVER.items():
        assert name.split()[0] in DEFENSES
        assert base.split()[0] in DEFENSES


def test_the_base_of_a_policy_is_timed_before_it():
    assert training.chosen_methods(["cfa base=trades", "cfa"]) == [
        "trades",
        "pgd_at",
        "cfa base=trades",
        "cfa",
    ]


def test_numbers_below_one_are_refused():
    with pytest.raises(ConfigError, match="batch must be at least 1, not 0"):
        training.run(["cfa"], batch=0)
