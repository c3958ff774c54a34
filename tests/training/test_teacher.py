"""The teacher of a training: in key and card, frozen, found as a start is, refused in a line."""

import re
import shutil

import pytest
import torch
from tiny_runs import TINY, same, weights
from tiny_teacher import taught

from crat import cli, store
from crat.batch.plan import Entry, share
from crat.config import ConfigError, different_from_default
from crat.defenses import DEFENSES
from crat.papers import PAPERS
from crat.papers.evidence import Evidence
from crat.store import Store
from crat.training import MissingStart
from crat.training.named import label
from crat.training.run import Run, card_config
from crat.training.trainer import Trainer, train

pytestmark = pytest.mark.usefixtures("own_store")
SHORT = TINY.but(epochs=2, train_per_class=8)
BASE = SHORT.but(seed=7, width=5, epochs=1)  # another network than the student's
STUDENT = SHORT.but(defense="absld")


def learning(teacher=BASE, student=STUDENT):
    return student.but(teacher=Run.of(teacher).name)


@pytest.fixture
def base():
    return train(BASE, progress="none")


def begun(config):
    return Trainer(Run.of(config), torch.device("cpu"), tell=lambda line: None)


def test_no_teacher_leaves_the_names_of_all_published_runs():
    cards = sorted(store.results_home().glob("*/*/card.json"))
    assert len(cards) > 100
    for path in cards:
        config = card_config(store.read_json(path), path.parent)
        taught = DEFENSES[config.train.defense].taught
        assert bool(config.train.teacher) == taught
        assert ("train.teacher" in different_from_default(config)) == taught
        assert Run.of(config, "cpu").name == path.parent.name


def test_the_teacher_decides_the_name():
    names = {Run.of(learning(t)).name for t in (BASE, BASE.but(seed=8), BASE.but(lr=0.2))}
    assert len(names | {Run.of(STUDENT).name}) == 4
    assert label(learning()).endswith(f", teacher {Run.of(BASE).name}")
    assert learning().train.earlier == (Run.of(BASE).name,)
    assert learning().but(start_from="a").train.earlier == ("a", Run.of(BASE).name)


def test_the_card_has_its_weights_and_the_checkpoint_has_it_not(base, capsys):
    before = weights(base, "best")
    run = train(learning(), progress="line")
    fingerprint = base.card()["best"]["weights"]
    assert run.card()["teacher"] == {"run": base.name, "which": "best", "weights": fingerprint}
    assert f"learns from {base.name}, weights {fingerprint}\n" in capsys.readouterr().out
    assert same(before, weights(base, "best"))
    tensors, meta = store.read_tensors(run.folder / "checkpoint.safetensors")
    assert meta["teacher"] == run.card()["teacher"]
    parts = {name.split("/")[0] for name in tensors}
    assert parts == {"model", "momentum", "defense"}
    alone = train(SHORT, progress="none")
    assert "teacher" not in alone.card()
    state = begun(learning()).defense.state_dict()
    assert {f"defense/{name}" for name in state} == {n for n in tensors if "defense/" in n}


def test_it_is_frozen_in_eval_mode_and_answers_as_it_was_trained(base):
    trainer = begun(learning())
    assert not trainer.teacher.training
    assert not any(p.requires_grad for p in trainer.teacher.parameters())
    assert same(trainer.teacher.state_dict(), weights(base, "best"))
    assert trainer.defense.teacher is trainer.teacher
    assert all(p.dtype == torch.float32 for p in trainer.teacher.parameters())
    assert begun(SHORT).teacher is None


def test_stopped_after_each_epoch_it_ends_as_if_undisturbed(base, tmp_path, monkeypatch):
    whole = train(learning(), progress="none")
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "stopped"))
    shutil.copytree(base.folder, Run.of(BASE).folder)
    for _ in range(2):
        stopped = train(learning(), progress="none", max_minutes=0)
    assert stopped.finished
    assert stopped.folder != whole.folder
    assert same(weights(stopped), weights(whole))
    assert stopped.history().equals(whole.history())


def test_a_resumed_run_refuses_another_teacher(base):
    run = train(learning(), progress="none", max_minutes=0)
    tensors, meta = store.read_tensors(base.folder / "best.safetensors")
    tensors["head.bias"] += 1
    store.write_tensors(base.folder / "best.safetensors", tensors, meta)
    with pytest.raises(store.StoreError, match="are not those of its card; remove"):
        begun(learning())
    card = store.read_json(base.folder / "card.json")
    card["best"]["weights"] = store.fingerprint(tensors)
    store.write_json(base.folder / "card.json", card)
    line = f"^{run.name} began with other weights of {base.name} than are there now; remove"
    with pytest.raises(store.StoreError, match=line):
        train(learning(), progress="none")


def test_none_or_a_needless_one_is_a_line():
    with pytest.raises(ConfigError, match=r"^absld learns from a teacher and none is named: train"):
        begun(STUDENT)
    with pytest.raises(ConfigError, match=r"^pgd_at learns from no teacher: leave out --teacher"):
        Run.of(SHORT.but(teacher="a-run"))
    with pytest.raises(ConfigError, match=r"^teacher is the name of a run, or of a file's weights"):
        STUDENT.but(teacher="/runs/a-run")
    with pytest.raises(ConfigError, match=r"^a teacher answers with one output a class, and the"):
        begun(learning().but(head="augmented", extra_outputs=2))


def test_a_missing_or_unfinished_one_is_a_missing_start(base):
    name = base.name
    with pytest.raises(MissingStart, match=f"^the weights of {name[:-1]} are not in .*{name}"):
        begun(STUDENT.but(teacher=name[:-1]))
    (base.folder / "best.safetensors").unlink()
    with pytest.raises(MissingStart, match="are missing, so no run learns from it; train it"):
        begun(learning())


@pytest.mark.parametrize(
    ("there", "line"),
    [
        ({"drop_classes": (3,)}, "9 classes, not 10"),
        (
            {"data": "cifar10", "train_per_class": 8},
            r"images of shape \(3, 32, 32\), not \(1, 28, 28\)",
        ),
    ],
)
def test_one_that_does_not_fit_is_a_line(there, line, monkeypatch):
    other = BASE.but(**there)
    monkeypatch.setattr("crat.training.start._finished_run", lambda *_: Run.of(other))
    with pytest.raises(ConfigError, match=f"cannot teach this run: it has {line}$"):
        begun(learning())


def test_one_of_other_kept_classes_of_the_same_number_is_a_line(monkeypatch):
    monkeypatch.setattr(
        "crat.training.start._finished_run", lambda *_: Run.of(BASE.but(drop_classes=(3,)))
    )
    with pytest.raises(ConfigError, match=r"it has the classes \(0, 1, 2, 4, .*, not \(0, 1, 2, 3"):
        begun(learning().but(drop_classes=(9,)))


def test_an_augmented_teacher_answers_with_its_classes():
    augmented = BASE.but(defense="label_augmentation")
    train(augmented, progress="none")
    answer = begun(learning(augmented)).teacher(torch.rand(2, 1, 28, 28))
    assert answer.shape == (2, 10)


def test_the_weights_of_a_file_teach_the_students_own_network():
    config = taught(STUDENT)
    run = train(config, progress="none")
    assert run.card()["teacher"] == {
        "file": config.train.teacher,
        "weights": config.train.teacher.split("-")[-1],
    }


def test_evidence_trains_it_first(monkeypatch):
    plan = {"live": learning(), "teacher-s0": BASE, "lost-s0": STUDENT.but(teacher="lost")}
    monkeypatch.setattr(PAPERS["00"], "plan", lambda *_: plan)
    evidence = Evidence.of("00", "quick")
    live = evidence.train(progress="none")
    assert live.card()["teacher"]["run"] == evidence.run("teacher-s0").name
    with pytest.raises(MissingStart, match="the weights of lost are not in"):
        evidence.train("lost-s0", progress="none")


def test_a_plans_task_needs_it_and_both_are_in_one_share():
    runs = [Entry(Run.of(config), live=False) for config in (BASE, SHORT, learning())]
    assert runs[2].task(Store.usual()).needs == {Run.of(BASE).name}
    shares = [[entry.run.name for entry in share(runs, i, 2)] for i in (1, 2)]
    assert shares == [[runs[0].run.name, runs[2].run.name], [runs[1].run.name]]


def test_the_command_finds_it_by_a_part_of_its_name(base, capsys):
    words = "--train-per-class 8 --valid-per-class 5 --epochs 1 --steps 1 --width 4 --device cpu"
    asked = ["train", "--defense", "absld", "--teacher", base.name[-8:], *words.split()]
    assert cli.main(asked) == 0
    told = capsys.readouterr().out
    assert f"learns from {base.name}" in told
    assert cli.main(["train", "--defense", "absld", *words.split()]) == 2
    assert re.match("crat: .*absld learns from a teacher", capsys.readouterr().err)
    (base.folder / "best.safetensors").unlink()
    assert cli.main([*asked, "--seed", "3"]) == 1
    told = capsys.readouterr().err
    assert "learns from it; train it first: crat train --defense pgd_at" in told
