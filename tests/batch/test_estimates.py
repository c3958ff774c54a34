"""The times in a plan: those of finished runs of the same kind, else "not known"."""

import json
from pathlib import Path

import pytest

from crat import data, store
from crat.batch.estimates import Rates, images
from crat.config import RunConfig, profile
from crat.store import Store
from crat.training.run import Run

EPYC = "AMD EPYC, 1 threads"


def resolved(**changes):
    changes = {"dtype": "bfloat16"} | changes
    return Run.of(profile("laptop").but(**changes), "cpu").config


@pytest.fixture(scope="module")
def published():
    return Rates(Store(Path("nothing"), store.published_home()), EPYC)


def test_published_runs_took_what_is_said_to_a_factor_of_two(published):
    """One thread each, two at a time on a machine of two, some beside other work."""
    ratios = []
    for path in sorted(store.published_home().glob("*/*/card.json")):
        card = json.loads(path.read_text())
        seconds, device = published.of(RunConfig.from_dict(card["config"]), card["epochs_done"])
        assert device == card["device"]
        if device != EPYC:
            continue
        ratios.append(seconds / card["train_seconds"])
    assert len(ratios) > 100
    assert 0.8 < sorted(ratios)[len(ratios) // 2] < 1.25
    assert sum(0.5 < ratio < 2 for ratio in ratios) > 0.9 * len(ratios)


def test_time_grows_with_epochs_and_images(published):
    one, _ = published.of(resolved(), 1)
    assert published.of(resolved(), 5)[0] == pytest.approx(5 * one)
    assert published.of(resolved(train_per_class=1000), 1)[0] == pytest.approx(one / 2)
    # images of the same size
    assert published.of(resolved(data="mnist", steps=10), 1)[0] == pytest.approx(one)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 5},
        {"model": "resnet18"},
        {"steps": 7},
        {"dtype": "float32"},
        {"defense": "trades", "awp": 0.01},
        {"batch_size": 512},
    ],
)
def test_of_another_kind_no_time_is_known(published, changes):
    assert published.of(resolved(**changes), 1) is None


def test_a_run_of_this_machine_goes_before_others(tmp_path):
    config = resolved()
    for name, device, seconds in (
        ("a", "a GPU", 3.0),
        ("b", EPYC, 90.0),
        ("c", EPYC, 80.0),
        ("d", EPYC, 1000.0),
    ):
        card = {"config": config.as_dict(), "device": device, "epochs_done": 1, "finished": True}
        store.write_json(tmp_path / name / "card.json", card | {"train_seconds": seconds})
    store.write_json(tmp_path / "e" / "card.json", card | {"finished": False, "train_seconds": 0.0})
    store.write_json(tmp_path / "f" / "card.json", {"config": {}})
    store.write_text(tmp_path / "g" / "card.json", "{")
    assert Rates(Store(tmp_path), "a GPU").of(config, 2) == (pytest.approx(6.0), "a GPU")
    assert Rates(Store(tmp_path), "another").of(config, 1) == (pytest.approx(90.0), EPYC)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_per_class": 30},
        {"drop_classes": (3, 4)},
        {"imbalance_ratio": 20.0},
        {"valid_per_class": 7},
    ],
)
def test_the_images_of_an_epoch_are_those_of_the_data(changes):
    config = RunConfig().but(**changes)
    assert images(config) == len(data.load(config.data).x_train)


def test_a_plan_at_paper_scale_trains_and_loads_nothing(published, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a plan loads no images and builds no network")

    monkeypatch.setattr(data, "load", never)
    monkeypatch.setattr("crat.nets.models.build", never)
    assert published.of(Run.of(profile("paper"), "cpu").config, 200) is None
    assert images(profile("paper").but(data="imagenet")) > 1_000_000
