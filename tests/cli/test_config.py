"""Budgets as they are written, protocols filled in, settings by plain names."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crat.config import (
    PROFILES,
    ConfigError,
    RunConfig,
    Selection,
    TrainConfig,
    as_written,
    different_from_default,
    number,
    profile,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (0.031, "0.031"),
        ("8 / 255", "8/255"),
        (0.1, "0.1"),
        (0.5 / 255, "0.5/255"),
        (0.3, "0.3"),
        (0.0, "0"),
    ],
)
def test_a_budget_is_kept_as_written(value, text):
    assert as_written(value) == text
    assert number(as_written(value)) == number(value)


@given(st.floats(0, 1))
def test_writing_a_budget_loses_nothing(value):
    assert number(as_written(value)) == value


def test_two_budgets_that_look_alike_stay_apart():
    assert number("8/255") != number("0.031")
    assert RunConfig().but(eps="8/255") != RunConfig().but(eps="0.031")
    assert RunConfig().but(eps=8 / 255) == RunConfig().but(eps="8/255")


def test_the_protocol_fills_what_is_not_said():
    resolved = RunConfig().but(data="cifar10", steps=7).resolved()
    assert (resolved.train.eps, resolved.train.step_size, resolved.train.steps) == (
        "8/255",
        "2/255",
        7,
    )
    assert resolved.resolved() == resolved


@pytest.mark.parametrize("name", PROFILES)
def test_a_config_survives_json(name):
    config = profile(name).but(drop_classes=(4, 1)).resolved()
    assert RunConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert config.data.drop_classes == (1, 4)


def test_whole_numbers_are_the_same_setting():
    config = RunConfig().but(beta=3, lr=1, imbalance_ratio=2, average_decay=0)
    assert repr(config) == repr(
        RunConfig().but(beta=3.0, lr=1.0, imbalance_ratio=2.0, average_decay=0.0)
    )
    assert isinstance(config.train.epochs, int)


def test_names_hash_only_what_differs_from_the_defaults():
    assert different_from_default(RunConfig()) == {}
    assert different_from_default(RunConfig().but(data="mnist", seed=3)) == {
        "data.name": "mnist",
        "train.seed": 3,
    }


def test_beta_is_an_option_and_keeps_the_names_of_published_runs():
    """Cards of version 1 have beta beside the options; their names hash it as "train.beta"."""
    trades = RunConfig().but(defense="trades", options={"normalised": True}, beta=3)
    assert trades.train.options == (("beta", 3.0), ("normalised", True))
    assert trades.but(beta=1.0).train.options == (("beta", 1.0), ("normalised", True))
    named = {"train.defense": "trades", "train.beta": 3.0, "train.options": (("normalised", True),)}
    assert different_from_default(trades) == named
    frl = RunConfig().but(defense="frl", beta=3.0)
    assert different_from_default(frl) == {
        "train.defense": "frl",
        "train.options": (("beta", 3.0),),
    }
    card = trades.as_dict()
    card["train"] |= {"beta": 3.0, "options": [["normalised", True]]}
    assert RunConfig.from_dict(card) == trades
    card["train"] |= {"beta": 6.0}
    assert RunConfig.from_dict(card).train.options == (("normalised", True),)


def test_bad_values_get_one_line():
    for make, message in (
        (lambda: number("a lot"), "'a lot' is not a number: write 0.1 or 8/255"),
        (lambda: TrainConfig(eps=-0.1), r"eps lies in \[0, 1\], such as 8/255, not -0.1"),
        (
            lambda: TrainConfig(batch_norm="off"),
            "unknown batch_norm 'off'; known: auto, eval, train",
        ),
        (lambda: TrainConfig(lr=float("inf")), "lr must be at least 0 and finite, not inf"),
        (lambda: TrainConfig(momentum=-1), "momentum must be at least 0"),
        (lambda: TrainConfig(steps=-1), "steps must be at least 1"),
        (lambda: TrainConfig(average_decay=3), r"average_decay lies in \[0, 1\), not 3"),
        (lambda: RunConfig().but(split_seed=-1), "split_seed must be at least 0"),
        (lambda: TrainConfig(eps_warmup=-1), "eps_warmup must be at least 0"),
        (lambda: profile("large"), "unknown profile 'large'; known: quick, laptop, gpu, paper"),
        (lambda: RunConfig().but(imbalance_ratio=0.1), "imbalance_ratio must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


def test_another_data_set_keeps_the_number_of_images_of_a_class():
    bases = [Selection("mnist").on_data(profile(name)) for name in PROFILES]
    assert [base.data.name for base in bases] == ["mnist"] * 4
    assert [base.data.train_per_class for base in bases] == [700, 2000, None, None]
    assert Selection().on_data(bases[0]) == bases[0]


def test_a_selection_is_read_from_a_notebooks_parameters():
    assert Selection.read() == Selection()
    assert Selection.read("mnist", "4 0 2 4") == Selection("mnist", (0, 2, 4))
    assert Selection.read().repeated(2) == (0, 1)
    assert Selection.read(seeds="0 4").repeated(2) == (0, 4)
    for wrong in ("1 2", "0 x", "0 -1"):
        with pytest.raises(ConfigError, match="seeds are numbers"):
            Selection.read(seeds=wrong)
    with pytest.raises(ConfigError, match="unknown data set 'cifar'"):
        Selection.read("cifar")
