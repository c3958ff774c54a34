"""Evaluation: what is kept, that it is read again, resumed, transferred, restricted, and
published.
"""

import json
from dataclasses import replace

import data_files
import numpy as np
import pytest
import torch
from tiny_runs import shorten_autoattack

from crat import data, store
from crat.attacks import PGD, AutoAttack, Decision
from crat.attacks.judge import attacked_logits
from crat.config import ConfigError, DataConfig, RunConfig
from crat.outcomes import ask, cache, files
from crat.outcomes import evaluation as evaluate
from crat.outcomes.ask import outcomes
from crat.outcomes.batteries import standard_battery, strong_battery
from crat.outcomes.evaluation import MissingWeights
from crat.outcomes.publishing import publish
from crat.store import manifest
from crat.training.run import Run
from crat.training.trainer import train

CONFIG = RunConfig().but(
    train_per_class=40,
    valid_per_class=5,
    epochs=1,
    steps=1,
    batch_size=64,
    dtype="float32",
    width=4,
)
BATTERY = {"PGD-2": PGD(0.1, 0.05, 2)}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("evaluated")
    patch.setenv("CRAT_RUNS", str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def run(folder):
    return train(CONFIG, progress="none")


def kept_file(run, name, seed=0):
    """The file that holds the test outcome of an attack."""
    for path in (run.folder / "eval").glob("test-*.npz"):
        meta = json.loads(str(store.read_arrays(path)["meta"]))
        if (meta["name"], meta["seed"], meta["keep"], meta["crafted_on"]) == (
            name,
            seed,
            None,
            None,
        ):
            return path
    raise AssertionError(f"no outcome of {name} is kept")


def test_keeps_each_samples_logits_and_reads_them_again(run, monkeypatch):
    first = evaluate.evaluate(run, BATTERY)
    assert first.y.shape == (2000,)
    assert set(first.logits) == {"clean", "PGD-2"}
    assert first.logits["PGD-2"].dtype == np.float16
    images = data.load(CONFIG.data)
    exact = attacked_logits(
        run.model(), images.x_test, images.y_test, BATTERY["PGD-2"], batch_size=500
    )
    assert (first.predictions["PGD-2"] == exact.argmax(1).numpy()).all()
    np.testing.assert_allclose(first.logits["PGD-2"], exact.numpy(), rtol=1e-3, atol=1e-3)
    assert (first.robust("PGD-2") <= (first.clean == first.y)).all()
    monkeypatch.setattr(cache, "attacked_batches", None)  # nothing is computed any more
    again = evaluate.evaluate(run, BATTERY)
    assert all((again.logits[name] == first.logits[name]).all() for name in first.logits)
    assert again.classes[6] == "Shirt"


def test_a_battery_tells_what_broke_each_image_and_may_see_the_first_images_only(run, monkeypatch):
    shorten_autoattack(monkeypatch)
    battery = {"AA": AutoAttack(0.1)}
    few = evaluate.evaluate(run, battery, first=8)
    everything = evaluate.evaluate(run, {})
    assert (few.clean == everything.clean[:8]).all()
    broken_by = few.broken_by["AA"]
    assert set(broken_by) <= {"clean", "apgd-ce", "apgd-t", "fab-t", "square", ""}
    assert ((broken_by == "clean") == (few.clean != few.y)).all()
    assert ((broken_by == "") == few.robust("AA")).all()
    assert list(everything.broken_by) == []
    again = evaluate.evaluate(run, battery, first=8)
    assert (again.broken_by["AA"] == broken_by).all()


def test_splits_and_seeds_are_apart(run):
    valid = evaluate.evaluate(run, {}, split="valid")
    assert len(valid.y) == 50
    other = evaluate.evaluate(run, BATTERY, split="valid", seed=1)
    assert not (
        other.logits["PGD-2"] == evaluate.evaluate(run, BATTERY, split="valid").logits["PGD-2"]
    ).all()
    with pytest.raises(ConfigError, match="split is 'test' or 'valid', not 'train'"):
        evaluate.evaluate(run, {}, split="train")


def test_a_killed_evaluation_resumes_where_it_was(run, monkeypatch):
    attack = {"PGD-1": PGD(0.1, 0.1, 1)}
    whole = evaluate.evaluate(run, attack).logits["PGD-1"]
    kept_file(run, "PGD-1").unlink()
    real, seen = cache.attacked_batches, []

    def interrupted(*args, begin=0, **settings):
        seen.append(begin)
        for i, batch in enumerate(real(*args, begin=begin, **settings)):
            if begin == 0 and i == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(cache, "attacked_batches", interrupted)
    monkeypatch.setattr(files, "SAVE_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(run, attack)
    resumed = evaluate.evaluate(run, attack).logits["PGD-1"]
    assert seen == [0, 1000]
    assert (resumed == whole).all()
    assert not list(run.folder.rglob("*.part.npz"))


def test_transfer_crafts_on_one_and_judges_on_another(run):
    other = train(CONFIG.but(seed=1), progress="none")
    white = evaluate.evaluate(run, BATTERY)
    transferred = evaluate.evaluate(run, BATTERY, crafted_on=other)
    assert (transferred.logits["clean"] == white.logits["clean"]).all()
    assert transferred.robust("PGD-2").mean() > white.robust("PGD-2").mean()


def test_a_model_restricted_to_some_classes(run):
    keep = [0, 2, 4, 6]
    restricted = evaluate.evaluate(run, {}, keep_classes=keep)
    everything = evaluate.evaluate(run, {})
    inside = np.isin(everything.y, keep)
    assert (np.array(keep)[restricted.y] == everything.y[inside]).all()
    pairs = restricted.logits["clean"], everything.logits["clean"][inside][:, keep]
    np.testing.assert_allclose(*pairs, rtol=2e-3, atol=1e-3)  # float16 of images in other company
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(Decision(run.model(), keep)(x), run.model()(x)[:, keep])


def test_temperatures_and_biases_change_the_answers_and_stand_in_the_key(run):
    """The first class's logit is divided, then the second's raised: each is another outcome."""
    plain = evaluate.evaluate(run, BATTERY)
    t = [2.0] + [1.0] * 9
    divided = evaluate.evaluate(run, BATTERY, temperature=t)
    expected = plain.logits["clean"].astype(float)
    expected[:, 0] /= 2
    np.testing.assert_allclose(divided.logits["clean"], expected, rtol=2e-3, atol=1e-3)
    raised = evaluate.evaluate(run, BATTERY, temperature=t, bias=[0.0, 50.0] + [0.0] * 8)
    assert (raised.clean == 1).all()
    keys = [evaluate.Question(**q).decided_by(run) for q in ({}, {"temperature": t})]
    assert "temperature" not in keys[0]
    assert keys[1]["temperature"] == t


def test_another_test_set_of_the_same_classes(run, tmp_path, monkeypatch):
    """The shipped images teach; Fashion-MNIST's own test images, here made of noise, judge."""
    home = data_files.empty_home(tmp_path, monkeypatch)
    arrays = data_files.made("fashion_mnist", per_class=6)
    np.savez(home / "fashion_mnist.npz", **arrays)
    own = evaluate.evaluate(run, BATTERY, first=20)
    seen = evaluate.evaluate(run, BATTERY, test_set="fashion_mnist")
    assert (seen.y == arrays["y_test"]).all()
    few = DataConfig("fashion_mnist", train_per_class=1, valid_per_class=1)
    x = data.load(few).x_test.float() / 255
    with torch.no_grad():
        assert (run.model()(x).argmax(1).numpy() == seen.clean).all()
    assert len(own.y) == 20
    same = evaluate.evaluate(run, BATTERY, first=20, test_set=CONFIG.data.name)
    assert (same.predictions["PGD-2"] == own.predictions["PGD-2"]).all()
    assert evaluate.judged(run, BATTERY, test_set="fashion_mnist")
    with pytest.raises(ConfigError, match="mnist has other classes or shapes than fashion_mnist_m"):
        evaluate.evaluate(run, BATTERY, test_set="mnist")
    with pytest.raises(ConfigError, match="split must be 'test'"):
        evaluate.evaluate(run, BATTERY, test_set="fashion_mnist", split="valid")
    with pytest.raises(ConfigError, match="unknown data set 'fashion'"):
        evaluate.evaluate(run, BATTERY, test_set="fashion")


def test_asks_trains_only_what_is_missing(monkeypatch):
    config = CONFIG.but(seed=2)
    with pytest.raises(MissingWeights, match="is not trained here"):
        evaluate.evaluate(Run.of(config), BATTERY)
    assert outcomes(config, BATTERY, progress="none").y.shape == (2000,)
    monkeypatch.setattr(ask, "train", None)
    outcomes(config, BATTERY)


def test_published_results_need_no_weights(run, tmp_path, monkeypatch):
    evaluate.evaluate(run, BATTERY)
    target = publish(run, tmp_path / "results")
    names = {path.suffix for path in target.rglob("*") if path.is_file()}
    assert names == {".json", ".csv", ".npz", ""}  # the last: SHA256SUMS
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "empty"))
    elsewhere = replace(Run.of(CONFIG), published=target)
    assert elsewhere.card() == run.card()
    read = evaluate.evaluate(elsewhere, BATTERY)
    assert read.classes == tuple(run.card()["classes"])
    assert len(elsewhere.history()) == 20


def test_outcomes_are_tied_to_the_weights(run, tmp_path, monkeypatch):
    """A published run that is trained again elsewhere has other bits: its outcomes may not be
    mixed with the old.
    """
    evaluate.evaluate(run, BATTERY)
    target = publish(run, tmp_path / "results")
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "elsewhere"))
    elsewhere = replace(Run.of(CONFIG), published=target)
    train(CONFIG, progress="none")
    # the same bits on the same machine
    evaluate.evaluate(elsewhere, BATTERY | {"PGD-3": PGD(0.1, 0.05, 3)})
    card = store.read_json(target / "card.json")
    card["best"]["weights"] = "0" * 16
    store.write_json(target / "card.json", card)
    manifest.sign(target)
    with pytest.raises(store.StoreError, match="published with other weights than are here"):
        evaluate.evaluate(elsewhere, BATTERY)


def test_a_run_in_a_hidden_folder_is_published_too(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / ".cache" / "runs"))
    hidden = train(CONFIG, progress="none")
    (hidden.folder / ".half.npz").write_bytes(b"")
    published = {
        path.name for path in publish(hidden, tmp_path / "results").rglob("*") if path.is_file()
    }
    assert published == {"card.json", "history.csv", "SHA256SUMS"}


def test_only_finished_runs_are_published(tmp_path):
    with pytest.raises(store.StoreError, match="not finished here; only finished runs"):
        publish(Run.of(CONFIG.but(seed=9)), tmp_path)


def test_standard_battery_names_the_protocol():
    battery = standard_battery("cifar10")
    assert list(battery) == ["FGSM", "PGD-20", "CW-20"]
    assert battery["PGD-20"].eps == 8 / 255
    assert "Margin" in repr(battery["CW-20"])
    assert list(strong_battery("cifar10")) == ["Square", "AA"]
    assert strong_battery("cifar10")["AA"] == AutoAttack(8 / 255)


def test_a_damaged_outcome_gets_one_line(run):
    evaluate.evaluate(run, {}, seed=7)
    path = kept_file(run, "clean", seed=7)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(store.StoreError, match=r"is damaged .* remove it to make it anew"):
        evaluate.evaluate(run, {}, seed=7)
