"""Outcomes without logits: their margins, their one file, and what is refused when it is read."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from crat import store
from crat.outcomes import files, margins

N, K = 40, 3
META = {"name": "it", "attack": "It()", "split": "test", "seed": 0}
KEYS = ("test-a", "test-b")


def outcome(seed=0, n=N, k=K, **more):
    """An outcome with logits, as `files.write` keeps it."""
    rng = np.random.default_rng(seed)
    exact = rng.standard_normal((n, k)).astype(np.float32)
    return {
        "y": (np.arange(n) % k).astype(np.int16),
        "prediction": exact.argmax(1).astype(np.int16),
        "logits": exact.astype(np.float16),
        "meta": np.array(json.dumps(META | more)),
    }


@pytest.fixture
def run(tmp_path):
    """A run's folder with two outcomes without logits, the second of a battery."""
    broken_by = {"broken_by": np.array(["one", "", "two", "one"] * (N // 4))}
    sources = {"test-a": outcome(), "test-b": outcome(1, name="battery") | broken_by}
    for key, arrays in sources.items():
        store.write_arrays(tmp_path / "full" / f"{key}.npz", arrays)
    margins.write(tmp_path / "run", sorted((tmp_path / "full").iterdir()))
    return tmp_path / "run"


def read(run, key="test-a", **decided_by):
    return margins.read(margins.Place(run / margins.NAME, key), "It()", decided_by)


def test_a_margin_is_the_true_logit_minus_the_largest_other():
    logits = np.array([[3, 1, -2], [3, 1, -2], [0, 5, 5]], np.float16)
    found = margins.of(logits, np.array([0, 2, 1]))
    assert found.tolist() == [2, -5, 0]
    assert found.dtype == np.float16
    assert logits[0].tolist() == [3, 1, -2]
    huge = margins.of(np.array([[1e5, -1e5]], np.float32), np.array([0]))
    assert huge.tolist() == [2e5]
    assert huge.dtype == np.float32


def test_neighbouring_float16_logits_keep_their_sign():
    """The difference of two float16 numbers is at least the smallest of them."""
    small = np.float16(2.0**-24)
    logits = np.array([[small, 0], [0, small], [2048, 2050]], np.float16)
    assert (np.sign(margins.of(logits, np.zeros(3, int))) == [1, -1, -1]).all()


def test_what_is_written_is_read_again(run):
    for seed, key in enumerate(KEYS):
        arrays, full = read(run, key, split="test", seed=0), outcome(seed)
        for name in ("y", "prediction"):
            assert np.array_equal(arrays[name], full[name])
            assert arrays[name].dtype == full[name].dtype
        assert np.array_equal(arrays["margin"], margins.of(full["logits"], full["y"]))
        assert arrays["n_classes"] == K
        assert "logits" not in arrays
    assert read(run, "test-b")["broken_by"].tolist() == ["one", "", "two", "one"] * (N // 4)
    assert [path.name for path in run.iterdir()] == [margins.NAME]


def test_small_types_and_shared_labels(run, tmp_path):
    stored = store.read_arrays(run / margins.NAME)
    assert [name for name in stored if name.startswith("y-")] == ["y-0"]
    assert {stored[f"{key}/prediction"].dtype for key in KEYS} == {np.dtype(np.uint8)}
    many = outcome(k=300, n=300)
    store.write_arrays(tmp_path / "test-c.npz", many)
    margins.write(run, [tmp_path / "test-c.npz"])
    stored = store.read_arrays(run / margins.NAME)
    assert stored["test-c/prediction"].dtype == np.uint16
    assert np.array_equal(read(run, "test-c")["y"], many["y"])
    assert set(margins.index(run)) == {*KEYS, "test-c"}


def test_an_image_takes_about_three_bytes(tmp_path):
    store.write_arrays(tmp_path / "a.npz", outcome(n=10_000, k=10), compressed=True)
    margins.write(tmp_path / "run", [tmp_path / "a.npz"])
    # one byte for the class and two for the margin; the labels, and what zip adds
    assert (tmp_path / "run" / margins.NAME).stat().st_size < 3.3 * 10_000


def test_an_outcome_with_a_file_of_its_own_is_not_kept_twice(run):
    own = Path("eval/test-a.npz")
    assert margins.find(run, own) == margins.Place(run / margins.NAME, "test-a")
    store.write_arrays(run / own, outcome())
    assert margins.find(run, own) == margins.Place(run / own)
    margins.write(run, [])
    assert set(margins.index(run)) == {"test-b"}
    assert [meta["name"] for meta in margins.metas(run).values()] == ["it", "battery"]
    store.write_arrays(run / "eval" / "test-b.npz", outcome(1))
    margins.write(run, [run / own])
    assert not (run / margins.NAME).exists()
    assert margins.find(run, Path("eval/test-c.npz")) is None


def test_a_source_that_contradicts_itself_is_refused(run, tmp_path):
    wrong = outcome() | {"prediction": np.zeros(N, np.int16)}
    store.write_arrays(tmp_path / "wrong.npz", wrong)
    with pytest.raises(store.StoreError, match="a prediction is not the largest logit"):
        margins.write(run, [tmp_path / "wrong.npz"])
    assert set(margins.index(run)) == set(KEYS)


def entry(change):
    """An edit of the index: `change` takes the entry of the first outcome."""

    def edit(stored):
        index = json.loads(str(stored["index"]))
        change(index["test-a"])
        stored["index"] = np.array(json.dumps(index))

    return edit


def array(name, change):
    def edit(stored):
        stored[name] = change(stored[name])

    return edit


PREDICTION, MARGIN, BROKEN = "test-a/prediction", "test-a/margin", "test-b/broken_by"
EDITS = {
    "turned signs": (array(MARGIN, np.negative), "the sign of a margin contradicts"),
    "one prediction": (
        array(PREDICTION, lambda a: np.append((a[:1] + 1) % K, a[1:])),
        "the sign of a margin contradicts",
    ),
    "infinite margins": (
        array(MARGIN, lambda a: np.full_like(a, np.inf)),
        "the sign of a margin contradicts",
    ),
    "no number": (array(MARGIN, lambda a: a * np.nan), "the sign of a margin contradicts"),
    "a class too many": (array(PREDICTION, lambda a: a + 3), "is none of its 3 classes"),
    "labels": (array("y-0", lambda a: a + 3), "is none of its 3 classes"),
    "no whole labels": (array("y-0", lambda a: a / 2), "is none of its 3 classes"),
    "fewer": (array(MARGIN, lambda a: a[:-1]), "margins are of different lengths"),
    "none": (array(MARGIN, lambda a: a[:0]), "margins are of different lengths"),
    "an attack that is not in the battery": (
        array(BROKEN, lambda a: a + 1),
        "was broken by no attack",
    ),
    "a missing array": (lambda stored: stored.pop(MARGIN), r"is damaged \(KeyError\)"),
    "no index": (lambda stored: stored.pop("index"), r"is damaged \(KeyError\)"),
    "another index": (array("index", lambda _: np.array("{")), "its index is not JSON"),
    "an entry without labels": (entry(lambda e: e.pop("y")), "test-a has no y"),
    "fewer classes": (entry(lambda e: e.update(n_classes=2)), "is none of its 2 classes"),
    "another attack": (entry(lambda e: e["meta"].update(attack="That()")), "of another attack"),
    "another seed": (entry(lambda e: e["meta"].update(seed=6)), "it is of another seed: 6"),
}


@pytest.mark.parametrize(("edit", "why"), EDITS.values(), ids=EDITS)
def test_an_edited_file_is_refused_in_one_line(run, edit, why):
    stored = store.read_arrays(run / margins.NAME)
    edit(stored)
    store.write_arrays(run / margins.NAME, stored)
    with pytest.raises(store.StoreError, match=why) as refused:
        [read(run, key, split="test", seed=0) for key in KEYS]
    assert "\n" not in str(refused.value)


def test_a_margin_of_zero_may_be_right_or_wrong(run):
    stored = store.read_arrays(run / margins.NAME)
    stored[MARGIN] = np.zeros_like(stored[MARGIN])
    store.write_arrays(run / margins.NAME, stored)
    assert not read(run)["margin"].any()


def test_a_prefix_of_an_outcome_keeps_its_single_values(run):
    first = files.prefix(read(run, "test-b"), 7)
    assert {name: array.shape for name, array in first.items() if array.ndim} == dict.fromkeys(
        ("y", "prediction", "margin", "broken_by"), (7,)
    )
    assert re.search('"name": "battery"', str(first["meta"]))
    assert first["n_classes"] == K
