"""What holds for every training method: one table of methods, one list of promises."""

import re

import pytest
import torch
from method_table import METHODS, config, each_method
from tiny_runs import TINY, same, weights
from tiny_teacher import teacher

from crat import data
from crat.config import ConfigError, RunConfig
from crat.defenses import DEFENSES, PRESETS, Defense, Task, make_defense, preset
from crat.defenses.base import Words
from crat.training.run import Run, build_model
from crat.training.step import Step
from crat.training.trainer import Trainer, train

pytestmark = pytest.mark.usefixtures("own_store")
BATCH = 24


@pytest.fixture
def batch():
    images = data.load(TINY.data)
    index = torch.cat([(images.y_train == k).nonzero()[: BATCH // 3, 0] for k in range(3)])
    return images.x_train[index].float() / 255, images.y_train[index]


def ready(method, classes=3, **changes):
    """A method on a network of its head with three classes, and its state begun."""
    run = Run.of(config(method, **changes))
    model = build_model(run.config, classes).train()
    counts = torch.arange(classes, 0, -1) * 10.0
    asked = teacher(run.config, classes)
    return make_defense(run.config.train, Task(counts, (1, 28, 28), 3, asked)), model


@each_method
def test_crafts_within_its_budget_and_leaves_the_model_as_it_was(method, batch):
    x, y = batch
    defense, model = ready(method)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = [
        defense.craft(model, x, y, scale=s, generator=torch.Generator().manual_seed(1))
        for s in (1.0, 0.5)
    ]
    for x_adv, eps in zip(made, (0.1, 0.05), strict=True):
        assert x_adv.shape[-4:] == x.shape  # BAT gives two images for each
        assert not x_adv.requires_grad
        # noise, blur, contrast: operations that know no budget
        if method != "label_augmentation-la":
            # N-FGSM's noise of 2 eps and its step of eps are not cut to the ball
            reach = 3 if method == "n_fgsm" else 1
            assert (x_adv - x).abs().max() <= reach * eps + 1e-6
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert same(before, model.state_dict())


@each_method
@pytest.mark.parametrize("present", [(0, 1, 2), (0, 2), (1,)], ids=str)
def test_loss_gradient_and_state_are_finite_whichever_classes_a_batch_has(method, present, batch):
    keep = torch.isin(batch[1], torch.tensor(present))
    x, y = batch[0][keep], batch[1][keep]
    defense, model = ready(method)
    for _ in range(3):
        x_adv = defense.craft(model, x, y, generator=torch.Generator().manual_seed(1))
        loss, stats = defense.loss(model, x, x_adv, y)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        defense.after_step(model, x, y)
        assert loss.isfinite()
        assert all(g is None or g.isfinite().all() for g in gradients)
        assert stats.n.tolist() == [float((y == k).sum()) for k in range(3)]
        assert stats.robust.sum() <= len(y)
        defense.epoch_end(stats, stats)
        assert all(value.isfinite().all() for value in defense.state_dict().values())
    assert all(value.shape == (3,) for value in defense.class_values().values())
    probs = defense.class_probs()
    assert probs is None or probs.sum().item() == pytest.approx(1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """method -> its run of three epochs, trained once."""
    runs, folder = {}, tmp_path_factory.mktemp("undisturbed")

    def run(method):
        if method not in runs:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("CRAT_RUNS", str(folder))
                runs[method] = train(
                    config(method, train_per_class=14), progress="none", device="cpu"
                )
        return runs[method]

    return run


@each_method
def test_killed_in_mid_epoch_and_resumed_ends_the_same(method, undisturbed, tmp_path, monkeypatch):
    """The process dies in the second and again in the third epoch; weights, history and state
    are as undisturbed.
    """
    asked, whole = config(method, train_per_class=14), undisturbed(method)
    expected = (
        weights(whole),
        whole.history(),
        Trainer(whole, torch.device("cpu")).defense.state_dict(),
    )
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "killed"))
    config(method, train_per_class=14)  # which keeps the teacher here, too
    step, left = Step.__call__, {"steps": 0}

    def dies(self, *arguments):
        left["steps"] -= 1
        if left["steps"] < 0:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Step, "__call__", dies)
    for survived in (4, 5):  # three steps an epoch
        left["steps"] = survived
        with pytest.raises(KeyboardInterrupt):
            train(asked, progress="none", device="cpu")
    left["steps"] = 100
    run = train(asked, progress="none", device="cpu")
    assert same(expected[0], weights(run))
    assert run.history().equals(expected[1])
    state = Trainer(run, torch.device("cpu")).defense.state_dict()
    assert same(expected[2], state)


@each_method
def test_what_it_chooses_for_each_class_is_in_the_history(method, undisturbed):
    run = undisturbed(method)
    history = run.history().query("split == 'train'")
    values = Trainer(run, torch.device("cpu")).defense.class_values()
    assert set(values) <= set(history.columns)
    assert history[list(values)].notna().all(axis=None)


@each_method
@pytest.mark.parametrize("which", PRESETS)
def test_presets_are_settings(method, which):
    """Each builds; each entry of the table is a setting or tells something."""
    name, options = METHODS[method]
    asked = RunConfig().but(**preset(name, which, **options))
    assert Run.of(asked).config.train.defense == name
    own = DEFENSES[name].options()
    for row in DEFENSES[name].table(**options):
        assert row.why or {row.paper, row.released, row.crat} != {None}, row
        if row.name in own and row.crat is not None and not isinstance(row.crat, Words):
            assert row.why or row.crat == own[row.name], row


def test_options_are_checked_and_defaults_do_not_change_the_name():
    plain = TINY.but(defense="cfa")
    assert Run.of(TINY.but(defense="cfa", options={"lambda_2": 0.5})).name == Run.of(plain).name
    assert Run.of(TINY.but(defense="cfa", options={"lambda_2": 1})).name != Run.of(plain).name
    for options, line in (
        ({"lamda_1": 0.5}, "cfa has no option 'lamda_1'; it has: base, lambda_1"),
        ({"base": "mart"}, "base of cfa is one of pgd_at, trades, fat, not 'mart'"),
        ({"ccm": "no"}, "ccm of cfa is of type bool, not 'no'"),
        ({"lambda_1": "abc"}, "lambda_1 of cfa is of type float | None, not 'abc'"),
        ({"tau": True}, "tau of cfa is of type int, not True"),
    ):
        with pytest.raises(ConfigError, match=re.escape(line)):
            Run.of(TINY.but(defense="cfa", options=options))
    assert Run.of(TINY.but(defense="frl", beta=3.0)).config.train.options == (("beta", 3.0),)
    with pytest.raises(ConfigError, match="pgd_at has no option 'beta'"):
        Run.of(TINY.but(defense="pgd_at", beta=3.0))
    with pytest.raises(ConfigError, match=r"beta of trades is at least 0 and finite, not -1\.0"):
        Run.of(TINY.but(defense="trades", beta=-1))
    trades = TINY.but(defense="trades")
    assert (
        Run.of(trades.but(beta=3.0)).name
        == Run.of(trades.but(options={"beta": 3})).name
        != Run.of(trades).name
    )
    released = Run.of(trades.but(beta=3.0).but(**preset("trades", "released")))
    assert "beta" not in dict(released.config.train.options)
    with pytest.raises(ConfigError, match="unknown preset 'papr'; known: paper, released, crat"):
        preset("cfa", "papr")


def test_a_method_without_a_loss_says_so():
    with pytest.raises(TypeError, match="must define its loss"):
        Defense(None).loss(None, None, None, None)  # type: ignore[arg-type]
