"""The two published runs on CIFAR-10: found by today's settings, with the numbers of their page."""

import re

import pytest

from crat import store
from crat.analysis.metrics import class_accuracy, per_run
from crat.config import profile
from crat.outcomes.batteries import standard_battery, strong_battery
from crat.outcomes.evaluation import evaluate
from crat.papers.common import h100_runs
from crat.training.run import Run

ASKED = {"dtype": "bfloat16", "device": "cpu", "tell": None}
README = store.published_home() / "cifar10" / "README.md"


def shown(outcomes, attack):
    """The average and the worst class under an attack, in percent."""
    right = outcomes.robust(attack)[None]
    return tuple(
        round(100 * float(per_run(outcomes.y, right, functional)[0]), 1)
        for functional in ("average", "worst")
    )


@pytest.fixture
def runs(own_store):
    return {key: Run.of(config, "cpu") for key, config in h100_runs().items()}


def test_their_settings_are_those_of_the_gpu_profile_but_for_six(runs):
    assert list(runs) == ["CIFAR-10, AT+EMA-s0", "CIFAR-10, CFA (AT)+EMA-s0"]
    base = profile("gpu")
    for run in runs.values():
        assert (run.config.data, run.config.model) == (base.data, base.model)
        assert run.config.train.schedule == base.train.schedule
        assert run.card()["device"] == "NVIDIA H100 80GB HBM3"
        assert run.card()["epochs_done"] == run.config.train.epochs == 14
        assert len(run.history()) == 14 * 2 * 10
        assert not run.has_network()


@pytest.mark.parametrize(
    ("key", "pgd", "cw", "auto"),
    [
        ("CIFAR-10, AT+EMA-s0", (47.4, 15.8), (43.8, 11.3), (41.4, 4.9)),
        ("CIFAR-10, CFA (AT)+EMA-s0", (47.1, 19.7), (43.9, 15.9), (40.7, 9.7)),
    ],
)
def test_the_published_outcomes_give_the_numbers_of_their_page(runs, key, pgd, cw, auto):
    run = runs[key]
    found = evaluate(run, standard_battery("cifar10"), **ASKED)
    assert found.y.shape == (10_000,)
    assert (shown(found, "PGD-20"), shown(found, "CW-20")) == (pgd, cw)
    weakest = found.classes[per_class(found, "PGD-20").argmin()]
    assert weakest == "cat"
    few = evaluate(run, {"AA": strong_battery("cifar10")["AA"]}, first=1000, **ASKED)
    # the worst class of the first 1,000 images, which are not balanced
    assert 100 * per_class(few, "AA").mean() == pytest.approx(auto[0], abs=0.05)
    assert 100 * per_class(few, "AA").min() == pytest.approx(auto[1], abs=0.05)
    (row,) = re.findall(
        rf"^\| {re.escape(key[10:-3])} \| (.*) \|$", README.read_text(), re.MULTILINE
    )
    cells = [shown(found, "clean")[0], *pgd, *cw, *auto]
    assert re.findall(r"[\d.]+", row) == [f"{cell:.1f}" for cell in cells]


def per_class(outcomes, attack):
    return class_accuracy(outcomes.y, outcomes.robust(attack)[None], 10)[0]


def test_what_is_kept_with_logits_and_what_without(runs):
    for run in runs.values():
        found = evaluate(run, standard_battery("cifar10"), **ASKED)
        assert set(found.logits) == {"clean", "PGD-20"}
        assert set(found.margins) == {"clean", "FGSM", "PGD-20", "CW-20"}
        with pytest.raises(store.StoreError, match=r"CW-20 .* was published without logits"):
            found.logits["CW-20"]
    at = runs["CIFAR-10, AT+EMA-s0"]
    aa = {"AA": strong_battery("cifar10")["AA"]}
    more = evaluate(at, aa, first=2000, **ASKED)
    fewer = evaluate(at, aa, first=1000, **ASKED)
    assert (more.predictions["AA"][:1000] == fewer.predictions["AA"]).all()
    assert (more.broken_by["AA"][:1000] == fewer.broken_by["AA"]).all()
