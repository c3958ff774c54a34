"""Fine-tuning: a run that starts from the best weights of another one."""

import shutil

import pytest
import torch
from tiny_runs import TINY, same, weights

from crat import store
from crat.config import ConfigError, different_from_default
from crat.training import MissingStart
from crat.training.run import Run, build_model, fine_tuned
from crat.training.trainer import Trainer, train

CPU = torch.device("cpu")
# its best weights are an average
BASE = TINY.but(defense="standard", average="ema_epoch", average_decay=0.5)
TUNED = fine_tuned(TINY, BASE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of BASE, trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRAT_RUNS", str(tmp_path_factory.mktemp("start")))
        return train(BASE, progress="none").folder


@pytest.fixture
def base(trained, own_store):
    """The run of BASE in the store of one test."""
    run = Run.of(BASE)
    shutil.copytree(trained, run.folder)
    return run


def begun(config):
    """A training of a config before its first step."""
    return Trainer(Run.of(config), CPU, tell=lambda line: None)


def altered(run, card=True):
    """Gives a finished run other best weights, and their fingerprint to its card."""
    path = run.folder / "best.safetensors"
    tensors, meta = store.read_tensors(path)
    tensors["head.bias"] = tensors["head.bias"] + 1
    store.write_tensors(path, tensors, meta)
    if card:
        entries = store.read_json(run.folder / "card.json")
        entries["best"]["weights"] = store.fingerprint(tensors)
        store.write_json(run.folder / "card.json", entries)


def test_the_first_weights_are_the_best_ones_of_the_start_run(base):
    trainer = begun(TUNED)
    first, best = trainer.model.state_dict(), weights(base, "best")
    assert same(first, best)
    assert any("running_var" in name for name in first)
    raw = store.read_tensors(base.folder / "checkpoint.safetensors")[0]
    assert not torch.equal(best["head.weight"], raw["model/head.weight"])  # but the average
    assert not same(first, build_model(TINY).state_dict())
    assert not trainer.state.optimizer.state
    assert trainer.state.epochs_done == 0


def test_the_start_decides_the_name_and_no_start_leaves_it_as_it_was(own_store):
    starts = [BASE, BASE.but(seed=1), BASE.but(lr=0.2)]
    names = {Run.of(fine_tuned(TINY, start)).name for start in starts}
    assert len(names | {Run.of(TINY).name}) == 4
    assert "train.start_from" not in different_from_default(TINY)
    assert Run.of(TINY.but(start_from="")).name == Run.of(TINY).name
    assert TUNED.train.start_from == Run.of(BASE).name
    assert Run.of(TUNED).config.train.start_from == Run.of(BASE).name


def test_the_card_has_the_weights_that_were_loaded(base, capsys):
    run = train(TUNED, progress="line")
    loaded = base.card()["best"]["weights"]
    card = run.card()
    assert card["start_from"] == {"run": base.name, "which": "best", "weights": loaded}
    assert card["config"]["train"]["start_from"] == base.name
    assert f"starts from {base.name}, weights {loaded}\n" in capsys.readouterr().out
    assert not same(weights(run), weights(train(TINY, progress="none")))
    assert "start_from" not in Run.of(TINY).card()


def test_a_finished_run_needs_its_start_no_more(base):
    run = train(TUNED, progress="none")
    shutil.rmtree(base.folder)
    assert train(TUNED, progress="none") == run


@pytest.mark.parametrize("average", ["ema_epoch", "ema_update"])
def test_a_moving_average_begins_with_the_loaded_weights(base, average):
    averaged = begun(TUNED.but(average=average)).state.average
    assert averaged.updates == 1
    assert same(averaged.state, weights(base, "best"))


def test_the_first_epoch_moves_the_average_by_one_step_of_its_recursion(base):
    config = TUNED.but(epochs=1)
    averaged = weights(train(config.but(average="ema_epoch", average_decay=0.75), progress="none"))
    plain = weights(train(config, progress="none"))
    for name, start in weights(base, "best").items():
        if start.is_floating_point():
            expected = 0.75 * start + 0.25 * plain[name]
            torch.testing.assert_close(averaged[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("average", ["swa", "fawa"])
def test_a_gated_average_takes_epochs_only(base, average):
    state = begun(TUNED.but(average=average)).state
    assert not state.average.state
    assert same(state.weights, weights(base, "best"))


def test_an_augmented_head_has_the_classes_of_a_linear_one_and_draws_its_other_rows(base):
    config = TUNED.but(defense="label_augmentation")
    first = begun(config).model.state_dict()
    drawn = build_model(Run.of(config).config).state_dict()
    for name, value in weights(base, "best").items():
        if name.startswith("head."):
            assert torch.equal(first[name][:10], value)
            assert len(first[name]) == 12
            assert torch.equal(first[name][10:], drawn[name][10:])
        else:
            assert torch.equal(first[name], value)
    run = train(config, progress="none")
    assert run.card()["start_from"]["weights"] == base.card()["best"]["weights"]
    again = fine_tuned(config.but(seed=1), config)  # with as many outputs
    assert same(begun(again).model.state_dict(), weights(run, "best"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"width": 8},
            r"width or depth .*: body.conv1.weight is \(4, 1, 3, 3\), not \(8, 1, 3, 3\)",
        ),
        ({"head": "cosine"}, "head .*: linear, not cosine with scale 8"),
        ({"model": "lenet5", "width": None}, "network .*: small_cnn, not lenet5"),
        ({"drop_classes": (1,)}, "number of classes .*: 10, not 9"),
        (
            {"data": "cifar10"},
            r"shape of the images .*: \(1, 28, 28\), not \(3, 32, 32\)",
        ),
    ],
)
def test_another_network_or_other_images_are_a_line(base, changes, line):
    with pytest.raises(ConfigError, match=f"^{base.name} has another .*{line}$"):
        begun(TUNED.but(**changes))


@pytest.mark.parametrize(
    ("there", "here", "line"),
    [
        ({"head": "cosine", "scale": 9}, {"head": "cosine"}, "cosine with scale 9, not .* 8"),
        (
            {"defense": "label_augmentation"},
            {"defense": "label_augmentation", "options": {"operations": ("noise",)}},
            "augmented with 2 more outputs, not augmented with 3 more outputs",
        ),
        ({"defense": "label_augmentation"}, {}, "augmented with 2 more outputs, not linear"),
    ],
)
def test_heads_of_two_kinds_are_a_line(own_store, there, here, line):
    start = TINY.but(epochs=1, **there)
    train(start, progress="none")
    with pytest.raises(ConfigError, match=f"another head than .*: {line}"):
        begun(fine_tuned(TINY.but(**here), start))


def test_a_start_that_is_missing_unfinished_or_without_weights_is_a_line(base):
    with pytest.raises(
        MissingStart,
        match=f"^the weights of {base.name[:-1]} are not in .*; did "
        f"you mean {base.name}; train it first, `crat train` or train",
    ):
        begun(TINY.but(start_from=base.name[:-1]))
    (base.folder / "best.safetensors").unlink()
    with pytest.raises(MissingStart, match=f"^the weights of {base.name} are missing"):
        train(TUNED, progress="none")
    shutil.rmtree(base.folder)
    train(BASE, progress="none", max_minutes=0)
    with pytest.raises(MissingStart, match=rf"^{base.name} is not finished \(epoch 1 of 3\)"):
        train(TUNED, progress="none")
    with pytest.raises(
        ConfigError,
        match=r"start_from is the name of a run, or of a file's weights .*, not '/runs/other'",
    ):
        TINY.but(start_from="/runs/other")


def test_a_start_that_is_not_what_it_is_called_is_a_line(base):
    altered(base, card=False)
    with pytest.raises(store.StoreError, match="are not those of its card; remove"):
        begun(TUNED)
    base.folder.rename(base.folder.with_name("another"))
    with pytest.raises(store.StoreError, match=f"another holds {base.name}; give it that name"):
        begun(TINY.but(start_from="another"))


def test_resumed_after_every_epoch_it_ends_as_if_undisturbed(base, tmp_path, monkeypatch):
    config = TUNED.but(average="ema_update", defense="label_augmentation")
    whole = train(config, progress="none")
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "stopped"))
    shutil.copytree(base.folder, Run.of(BASE).folder)
    for _ in range(3):
        stopped = train(config, progress="none", max_minutes=0)
    assert stopped.finished
    assert stopped.folder != whole.folder
    assert same(weights(stopped), weights(whole))
    assert same(weights(stopped, "best"), weights(whole, "best"))
    assert stopped.history().equals(whole.history())
    assert stopped.card()["start_from"] == whole.card()["start_from"]


def test_a_resumed_run_refuses_another_start(base):
    run = train(TUNED, progress="none", max_minutes=0)
    altered(base)
    with pytest.raises(
        store.StoreError,
        match=f"^{run.name} began with other weights of {base.name} than are there now; remove",
    ):
        train(TUNED, progress="none")
    shutil.rmtree(run.folder)
    assert train(TUNED, progress="none").finished


# published with its network; TINY has half its width
PUBLISHED = "fashion_mnist-small_cnn-pgd_at-s0-53db9ebe064f4488"
FROM_PUBLISHED = TINY.but(epochs=1, width=None, start_from=PUBLISHED)


def test_a_published_network_is_a_start(own_store):
    folder = store.published_home() / "fashion_mnist" / PUBLISHED
    network = store.read_tensors(folder / "best.safetensors")[0]
    fingerprint = store.read_json(folder / "card.json")["best"]["weights"]
    run = Run.of(FROM_PUBLISHED)
    first = Trainer(run, CPU, tell=lambda line: None, published=store.published_home())
    assert same(first.model.state_dict(), network)
    assert store.fingerprint(network) == fingerprint
    card = train(FROM_PUBLISHED, progress="none").card()
    assert card["start_from"] == {"run": PUBLISHED, "which": "best", "weights": fingerprint}
    assert not same(weights(run), network)
    assert not (run.folder.parent / PUBLISHED).exists()


def test_where_published_runs_are_left_aside_so_is_their_network(own_store):
    for work in (
        lambda: begun(FROM_PUBLISHED),
        lambda: train(FROM_PUBLISHED, progress="none", store=store.Store.recomputed()),
    ):
        with pytest.raises(MissingStart, match=f"^the weights of {PUBLISHED} are not in "):
            work()


@pytest.mark.parametrize("lost", ["best.safetensors", "SHA256SUMS"])
def test_an_altered_published_network_is_no_start(own_store, tmp_path, lost):
    there = store.published_home() / "fashion_mnist" / PUBLISHED
    here = tmp_path / "results" / "fashion_mnist" / PUBLISHED
    shutil.copytree(there, here)
    shutil.copy(store.published_home() / "SHA256SUMS", tmp_path / "results")
    with (here / lost).open("ab") as file:
        file.write(b" ")
    with pytest.raises(store.StoreError, match=f"{lost} is not as it was published") as caught:
        Trainer(Run.of(FROM_PUBLISHED), CPU, published=tmp_path / "results")
    assert "\n" not in str(caught.value)
