"""What is kept is what was asked: prefixes, foreign attacks, files that were edited, and the
line that tells of it.
"""

import functools
import re
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import TINY

from crat import cli, data, defenses, store
from crat.attacks import FGSM, PGD
from crat.attacks.judge import attacked_logits
from crat.attacks.objectives import Toward
from crat.config import ConfigError
from crat.data.images import classes_in_turn
from crat.outcomes import ask, cache, files
from crat.outcomes import evaluation as evaluate
from crat.training.run import Run
from crat.training.trainer import train

ATTACK = {"PGD-1": PGD(0.1, 0.05, 1)}
CONFIG = TINY.but(epochs=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("CRAT_RUNS", str(tmp_path_factory.mktemp("kept")))
    yield train(CONFIG, progress="none", device="cpu")
    patch.undo()


@pytest.fixture
def judged(monkeypatch):
    """How many images each attack was computed on: a list of (attack, images)."""
    real, seen = cache.attacked_batches, []

    def counting(model, x, y, attack, *, begin=0, **settings):
        seen.append((attack, len(x) - begin))
        return real(model, x, y, attack, begin=begin, **settings)

    monkeypatch.setattr(cache, "attacked_batches", counting)
    return seen


def under(run, attack, **settings):
    return evaluate.evaluate(
        run, {"it": attack}, **{"tell": None, "split": "valid", "device": "cpu"} | settings
    )


def test_a_longer_prefix_serves_a_shorter_and_a_shorter_one_is_continued(run, judged):
    attack = PGD(0.1, 0.05, 1, start="none")
    few = under(run, attack, first=12)
    more = under(run, attack, first=20)
    assert [n for _, n in judged] == [12, 12, 8, 8]  # clean and attacked; then only what is missing
    assert all(np.array_equal(more.logits[name][:12], few.logits[name]) for name in few.logits)
    fewer = under(run, attack, first=7)
    everything = under(run, attack)
    assert [n for _, n in judged[4:]] == [30, 30]  # 7 are among the 20; of 50, 20 are there
    assert all(
        np.array_equal(everything.logits[name][:7], fewer.logits[name]) for name in fewer.logits
    )
    again = under(run, attack, first=33)
    assert len(judged) == 6
    assert len(again.y) == 33
    images = data.load(CONFIG.data)
    exact = attacked_logits(run.model("best", "cpu"), images.x_valid, images.y_valid, attack)
    assert (everything.predictions["it"] == exact.argmax(1).numpy()).all()


def test_a_battery_is_continued_with_what_broke_each_image():
    names = ("one", "two")
    parts = files.Parts(None)
    arrays = {
        "y": np.zeros(3, np.int16),
        "prediction": np.array([1, 0, 1], np.int16),
        "broken_by": np.array(["two", "", "one"]),
        "logits": np.array([[0, 1], [1, 0], [0, 2]], np.float16),
    }
    parts.begin_with(arrays, names)
    parts.add(torch.tensor([[3.0, 1.0]]), torch.tensor([0], dtype=torch.int8))
    whole = files.write(None, np.zeros(4), parts, {}, names)
    assert whole["broken_by"].tolist() == ["two", "", "one", "one"]
    assert whole["prediction"].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("mode", ["train", "moving"])
def test_what_depends_on_the_batch_is_not_cut_from_a_larger_one(mode):
    assert cache.one_by_one(PGD(0.1, 0.1))
    assert cache.one_by_one(None)
    assert not cache.one_by_one(PGD(0.1, 0.1, batch_norm=mode))
    assert not cache.one_by_one(PGD(0.1, 0.1, objective=Toward(torch.zeros(5, dtype=torch.int64))))
    assert not cache.one_by_one(Shifted())


@dataclass(frozen=True)
class Shifted:
    """An attack of a user's whose repr hides what it does."""

    by: torch.Tensor = field(repr=False, default_factory=lambda: torch.zeros(1))

    def __call__(self, model, x, y, *, eps=None, generator=None):
        return (x + self.by).clamp(0, 1)


def test_a_users_attack_and_hidden_tensors_have_outcomes_of_their_own(run, judged):
    toward = [PGD(0.1, 0.05, 2, objective=Toward(torch.full((50,), k))) for k in (5, 8)]
    for first, second in (toward, [Shifted(torch.tensor([v])) for v in (0.1, 0.3)]):
        a, b = under(run, first), under(run, second)
        assert (a.logits["it"] != b.logits["it"]).any()
        before = len(judged)
        assert np.array_equal(under(run, first).logits["it"], a.logits["it"])
        assert len(judged) == before
    few = under(run, Shifted(torch.tensor([0.1])), first=10)  # it may look at its batch
    assert judged[-1][1] == 10
    assert len(few.y) == 10


def test_what_cannot_be_keyed_is_computed_each_time_and_said(run, judged):
    lock = threading.Lock()
    attack, lines = (
        replace(FGSM(0.1), objective=lambda z, y, lock=lock: -z.gather(1, y[:, None])[:, 0]),
        [],
    )
    under(run, FGSM(0.1))
    files = set((run.folder / "eval").iterdir())
    for _ in range(2):
        under(run, attack, tell=lines.append)
    assert [a for a, _ in judged if a == attack] == [attack] * 2
    assert {path for path in (run.folder / "eval").iterdir() if path not in files} == set()
    assert [line for line in lines if line.startswith("not kept")] == [
        f"not kept: it of {run.name}, as no key can hold an object of type _thread.lock"
    ] * 2


def test_what_is_read_again_says_so_with_its_date(run, capsys):
    evaluate.evaluate(run, ATTACK, split="valid", seed=3)
    assert capsys.readouterr().out == ""
    evaluate.evaluate(run, ATTACK | {"new": FGSM(0.1)}, split="valid", seed=3)
    date = r"judged \d{1,2} [A-Z][a-z]+ \d\d:\d\d\n"
    assert re.fullmatch(
        rf"(kept: (clean|PGD-1|clean, PGD-1) of {run.name}, {date})+", capsys.readouterr().out
    )
    ask.outcomes(CONFIG, ATTACK, split="valid", seed=3, progress="none")
    assert capsys.readouterr().out == ""
    ask.outcomes(CONFIG, ATTACK, split="valid", seed=3)
    assert "kept: " in capsys.readouterr().out
    train(CONFIG)
    assert re.fullmatch(
        rf"kept: {run.name}, trained \d{{1,2}} [A-Z][a-z]+ \d\d:\d\d\n", capsys.readouterr().out
    )
    train(CONFIG, progress="none")
    assert capsys.readouterr().out == ""


EDITS = {
    "predictions": ("prediction", lambda a: (a + 1) % 10, "a prediction is not the largest logit"),
    "one prediction": (
        "prediction",
        lambda a: np.append((a[:1] + 1) % 10, a[1:]),
        "a prediction is not the largest",
    ),
    "logits": ("logits", lambda a: a[:, ::-1], "a prediction is not the largest logit"),
    "infinite logits": (
        "logits",
        lambda a: np.full_like(a, np.inf),
        "a prediction is not the largest logit",
    ),
    "labels": ("y", lambda a: a + 10, "a label or prediction is none of its 10 classes"),
    "a negative label": ("y", lambda a: a - 10, "a label or prediction is none of its 10 classes"),
    "other labels": ("y", lambda a: a[::-1], "have other labels than the clean ones"),
    "fewer": ("y", lambda a: a[:-1], "are of different lengths"),
    "no logits": ("logits", None, "it has no logits"),
    "fewer classes": (
        "logits",
        lambda a: np.pad(a, ((0, 0), (0, 1)), constant_values=-99),
        "11 logits but 10 classes",
    ),
    "another attack": (
        "meta",
        lambda a: np.array(str(a).replace("steps=1", "steps=2")),
        "it is of another attack",
    ),
    "another seed": (
        "meta",
        lambda a: np.array(str(a).replace('"seed": 5', '"seed": 6')),
        "it is of another seed: 6",
    ),
}


@pytest.mark.parametrize(("name", "edit", "why"), EDITS.values(), ids=EDITS)
def test_an_edited_outcome_is_refused_in_one_line(run, name, edit, why):
    ask = functools.partial(evaluate.evaluate, run, ATTACK, split="valid", seed=5, tell=None)
    ask()
    (path,) = [p for p in (run.folder / "eval").glob("*.npz") if is_of(p, "PGD-1", 5)]
    arrays = store.read_arrays(path)
    edited = {key: value for key, value in arrays.items() if key != name}
    store.write_arrays(path, edited if edit is None else edited | {name: edit(arrays[name])})
    with pytest.raises(store.StoreError, match=re.escape(why)) as refused:
        ask()
    assert "\n" not in str(refused.value)
    store.write_arrays(path, arrays)
    ask()


def is_of(path, name, seed):
    said = files.meta(path)
    return (said.get("name"), said.get("seed")) == (name, seed)


def test_a_part_of_another_key_is_not_continued(tmp_path):
    part, other = files.Parts(tmp_path / "a.npz"), files.Parts(tmp_path / "b.npz")
    part.saved = -1e9
    part.add(torch.eye(3), None)
    (tmp_path / "a.part.npz").rename(tmp_path / "b.part.npz")
    assert files.Parts(tmp_path / "b.npz").done == 0
    other.saved = -1e9
    other.add(torch.eye(3), None)
    assert files.Parts(tmp_path / "b.npz").done == 3
    arrays = store.read_arrays(tmp_path / "b.part.npz")
    store.write_arrays(tmp_path / "b.part.npz", arrays | {"prediction": arrays["prediction"][::-1]})
    with pytest.raises(store.StoreError, match=r"b.part.npz contradicts itself; remove it"):
        files.Parts(tmp_path / "b.npz")


def test_huge_logits_stay_finite():
    small = np.array([[1.0, 65504.0]], np.float32)
    assert store.halved(small).dtype == np.float16
    huge = np.array([[1e5, 2e5]], np.float32)
    assert np.array_equal(store.halved(huge), huge)
    assert store.halved(-huge).dtype == np.float32


def test_classes_in_turn():
    y = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3])
    order = classes_in_turn(y)
    assert order.tolist() == [0, 3, 5, 1, 4, 6, 2, 7]
    assert classes_in_turn(y[torch.arange(8)]).tolist() == order.tolist()


def test_images_are_spread_over_the_classes(run, judged, capsys):
    images = data.load(CONFIG.data)
    first = evaluate.evaluate(run, ATTACK, first=20, spread=True, tell=None)
    assert np.bincount(first.y).tolist() == [2] * 10
    longer = evaluate.evaluate(run, ATTACK, first=34, spread=True, tell=None)
    assert [n for _, n in judged] == [20, 20, 14, 14]
    assert np.array_equal(longer.y[:20], first.y)
    in_order = evaluate.evaluate(run, ATTACK, first=20, tell=None)
    assert np.array_equal(in_order.y, images.y_test[:20].numpy())
    for wrong in (0, -3):
        with pytest.raises(ConfigError, match=f"at least 1, not {wrong}"):
            evaluate.evaluate(run, {}, first=wrong)
    words = ["evaluate", run.name, "--attacks", "FGSM", "--device", "cpu", "--images", "4"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert f"{run.name}, 4 spread test images, best epoch, search in float32" in told
    assert re.search(r"T-shirt/top +1 ", told)
    assert "Sandal" not in told
    assert "nan" not in told
    assert re.search(r"mean over classes +\d", told)
    assert re.search(r"all images +4 +\d", told)


def test_only_kept_classes_are_named(run):
    found = evaluate.evaluate(run, {}, keep_classes=[2, 4], tell=None)
    assert found.classes == ("Pullover", "Coat")


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
LIFT = next(
    block
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    if "class Lift" in block
)
LIFT = LIFT.partition("\ndefenses.DEFENSES")[0]


def lifted(source, monkeypatch):
    """The run of a method that this source defines, as a notebook's cell would."""
    names = {"__name__": "__main__"}
    exec(source, names)
    monkeypatch.setitem(defenses.DEFENSES, "lift", names["Lift"])
    return CONFIG.but(defense="lift", options={"strength": 2.0}, train_per_class=5)


def test_an_edited_method_is_trained_anew_and_the_same_found_again(own_store, monkeypatch, capsys):
    first = train(lifted(LIFT, monkeypatch), progress="none")
    assert Run.of(lifted(LIFT, monkeypatch)) == first
    train(lifted("\n" + LIFT, monkeypatch), progress="line")
    assert capsys.readouterr().out.startswith(f"kept: {first.name}, trained ")
    edits = {
        "the loss": ("losses.mean()", "losses.sum()"),
        "an option's default": ("strength: float = 1.0", "strength: float = 3.0"),
        "the policy": ("1 + self.strength", "2 + self.strength"),
        "the start": ("torch.ones(task.n_classes)", "torch.zeros(task.n_classes)"),
    }
    runs = {name: Run.of(lifted(LIFT.replace(*edit), monkeypatch)) for name, edit in edits.items()}
    assert all(edit[0] in LIFT for edit in edits.values())
    assert len({run.name for run in (first, *runs.values())}) == 5
    assert not any(run.trained_here for run in runs.values())
    trained = train(lifted(LIFT.replace(*edits["the loss"]), monkeypatch), progress="line")
    assert trained == runs["the loss"]
    assert "kept" not in capsys.readouterr().out


def test_a_method_that_no_key_can_hold_is_trained_anew_by_the_next_session(
    own_store, monkeypatch, capsys
):
    source = LIFT.replace(
        "@dataclass", "import threading\nLOCK = threading.Lock()\n\n\n@dataclass"
    ).replace("        losses =", "        LOCK.locked()\n        losses =")
    run = train(lifted(source, monkeypatch), progress="line")
    warning = (
        "type _thread.lock: cannot be read into the key of this run, "
        "so a later session will train it anew"
    )
    assert warning in capsys.readouterr().out
    assert Run.of(lifted(source, monkeypatch)) != run


def test_a_users_method_under_crats_name_is_another_run(own_store, monkeypatch):
    class Mine(defenses.DEFENSES["trades"]):
        """TRADES, with nothing changed yet."""

    ours = Run.of(CONFIG.but(defense="trades"))
    with monkeypatch.context() as patch:
        patch.setitem(defenses.DEFENSES, "trades", Mine)
        assert Run.of(CONFIG.but(defense="trades")) != ours
    assert Run.of(CONFIG.but(defense="trades")) == ours
    monkeypatch.setattr(defenses.DEFENSES["trades"], "start", "none")
    assert Run.of(CONFIG.but(defense="trades")) != ours
