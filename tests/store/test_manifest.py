"""What was published is what is read: an altered, missing or added file is refused in one line."""

import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import TINY

from crat import cli, store
from crat.analysis import claims
from crat.attacks import PGD
from crat.outcomes import evaluation as evaluate
from crat.outcomes.publishing import publish
from crat.store import manifest
from crat.training.run import Run
from crat.training.trainer import train

BATTERY = {"PGD-1": PGD(0.1, 0.05, 1)}
CONFIG = TINY.but(epochs=1, seed=4, trace_per_class=1)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A published run without its weights."""
    folder, patch = tmp_path_factory.mktemp("published"), pytest.MonkeyPatch()
    patch.setenv("CRAT_RUNS", str(folder / "runs"))
    evaluate.evaluate(train(CONFIG, progress="none"), BATTERY, first=50)
    target = publish(Run.of(CONFIG), folder / "results")
    patch.setenv("CRAT_RUNS", str(folder / "empty"))
    yield target
    patch.undo()


def read_all(target):
    """All that is read of a published run."""
    run = replace(Run.of(CONFIG), published=target)
    return run.card(), run.history(), run.trace(), evaluate.evaluate(run, BATTERY, first=50)


def outcome_file(target):
    return next(path for path in sorted((target / "eval").glob("*.npz")))


def edited_json(target, change):
    card = store.read_json(target / "card.json")
    change(card)
    store.write_json(target / "card.json", card)


def edited_arrays(path, **changes):
    arrays = store.read_arrays(path)
    store.write_arrays(
        path,
        arrays | {name: change(arrays[name]) for name, change in changes.items()},
        compressed=True,
    )


def edited_text(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


EDITS = {
    "best epoch": lambda t: edited_json(t, lambda card: card["best"].update(epoch=2)),
    "weight norms": lambda t: edited_json(
        t, lambda card: card.update(class_weight_norms=[1.0] * 10)
    ),
    "class names": lambda t: edited_json(t, lambda card: card["classes"].reverse()),
    "history": lambda t: edited_text(t / "history.csv", ",0.", ",1."),
    "trace": lambda t: edited_arrays(t / "trace.npz", pgd=lambda a: a + 1),
    "predictions and logits": lambda t: edited_arrays(
        outcome_file(t), prediction=np.roll, logits=np.roll
    ),
    "a missing outcome": lambda t: outcome_file(t).unlink(),
    "a missing card": lambda t: (t / "card.json").unlink(),
    "a missing trace": lambda t: (t / "trace.npz").unlink(),
    "one outcome for another": lambda t: outcome_file(t).write_bytes(
        sorted((t / "eval").glob("*"))[1].read_bytes()
    ),
    "an added outcome": lambda t: (t / "eval" / "test-0.npz").write_bytes(b""),
    "no sums": lambda t: (t / store.SUMS).unlink(),
    "sums that were edited with the file": lambda t: (
        edited_text(t / "history.csv", ",0.", ",1."),
        sums(t),
    ),
    "no sums of all": lambda t: (t.parents[1] / store.SUMS).unlink(),
}
EDITS["predictions and logits"] = lambda t: edited_arrays(
    outcome_file(t), prediction=lambda a: (a + 1) % 10, logits=lambda a: np.roll(a, 1, axis=1)
)


def sums(target):
    store.write_sums(target, store.files_of_run(target))


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edit_of_what_is_published_is_refused(published, edit):
    files = [path for path in published.parents[1].rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    card, history, _, seen = read_all(published)
    assert (card["finished"], len(history), len(seen.y)) == (True, 20, 50)
    edit(published)
    try:
        with pytest.raises(store.StoreError) as refused:
            read_all(published)
        told = str(refused.value)
        assert "\n" not in told
        reasons = (
            "is not as it was published",
            "was published and is missing",
            "was never published",
            "has no SHA",
        )
        assert re.search("|".join(reasons), told)
    finally:
        for path in [path for path in published.parents[1].rglob("*") if path.is_file()]:
            path.unlink()
        for path, content in before.items():
            path.write_bytes(content)
    read_all(published)


def test_sha256sum_reads_them(published):
    for folder in (published, published.parents[1]):
        told = subprocess.run(
            ["sha256sum", "-c", store.SUMS], cwd=folder, capture_output=True, text=True, check=True
        )
        assert (
            told.stdout.count(": OK\n") == len((folder / store.SUMS).read_text().splitlines()) > 0
        )


def test_what_is_published_of_all_is_signed():
    """Every file under results/, and no other, is named; its hash is right."""
    results = store.results_home()
    top = (results / store.SUMS).read_text().splitlines()
    runs = [card.parent for card in sorted(results.glob("*/*/card.json"))]
    assert {line.split("  ")[1] for line in top} == {
        path.relative_to(results).as_posix()
        for path in [*store.loose_results(results), *(run / store.SUMS for run in runs)]
    }
    for run in runs:
        for name in store.files_of_run(run):
            store.as_published(run / name, run)
        store.published_file(run, "card.json")


def test_claims_and_tables_are_checked(tmp_path, monkeypatch):
    results = tmp_path / "results"
    (results / "cifar10").mkdir(parents=True)
    for name in ("published_numbers.csv", "cifar10/claims_01.json"):
        (results / name).write_text("[]")
    manifest.sign_top(results)
    monkeypatch.setattr("crat.store.files.published_home", lambda: results)
    monkeypatch.setattr(claims, "published_home", lambda: results)
    assert store.results_home() == results
    (results / "cifar10/claims_01.json").write_text("[1]")
    for read in (store.results_home, lambda: claims.read(results / "cifar10/claims_01.json")):
        with pytest.raises(
            store.StoreError, match=r"claims_01.json is not as it was published \(SHA-256 differs\)"
        ):
            read()
    manifest.main(results)
    assert store.results_home() == results
    (results / "new.csv").write_text("")
    with pytest.raises(store.StoreError, match=r"new\.csv was never published"):
        store.results_home()


def test_the_command_shows_what_is_published_without_data_or_weights(
    own_store, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("CRAT_DATA", str(tmp_path))
    name = "fashion_mnist-small_cnn-label_augmentation-s0-2a3771a36341f2aa"
    assert (
        cli.main(["evaluate", name, "--attacks", "AA", "--images", "1000", "--device", "cpu"]) == 0
    )
    told = capsys.readouterr().out
    assert told.startswith(
        f"published: clean, AA of {name}\n{name}, the first 1000 test images, best epoch"
    )
    assert re.search(r"\nmean over classes +87\.7 +71\.8\nall images +1000 +87\.5 +71\.1\n", told)
