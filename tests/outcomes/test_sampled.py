"""AutoAttack on a sample: who is attacked, what is stored, and that it is read again."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import TINY, shorten_autoattack

from crat.analysis.two_phase import Design
from crat.config import ConfigError
from crat.outcomes import cache
from crat.outcomes.ask import sampled_autoattack
from crat.outcomes.batteries import SAMPLED
from crat.outcomes.evaluation import evaluate
from crat.training.trainer import train

ASKED = {"first": 120, "spread": True, "tell": None, "device": "cpu"}
FEW = Design(hard=0.2, random=0.1, least=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRAT_RUNS", str(tmp_path_factory.mktemp("sampled")))
        yield train(TINY, progress="none")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    shorten_autoattack(monkeypatch)


def test_only_survivors_are_attacked_and_only_they_have_an_outcome(run):
    found = sampled_autoattack(run, design=FEW, **ASKED)
    everyone = found.all_images
    assert set(everyone.predictions) == {"clean", "PGD-20", "CW-20"}
    assert len(everyone.y) == 120
    survived = everyone.robust("PGD-20") & everyone.robust("CW-20")
    places = found.sample.places
    assert survived[places].all()
    assert 0 < len(places) < survived.sum()
    assert (found.attacked.y == everyone.y[places]).all()
    assert set(found.attacked.predictions) == {"clean", SAMPLED}
    assert (found.attacked.broken_by[SAMPLED] != "clean").all()
    broken = ~found.attacked.robust(SAMPLED)
    assert found.counts.broken.sum() == (broken & ~found.sample.hard).sum()
    table = found.table
    assert table["class"].tolist() == list(everyone.classes)
    assert table.attacked.sum() == len(places)
    upper = np.bincount(everyone.y, survived) / np.bincount(everyone.y)
    assert (table.robust_acc <= upper + 1e-12).all()
    assert found.description.startswith(f"AA-sampled: AutoAttack on {len(places)} of 120 images, ")


def test_with_a_hunter_the_sample_is_of_what_it_leaves_too(run):
    found = sampled_autoattack(run, design=FEW, hunter=True, **ASKED)
    everyone = found.all_images
    assert found.phase_one == ("PGD-20", "CW-20", "Hunter")
    survived = np.logical_and.reduce([everyone.robust(name) for name in found.phase_one])
    assert survived[found.sample.places].all()
    upper = np.bincount(everyone.y, survived) / np.bincount(everyone.y)
    assert (found.table.robust_acc <= upper + 1e-12).all()
    assert "that PGD-20, CW-20 and Hunter left" in found.description


def test_it_is_read_again_and_another_draw_is_another_outcome(run, monkeypatch):
    first = sampled_autoattack(run, design=FEW, **ASKED)
    real = cache.attacked_batches
    monkeypatch.setattr(cache, "attacked_batches", None)  # nothing is computed any more
    again = sampled_autoattack(run, design=FEW, **ASKED)
    assert again.table.equals(first.table)
    monkeypatch.setattr(cache, "attacked_batches", real)
    stored = set((run.folder / "eval").iterdir())
    other = sampled_autoattack(run, design=Design(0.2, 0.1, 2, seed=1), **ASKED)
    assert not np.array_equal(other.sample.places, first.sample.places)
    made = set((run.folder / "eval").iterdir()) - stored
    assert len(made) == 2  # clean and AutoAttack on the other sample; phase one was read


def test_everyone_attacked_is_autoattack_on_phase_ones_survivors(run):
    found = sampled_autoattack(run, design=Design(hard=1), **ASKED)
    everyone = found.all_images
    survived = everyone.robust("PGD-20") & everyone.robust("CW-20")
    assert (found.sample.places == np.flatnonzero(survived)).all()
    right = np.bincount(found.attacked.y, found.attacked.robust(SAMPLED), 10)
    np.testing.assert_allclose(found.table.robust_acc, right / np.bincount(everyone.y))


def test_some_places_are_a_question_of_their_own(run):
    asked = {"tell": None, "device": "cpu"}
    whole = evaluate(run, {}, **asked)
    some = evaluate(run, {}, images=[7, 3], **asked)
    assert (some.y == whole.y[[7, 3]]).all()
    np.testing.assert_allclose(some.logits["clean"], whole.logits["clean"][[7, 3]], atol=1e-2)
    with pytest.raises(ConfigError, match="places of at least one image"):
        evaluate(run, {}, images=[], **asked)


def test_outcomes_without_logits_have_the_same_sample(run):
    found = sampled_autoattack(run, design=FEW, **ASKED)
    compact = replace(found.all_images, logits={})
    again = type(found).of(compact, found.phase_one, FEW, lambda _: found.attacked)
    assert np.array_equal(again.sample.places, found.sample.places)
    assert again.table.equals(found.table)


def test_a_network_without_survivors_is_attacked_no_further(run):
    found = sampled_autoattack(run, **ASKED)
    everyone = found.all_images
    wrong = (everyone.y + 1) % 10
    nobody = cache.Outcomes(
        "test",
        everyone.classes,
        everyone.y,
        everyone.logits,
        dict.fromkeys(everyone.predictions, wrong),
        {},
        everyone.margins,
    )
    of_nobody = type(found).of(nobody, found.phase_one, Design(), attack=None)
    assert of_nobody.attacked is None
    assert (of_nobody.table.robust_acc == 0).all()
    assert of_nobody.warning == ""
