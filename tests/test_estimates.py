"""What a plan says of time and memory: arithmetic, right to a factor of the runs that were published."""

import json

import pytest
import torch

from crat import data, estimates, store
from crat.config import MODELS, ModelConfig, RunConfig, profile
from crat.data.registry import DATASETS
from crat.estimates import _network, estimate, train_images
from crat.run import Run

CPU = torch.device("cpu")
CARDS = [json.loads(path.read_text()) for path in sorted(store.results_home().glob("*/*/card.json"))]


def resolved(**changes):
    return Run.of(profile("laptop").but(**changes), "cpu").config


def test_operations_are_those_of_the_layers():
    """A layer by hand, and the usual figures of the large ones: multiplications and additions."""
    lenet = _network(ModelConfig("lenet5"), (1, 28, 28), 10)
    convolutions = 28 * 28 * 32 * 9 + 14 * 14 * 64 * 9 * 32
    assert lenet.operations == 2 * (convolutions + 3136 * 200 + 200 * 10)
    assert lenet.weights == 32 * 9 + 32 + 64 * 32 * 9 + 64 + 3136 * 200 + 200 + 200 * 10 + 10
    assert _network(ModelConfig("resnet18"), (3, 32, 32), 10).operations == pytest.approx(2 * 0.555e9, rel=0.01)
    assert _network(ModelConfig("wrn_34_10"), (3, 32, 32), 10).operations == pytest.approx(2 * 6.66e9, rel=0.01)


@pytest.mark.parametrize("head", ["linear", "cosine", "hypersphere"])
def test_every_network_is_counted(head):
    for model in set(MODELS) - {"resnet50", "wrn_34_10"}:
        network = _network(ModelConfig(model, head=head), (3, 32, 32), 10)
        assert min(network.operations, network.activations, network.weights) > 1000


def test_published_runs_took_what_is_said_to_a_factor_of_four():
    """One thread each, two at a time on a machine of two, some beside other work."""
    ratios = []
    for card in CARDS:
        assert card["device"] == "AMD EPYC, 1 threads"
        config = RunConfig.from_dict(card["config"]).resolved()
        cost = estimate(config, CPU, threads=1)
        ratios.append(cost.epoch * config.train.epochs / card["train_seconds"])
    assert 0.5 < sorted(ratios)[len(ratios) // 2] < 1.5
    assert sum(0.25 < ratio < 4 for ratio in ratios) > 0.95 * len(ratios)


def test_time_grows_with_what_is_asked():
    base = resolved()
    one = estimate(base, CPU, 1)
    assert estimate(base, CPU, 4).epoch == pytest.approx(one.epoch / 4)
    assert estimate(resolved(dtype="float32"), CPU, 1).epoch == pytest.approx(one.epoch * 80 / 45)
    assert estimate(resolved(defense="standard"), CPU, 1).epoch < one.epoch / 2  # what is left is validation
    assert estimate(resolved(steps=20), CPU, 1).epoch > 1.5 * one.epoch
    assert estimate(base, torch.device("cuda"), 1).epoch < one.epoch / 10
    assert estimate(resolved(batch_size=512), CPU, 1).memory > one.memory > estimates.BARE
    assert one.judging > 0


@pytest.mark.parametrize(
    "changes",
    [{}, {"train_per_class": 30}, {"drop_classes": (3, 4)}, {"imbalance_ratio": 20.0}, {"valid_per_class": 7}],
)
def test_the_images_of_an_epoch_are_those_of_the_data(changes):
    config = RunConfig().but(**changes)
    images = data.load(config.data)
    n = DATASETS["fashion_mnist_mini"].train_images
    assert train_images(config, n * images.n_classes // 10, images.n_classes) == len(images.x_train)


def test_a_plan_at_paper_scale_trains_and_loads_nothing(monkeypatch):
    """It is counted once for all runs of a network."""

    def never(*_, **__):
        raise AssertionError("a plan loads no images and trains nothing")

    monkeypatch.setattr(data, "load", never)
    monkeypatch.setattr("crat.train.Trainer", never)
    _network.cache_clear()
    paper = [Run.of(profile("paper").but(seed=seed), "cpu").config for seed in range(50)]
    costs = {estimate(config, CPU, 2) for config in paper}
    assert len(costs) == 1
    assert _network.cache_info().misses == 1
