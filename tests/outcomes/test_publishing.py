"""What is published of a run, with logits or compact, and its network: found again, and checked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import TINY, shorten_autoattack

from crat import cli, data, store
from crat.attacks import PGD, AutoAttack
from crat.outcomes import ask, cache, margins, publishing
from crat.outcomes.evaluation import (
    MissingWeights,
    at_hand,
    evaluate,
    judged,
    judged_as_published,
)
from crat.outcomes.publishing import LARGEST, publish, publish_weights
from crat.store import manifest
from crat.training import named
from crat.training.run import WEIGHTS, Run
from crat.training.trainer import train

CONFIG = TINY.but(epochs=1, seed=5, trace_per_class=1)
BATTERY = {"PGD-1": PGD(0.1, 0.05, 1), "AA": AutoAttack(0.1)}
ASKED = {"first": 30, "device": "cpu", "tell": None}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("publishing")
    patch.setenv("CRAT_RUNS", str(home / "runs"))
    shorten_autoattack(patch)
    yield home
    patch.undo()


@pytest.fixture(scope="module")
def run(home):
    run = train(CONFIG, progress="none", device="cpu")
    evaluate(run, BATTERY, **ASKED)
    evaluate(run, {}, split="valid", device="cpu")
    return run


@pytest.fixture
def compact(run, home, tmp_path, monkeypatch):
    """The run where nothing is trained, published without logits."""
    target = publish(run, tmp_path / "results", compact=True)
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "empty"))
    return replace(Run.of(CONFIG), published=target)


def test_a_compact_run_is_one_file_of_outcomes(run, compact):
    names = {path.name for path in compact.published.rglob("*")}
    assert names == {"card.json", "history.csv", "outcomes.npz", store.SUMS}
    keys = {path.stem for path in (run.folder / "eval").glob("*.npz")}
    assert set(margins.index(compact.published)) == keys
    assert len(keys) == 4  # PGD-1, AA and clean, and clean on validation
    with pytest.raises(store.StoreError, match=r"has no trace\.npz"):
        compact.trace()


def test_what_was_published_compact_answers_as_with_logits(run, compact, monkeypatch):
    full = evaluate(run, BATTERY, **ASKED)
    monkeypatch.setattr(cache, "attacked_batches", None)  # nothing is computed
    read = evaluate(compact, BATTERY, **ASKED)
    for name in ("clean", *BATTERY):
        assert np.array_equal(read.predictions[name], full.predictions[name])
        assert np.array_equal(read.margins[name], full.margins[name])
        assert read.margins[name].dtype == full.margins[name].dtype == np.float16
        assert np.array_equal(read.robust(name), full.robust(name))
        logits = full.logits[name].astype(float)
        true = logits[np.arange(30), full.y]
        logits[np.arange(30), full.y] = -np.inf
        np.testing.assert_allclose(read.margins[name], true - logits.max(1), rtol=1e-3)
    assert np.array_equal(read.broken_by["AA"], full.broken_by["AA"])
    assert (read.classes, read.y.tolist()) == (full.classes, full.y.tolist())
    fewer = evaluate(compact, BATTERY, **ASKED | {"first": 11})
    assert np.array_equal(fewer.margins["PGD-1"], full.margins["PGD-1"][:11])
    assert len(evaluate(compact, {}, split="valid").y) == 50


def test_logits_that_are_not_kept_are_one_clear_line(compact):
    read = evaluate(compact, BATTERY, **ASKED)
    assert not read.logits
    with pytest.raises(store.StoreError) as refused:
        read.logits["PGD-1"]
    assert str(refused.value) == (
        f"PGD-1 of {compact.name} was published without logits: only predictions and margins are "
        "kept; train the run and evaluate it for logits, both with --recompute"
    )
    with pytest.raises(KeyError):
        read.logits["PGD-2"]


def test_a_compact_outcome_is_at_hand(compact):
    question = {"first": 30}
    assert at_hand(compact, BATTERY, **question) == ["clean", *BATTERY]
    assert judged(compact, BATTERY, **question)
    assert judged_as_published(compact, BATTERY, **question)
    assert not judged_as_published(compact, BATTERY, first=29)
    assert at_hand(compact, BATTERY, first=31) == []
    with pytest.raises(MissingWeights, match="is not trained here"):
        evaluate(compact, BATTERY, **ASKED | {"first": 31})


def test_more_images_are_computed_anew_and_stored_here(run, compact, monkeypatch):
    """Without logits the first images cannot be a part of a longer outcome."""
    begun, real = [], cache.attacked_batches

    def counting(*args, begin, **settings):
        begun.append(begin)
        return real(*args, begin=begin, **settings)

    monkeypatch.setattr(cache, "attacked_batches", counting)
    train(CONFIG, progress="none", device="cpu")
    pgd = {"PGD-1": BATTERY["PGD-1"]}
    more = evaluate(compact, pgd, **ASKED | {"first": 40})
    assert begun == [0, 0]
    assert np.array_equal(
        more.predictions["PGD-1"][:30], evaluate(run, pgd, **ASKED).predictions["PGD-1"]
    )
    assert len(list((compact.folder / "eval").glob("*.npz"))) == 2
    assert set(more.logits) == {"clean", "PGD-1"}


def test_an_edit_of_a_compact_run_is_refused(compact):
    path = compact.published / margins.NAME
    arrays = store.read_arrays(path)
    key = next(name for name in arrays if name.endswith("/margin"))
    store.write_arrays(path, arrays | {key: arrays[key] * 2}, compressed=True)
    with pytest.raises(store.StoreError, match=r"outcomes\.npz is not as it was published"):
        evaluate(compact, BATTERY, **ASKED)
    manifest.sign(compact.published)
    evaluate(compact, BATTERY, **ASKED)
    store.write_arrays(path, arrays | {key: -arrays[key]}, compressed=True)
    manifest.sign(compact.published)
    with pytest.raises(store.StoreError, match="the sign of a margin contradicts its prediction"):
        evaluate(compact, BATTERY, **ASKED)


def test_what_is_published_is_added_to_and_never_replaced(run, tmp_path):
    results = tmp_path / "results"
    target = publish(run, results)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    publish(run, results, compact=True)  # all of it is there with its logits
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    first = next(iter(sorted((target / "eval").iterdir())))
    first.unlink()
    publish(run, results, compact=True)
    assert set(margins.index(target)) == {first.stem}
    publish(run, results)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    card = store.read_json(target / "card.json")
    card["last"]["weights"] = "0" * 16
    store.write_json(target / "card.json", card)
    with pytest.raises(store.StoreError, match="was published with other weights than are here"):
        publish(run, results)


def test_the_command_publishes_compact(run, home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CRAT_RUNS", str(home / "runs"))
    monkeypatch.setattr(store, "results_home", lambda: tmp_path / "results")
    assert cli.main(["publish", str(run.folder), "--compact"]) == 0
    target = tmp_path / "results" / "fashion_mnist_mini" / run.name
    assert capsys.readouterr().out == f"{target}\n"
    assert (target / margins.NAME).exists()


@pytest.fixture
def with_weights(run, home, tmp_path, monkeypatch):
    """The run where nothing is trained, published with its network."""
    monkeypatch.setenv("CRAT_RUNS", str(home / "runs"))
    target = publish(run, tmp_path / "results")
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert publish_weights(run, tmp_path / "results") == target
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {store.SUMS}
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "empty"))
    return replace(Run.of(CONFIG), published=target)


def edit_card(published, which):
    card = store.read_json(published / "card.json")
    card[which]["weights"] = "0" * 16
    store.write_json(published / "card.json", card)
    manifest.sign(published)


def test_a_published_network_is_the_one_that_was_trained(run, with_weights):
    x = data.load(CONFIG.data).x_test[:20].float() / 255
    assert not with_weights.trained_here
    assert with_weights.has_network("best")
    with torch.no_grad():
        expected, found = run.model("best", "cpu")(x), with_weights.model("best", "cpu")(x)
    assert torch.equal(expected, found)
    assert with_weights.published_weights("last")  # one epoch: the best is the last
    assert not store.home().exists()


def test_a_published_network_is_attacked_further(run, with_weights):
    """Outcomes of other attacks go to the store, and are those of the trained run."""
    further = {"PGD-2": PGD(0.1, 0.05, 2)}
    here = evaluate(run, further, **ASKED)
    found = evaluate(with_weights, further, **ASKED)
    assert np.array_equal(found.predictions["PGD-2"], here.predictions["PGD-2"])
    (stored,) = (with_weights.folder / "eval").glob("*.npz")
    assert judged(with_weights, further, first=30)
    store.published_file(with_weights.published, "card.json")  # nothing was added to it
    transferred = evaluate(run, further, crafted_on=with_weights, **ASKED)
    assert np.array_equal(transferred.predictions["PGD-2"], here.predictions["PGD-2"])
    assert stored.exists()


def test_what_asks_for_outcomes_trains_nothing_beside_a_published_network(
    with_weights, monkeypatch
):
    monkeypatch.setattr(ask, "train", None)
    place = store.Store(store.home(), with_weights.published.parents[1])
    found = ask.outcomes(CONFIG, {"PGD-2": PGD(0.1, 0.05, 2)}, store=place, **ASKED)
    assert found.y.shape == (30,)


def test_the_last_network_is_published_only_where_it_is_the_best(with_weights):
    edit_card(with_weights.published, "last")
    line = (
        f"the last network of {with_weights.name} is not published, only the best: `crat train` or "
        "train(config) makes it"
    )
    assert not with_weights.has_network("last")
    with pytest.raises(store.StoreError) as refused:
        with_weights.model("last")
    assert str(refused.value) == line
    with pytest.raises(MissingWeights) as refused:
        evaluate(with_weights, {}, which="last", **ASKED)
    assert str(refused.value) == line
    with_weights.model("best")


def test_a_training_does_not_go_on_from_published_weights(with_weights):
    place = store.Store(store.home(), with_weights.published.parents[1])
    trained = train(CONFIG, progress="none", device="cpu", store=place)
    assert trained.published == with_weights.published
    assert trained.trained_here


def test_an_altered_network_is_refused(with_weights):
    path = with_weights.published / WEIGHTS
    tensors, meta = store.read_tensors(path)
    name = next(iter(tensors))
    store.write_tensors(path, tensors | {name: tensors[name] + 1}, meta)
    with pytest.raises(store.StoreError, match=r"best.safetensors is not as it was published"):
        with_weights.model()
    manifest.sign(with_weights.published)
    with pytest.raises(store.StoreError, match="has other weights than its card says"):
        with_weights.model()


def test_weights_are_not_published_beside_another_card_nor_alone(run, tmp_path, monkeypatch):
    with pytest.raises(store.StoreError, match="is not published: `crat publish"):
        publish_weights(run, tmp_path / "results")
    target = publish(run, tmp_path / "results")
    monkeypatch.setattr(publishing, "LARGEST", 1000)
    with pytest.raises(store.StoreError, match=r"has 0.0 MB; results/ takes 0 MB at most"):
        publish_weights(run, tmp_path / "results")
    edit_card(target, "best")
    with pytest.raises(store.StoreError, match="was published with other weights than are here"):
        publish_weights(run, tmp_path / "results")
    assert not (target / WEIGHTS).exists()


def test_the_command_adds_weights_and_nothing_else(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "results_home", lambda: tmp_path / "results")
    assert cli.main(["publish", str(run.folder), "--weights"]) == 0
    target = tmp_path / "results" / "fashion_mnist_mini" / run.name
    assert (target / "trace.npz").exists()
    (target / "trace.npz").unlink()
    (target / WEIGHTS).unlink()
    published = replace(run, published=target)
    monkeypatch.setattr(named, "find_run", lambda text: published)
    assert cli.main(["publish", run.name, "--weights"]) == 0
    assert capsys.readouterr().out == f"{target}\n" * 2
    assert (target / WEIGHTS).exists()
    assert not (target / "trace.npz").exists()


def test_the_published_networks_are_small_and_those_of_their_cards():
    files = sorted(store.results_home().glob("*/*/*.safetensors"))
    sizes = [path.stat().st_size for path in files]
    assert sum(sizes) < 15_000_000
    assert max(sizes, default=0) < LARGEST == 5_000_000
    for path in files:
        assert path.name == WEIGHTS
        tensors, _ = store.read_tensors(store.as_published(path, path.parent))
        card = store.read_json(path.parent / "card.json")
        assert store.fingerprint(tensors) == card["best"]["weights"]
        assert {tensor.dtype for tensor in tensors.values()} <= {torch.float32, torch.int64}
