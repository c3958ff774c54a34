"""Ours leave no more images standing than the reference's attacks:
benchmarks/attack_strength.json has the outcomes.
"""

import hashlib
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import attack_strength as strength

RECORDS = strength.read()["records"]
COMPARISONS = strength.comparisons(RECORDS)


def recorded(library, attack, images):
    """Robust accuracy on the first images of the shipped net, one a seed."""
    found = [
        r
        for r in RECORDS
        if (r["library"], r["model"], r["norm"], r["attack"])
        == (library, "shipped", "Linf", attack)
    ]
    return tuple(
        strength.unpacked(r["robust"], r["images"])[:images].double().mean().item() for r in found
    )


@pytest.mark.parametrize(
    ("attack", "images"),
    [("apgd-ce", 100), ("apgd-dlr", 100), ("apgd-t", 60), ("fab-t", 50), ("square", 50)],
)
def test_each_attack_is_as_strong_as_the_reference(attack, images):
    """The rule of the records, with one image more: another machine rounds otherwise."""
    model, x, y = strength.MODELS["shipped"].load(Path(), images)
    reference = recorded("pyautoattack", attack, images)
    assert len(reference) >= 2
    x_adv = strength.LIBRARIES["crat"](model, x, y, attack, "Linf", 0.1, seed=0)
    robust_acc = strength.survivors(model, x, y, x_adv, "Linf", 0.1).double().mean().item()
    slack = 1 / images
    assert strength.Comparison(reference, (robust_acc - slack,)).verdict != "weaker"
    assert strength.Comparison(reference, (robust_acc + slack,)).verdict != "suspiciously strong"


@pytest.mark.parametrize("key", COMPARISONS, ids="-".join)
def test_the_committed_records_obey_the_rule(key):
    assert COMPARISONS[key].verdict == "as strong", COMPARISONS[key]


def test_every_recorded_attack_of_the_reference_has_ours_beside_it():
    keys = {(r["model"], r["norm"], r["eps"], r["attack"]) for r in RECORDS}
    assert keys == set(COMPARISONS)
    assert {
        (case.model, case.norm, case.eps, a)
        for case in strength.PLAN
        for a in case.attacks_of("crat")
    } == keys


def test_records_hold_together():
    for record in RECORDS:
        outcome = strength.unpacked(record["robust"], record["images"])
        assert strength.packed(outcome) == record["robust"]
        assert outcome.double().mean().item() == pytest.approx(record["robust_acc"], abs=1e-6)


def test_the_shipped_net_is_the_recorded_one():
    weights = hashlib.sha256(strength.SHIPPED.read_bytes()).hexdigest()
    assert strength.read()["weights"]["shipped"] == weights


@pytest.mark.parametrize(
    ("reference", "ours", "verdict"),
    [
        ((0.5, 0.5), (0.502,), "as strong"),
        ((0.5, 0.5), (0.503,), "weaker"),
        ((0.49, 0.51), (0.525,), "as strong"),  # two standard deviations are 2.8 points
        ((0.49, 0.51), (0.53,), "weaker"),
        ((0.5,), (0.49,), "as strong"),
        ((0.5,), (0.48,), "suspiciously strong"),
    ],
)
def test_the_rule(reference, ours, verdict):
    assert strength.Comparison(reference, ours).verdict == verdict


def test_a_point_outside_ball_or_box_breaks_nothing():
    """Judged from outside: the attack's own word for where its points lie is not taken."""
    model, x, y = strength.MODELS["shipped"].load(Path(), 100)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    far = torch.where(noise < 0.5, 0.0, 1.0)
    inside = strength.survivors(model, x, y, far, "Linf", 1.0)
    assert mean(inside.tolist()) < mean(right.tolist())  # noise of size 1 breaks some
    assert torch.equal(strength.survivors(model, x, y, far, "Linf", 0.1), right)
    assert torch.equal(strength.survivors(model, x, y, far * 3 - 1, "Linf", 2.0), right)
