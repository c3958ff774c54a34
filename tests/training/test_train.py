"""Training: schedules, determinism, averages, collapse, bad numbers, refusals. (test_resume:
kill and resume.)
"""

from types import SimpleNamespace

import pytest
import torch
from tiny_runs import TINY, same, weights
from torch import nn

from crat import store
from crat.config import ConfigError, TrainConfig
from crat.defenses import ClassStats
from crat.training.averaging import EMA
from crat.training.progress import Progress
from crat.training.run import Run, build_model
from crat.training.schedules import learning_rate
from crat.training.trainer import Trainer, TrainingError, train

pytestmark = pytest.mark.usefixtures("own_store")


@pytest.mark.parametrize("defense", ["standard", "pgd_at", "trades"])
def test_trains_notes_and_keeps(defense):
    config = TINY.but(defense=defense, trace_per_class=2)
    run = train(config, progress="none")
    history = run.history()
    assert len(history) == 3 * 2 * 10
    assert history.groupby("split").n.sum().to_dict() == {"train": 3 * 260, "valid": 3 * 50}
    assert history[history.split == "valid"].robust_acc.between(0, 1).all()
    assert (
        history[history.split == "valid"].robust_acc <= history[history.split == "valid"].clean_acc
    ).all()
    trace = run.trace()
    assert trace["pgd"].shape == (3, 20, 10)
    card = run.card()
    assert card["finished"]
    assert card["config"]["train"]["eps"] == "0.1"
    assert history.loss.notna().all()


def test_a_finished_run_is_never_trained_twice(monkeypatch):
    first = train(TINY, progress="none")
    monkeypatch.setattr("crat.training.trainer.Trainer", None)
    assert train(TINY, progress="none") == first


def test_every_setting_changes_the_name():
    names = {Run.of(TINY).name}
    for change in (
        {"seed": 1},
        {"eps": 0.2},
        {"epochs": 4},
        {"drop_classes": (3,)},
        {"width": 8},
        {"defense": "trades"},
        {"dtype": "bfloat16"},
        {"data": "mnist"},
        {"average": "ema_epoch"},
        {"split": "first"},
    ):
        names.add(Run.of(TINY.but(**change)).name)
    assert len(names) == 11
    # the protocol's own value, asked for by hand
    assert Run.of(TINY.but(eps="0.1")).name == Run.of(TINY).name


def test_method_revision_changes_the_name(monkeypatch):
    before = Run.of(TINY).name
    monkeypatch.setattr("crat.defenses.pgd_at.PGDAT.revision", 99)
    assert Run.of(TINY).name != before


def test_a_card_of_other_settings_is_never_served():
    run = train(TINY.but(epochs=1), progress="none")
    card = run.card()
    card["config"]["train"]["lr"] = 0.5
    store.write_json(run.folder / "card.json", card)
    with pytest.raises(store.StoreError, match="other settings than asked"):
        _ = Run.of(TINY.but(epochs=1)).finished


def test_same_seed_same_weights_other_seed_other_weights(tmp_path, monkeypatch):
    first = weights(train(TINY, progress="none"))
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "again"))
    assert same(first, weights(train(TINY, progress="none")))
    assert not same(first, weights(train(TINY.but(seed=1), progress="none")))


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    train(TINY.but(epochs=1), progress="none")
    assert torch.equal(before, torch.get_rng_state())


def test_loss_that_is_not_finite_names_epoch_batch_and_checkpoint():
    run = train(TINY, progress="none", max_minutes=0)
    trainer = Trainer(run, torch.device("cpu"))
    loss, calls = trainer.defense.loss, []

    def spoiled(*arguments):
        calls.append(arguments)
        value, stats = loss(*arguments)
        return (value * torch.nan if len(calls) == 3 else value), stats

    trainer.defense.loss = spoiled
    with pytest.raises(
        TrainingError,
        match=r"epoch 2, batch 3 of 5; the checkpoint after epoch 1 is kept in .*; a smaller",
    ):
        trainer.fit(Progress("none"), None)
    assert Run.of(TINY).card()["epochs_done"] == 1


def test_collapse_is_told(capsys):
    # an untrained net calls everything one class
    run = train(TINY.but(epochs=1, lr=0.0), progress="line")
    assert run.card()["collapsed_epochs"] == [1]
    assert "collapsed: one class draws" in capsys.readouterr().out


def test_standard_training_is_chosen_by_clean_accuracy():
    run = train(TINY.but(defense="standard"), progress="none")
    valid = (
        run.history()
        .query("split == 'valid'")
        .groupby("epoch")
        .clean_acc.agg(["mean", "min"])
        .sum(axis=1)
    )
    assert run.card()["best"]["epoch"] == valid.idxmax()


def test_best_is_chosen_by_average_and_worst_class_on_validation():
    run = train(TINY, progress="none")
    valid = (
        run.history()
        .query("split == 'valid'")
        .groupby("epoch")
        .robust_acc.agg(["mean", "min"])
        .sum(axis=1)
    )
    assert run.card()["best"]["score"] == pytest.approx(valid.max())
    assert run.card()["best"]["epoch"] == valid.idxmax()


def test_class_removal_trains_a_smaller_head():
    run = train(TINY.but(drop_classes=(0, 4), epochs=1), progress="none")
    assert run.card()["original_labels"] == [1, 2, 3, 5, 6, 7, 8, 9]
    assert run.model()(torch.rand(2, 1, 28, 28)).shape == (2, 8)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("piecewise", [1, 1, 0.1, 0.01]),
        ("cosine", [1, 0.8536, 0.5, 0.1464]),
        ("one_cycle", [1 / 12, 11 / 12, 0.7143, 0.3571]),
    ],
)
def test_schedules(schedule, expected):
    config = TrainConfig(epochs=4, lr=1.0, schedule=schedule)
    rates = [learning_rate(config, 10 * epoch, 10) for epoch in range(4)]
    assert rates == pytest.approx(expected, abs=1e-3)
    assert schedule not in ("cosine", "one_cycle") or learning_rate(config, 39, 10) < 0.05


def test_moving_average_is_the_recursion_and_has_both_habits():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema, expected = EMA(0.85), None
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        model(torch.randn(8, 2))
        ema.update(model)
        new = {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()}
        expected = (
            new if expected is None else {k: 0.85 * expected[k] + 0.15 * v for k, v in new.items()}
        )
    for name, value in expected.items():
        torch.testing.assert_close(ema.state[name], value)
    assert ema.state["1.num_batches_tracked"] == 3

    warm = EMA(0.999, warm_up=True)
    for _ in range(2):
        warm.update(model)
    assert warm.updates == 2
    with torch.no_grad():
        model[0].bias.add_(1.0)
    before = warm.state["0.bias"].clone()
    warm.update(model)
    # decay (1 + 3) / (10 + 3)
    torch.testing.assert_close(warm.state["0.bias"], before + (1 - 4 / 13))

    per_epoch = train(TINY.but(average="ema_epoch", epochs=1), progress="none")
    plain = train(TINY.but(epochs=1), progress="none")
    per_update = train(TINY.but(average="ema_update", average_decay=0.5, epochs=1), progress="none")
    assert same(weights(per_epoch), weights(plain))  # one epoch: the first step copies
    assert not same(weights(per_update), weights(plain))
    with pytest.raises(ValueError, match=r"lies in \[0, 1\)"):
        EMA(1.0)


def test_eps_warmup_grows_linearly():
    trainer = Trainer(Run.of(TINY.but(eps_warmup=2)), torch.device("cpu"))
    scales = []

    def craft(model, x, y, *, scale, generator):
        scales.append(float(scale))
        return x

    trainer.defense.craft = craft
    for epoch in range(3):
        trainer.train_epoch(epoch, Progress("none"))
    assert sorted(set(scales)) == pytest.approx([1 / 3, 2 / 3, 1])


def test_history_notes_the_eps_that_an_epoch_trained_with():
    """The warm-up's share of it, the common one and a class's own; validation is attacked by the
    whole eps.
    """
    history = train(TINY.but(eps_warmup=2), progress="none").history()
    used = history.groupby(["split", "epoch"]).eps.agg(["min", "max"])
    assert used.loc["train"].to_numpy().ravel() == pytest.approx(
        [0.1 / 3, 0.1 / 3, 0.2 / 3, 0.2 / 3, 0.1, 0.1]
    )
    assert used.loc["valid"].to_numpy().ravel() == pytest.approx([0.1] * 6)

    own = (
        train(TINY.but(defense="cfa", eps_warmup=2), progress="none")
        .history()
        .query("split == 'train'")
    )
    margins, withstood = (
        own.pivot(index="epoch", columns="class", values=v) for v in ("eps", "robust_acc")
    )
    expected = [
        0.1 / 3 + 0 * withstood.loc[1],
        (0.5 + withstood.loc[1]) * 0.2 / 3,
        (0.5 + withstood.loc[2]) * 0.1,
    ]
    for epoch, eps in enumerate(expected, 1):  # CFA: (lambda_1 + t_k) eps of the epoch before
        assert margins.loc[epoch].to_numpy() == pytest.approx(eps.to_numpy(), rel=1e-6)


def test_the_line_of_an_epoch_says_the_means_over_classes_and_the_worst(capsys):
    run = train(TINY.but(epochs=1), progress="line")
    trainer, k = Trainer(run, torch.device("cpu")), 3
    zeros = [torch.zeros(k)] * 3 + [torch.zeros(k, k)] * 2
    n = torch.tensor([4.0, 0.0, 10.0])  # a class without images enters no mean
    valid = ClassStats(n, torch.tensor([3.0, 0, 8]), torch.tensor([2.0, 0, 1]), *zeros)
    trained = ClassStats(
        torch.full((k,), 100.0), *[torch.zeros(k)] * 2, torch.tensor([50.0, 100, 300]), *zeros[1:]
    )
    trainer.images = SimpleNamespace(classes=("cat", "dog", "ship"))
    assert trainer._line(trained, valid, 2.0, 0.5) == (
        "loss 1.500  valid clean 77.5 %  robust 30.0 %, worst 10.0 % (ship)  150 images/s"
    )


def test_bfloat16_trains_as_well():
    run = train(TINY.but(dtype="bfloat16"), progress="none")
    assert run.history().loss.notna().all()
    assert all(v.dtype != torch.bfloat16 for v in weights(run).values())


def test_initial_weights_depend_on_the_seed_only():
    first, again, other = (build_model(TINY.but(seed=s)).state_dict() for s in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_bad_settings_get_one_line():
    for change, message in (
        ({"defence": "trades"}, "unknown setting 'defence'; known: data, model, beta"),
        ({"schedule": "step"}, "unknown schedule 'step'; known: piecewise, one_cycle"),
        ({"eps": "8/0"}, "'8/0' is not a number"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"data": "cifar"}, "unknown data set 'cifar'; known: fashion_mnist_mini"),
        ({"model": "resnet"}, "unknown model 'resnet'; known: small_cnn"),
    ):
        with pytest.raises(ConfigError, match=message):
            TINY.but(**change)
    with pytest.raises(ConfigError, match="device 'tpu' cannot be used"):
        train(TINY, device="tpu")
    with pytest.raises(ConfigError, match=r"unknown progress .loud.; known: bar, line, none"):
        train(TINY, progress="loud")
