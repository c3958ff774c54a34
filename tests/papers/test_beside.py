"""The runs on small data sets beside a profile's own: which there are, and who judges them."""

import pytest

from crat.config import DATASETS, ConfigError, Selection
from crat.papers import PLANS, common
from crat.papers.all_methods import ON_CIFAR10, board_runs
from crat.papers.evidence import Evidence


def beside(dataset, profile="laptop", selection=common.USUAL):
    return common.beside(dataset, ON_CIFAR10, profile, selection)


def test_a_method_has_the_common_average_and_three_seeds_there():
    runs = beside("cifar10")
    assert list(runs)[:3] == [f"cifar10: AT+EMA-s{s}" for s in range(3)]
    assert len(runs) == 3 * len(ON_CIFAR10)
    for key, run in runs.items():
        assert run.data.name == "cifar10"
        assert run.data.train_per_class == 2000
        assert run.train.average == "ema_update"
        assert run.train.seed == int(key[-1])


def test_mnist_has_fewer_images_on_a_laptop_only():
    """Its protocol has four times the steps of the others."""
    assert {run.data.train_per_class for run in beside("mnist").values()} == {600}
    assert {run.data.train_per_class for run in beside("mnist", "gpu").values()} == {None}


@pytest.mark.parametrize(
    ("profile", "selection"),
    [
        ("gpu", common.USUAL),  # its own runs are on CIFAR-10
        ("laptop", Selection("svhn")),
        ("laptop", Selection(start_from="some-0123")),
    ],
    ids=["own data", "the reader's data", "the reader's weights"],
)
def test_there_are_none_where_the_runs_are_others(profile, selection):
    assert beside("cifar10", profile, selection) == {}


@pytest.mark.parametrize("number", ["01", "04", "06"])
def test_an_attack_at_one_protocol_is_not_asked_of_data_with_another(number, monkeypatch):
    """Without keys, judge asks the runs at the main data set's eps and steps."""
    evidence = Evidence.of(number, "quick")
    assert any(key.startswith("cifar10: ") for key in evidence.asked)
    monkeypatch.setattr(Evidence, "outcomes", lambda self, key, battery, **settings: key)
    judged = evidence.judge(evidence.battery).seen
    protocols = {DATASETS[evidence.asked[key].data.name].protocol.eps for key in judged}
    assert protocols == {DATASETS[evidence.dataset].protocol.eps}
    left = evidence.asked.keys() - judged.keys() - {"live"}
    assert left == {key for key in evidence.asked if key.startswith(("cifar10: ", "mnist: "))}


def test_a_leaderboards_runs_have_the_names_of_methods():
    own, there = board_runs("laptop"), board_runs("laptop", "CIFAR-10")
    assert {"AT+EMA-s0", "WAT+EMA-s2"} <= own.keys() & there.keys()
    assert {run.data.name for run in there.values()} == {"cifar10"}
    assert board_runs("gpu", "cifar10") == board_runs("gpu")
    with pytest.raises(ConfigError, match=r"leaderboard's data set.*mnist"):
        board_runs("laptop", "mnist")


def test_notebooks_share_their_runs_there():
    """01, 04 and 06 show the same AT+EMA."""
    asked = [PLANS[number]("quick")["cifar10: AT+EMA-s0"] for number in ("01", "04", "06")]
    assert asked[0] == asked[1] == asked[2]
