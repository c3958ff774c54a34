"""The tables of the methods, the README's own method, and recipes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from crat import cli
from crat.cli import flags, recipes
from crat.config import ConfigError, ModelConfig, TrainConfig, profile
from crat.defenses import DEFENSES, Task, make_defense
from crat.defenses import tables as methods
from crat.nets import models
from crat.training.trainer import train

ROOT = Path(__file__).resolve().parents[2]
RECIPE_SETS = ("defense", "options", "lr", "average", "average_decay", "eps_warmup")


def test_the_document_is_what_the_presets_say():
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == methods.markdown()


def test_every_method_has_its_table_and_its_source():
    text = methods.markdown()
    for name, method in DEFENSES.items():
        assert f"\n## `{name}`\n" in text
        assert method.paper or name == "standard", name
        if method.code:
            assert re.search(r"\w+/[\w-]+@[0-9a-f]{40}", method.code), name
    assert "| lambda_1 | 0.3 | 0.5 | the paper's |" in methods.markdown(["cfa"])


def test_the_page_tells_how_a_step_is_done_on_a_gpu():
    said = methods.markdown(["ham"])
    assert "recorded, BatchNorm folded for the attack with compacts=False, or eager with" in said
    assert "- Step on a GPU: recorded, or" not in methods.markdown(["pgd_at"])
    assert "under batch_norm=moving" in methods.markdown(["fat"])


def test_what_is_not_here_is_told_behind_all_methods():
    """Five cells each: work, idea, numbers, code, and where it was read."""
    page = methods.markdown()
    _, _, table = page.partition("\n## Methods that are not here\n")
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" (")[0] for row in rows] == ["| TRIX", "| RL-FAT", "| FairAT"]
    assert all(len(cells) == 5 and all(cells) for cells in methods.NOT_HERE)
    assert "not here" not in methods.markdown(["cfa"])


def test_the_command_lists_and_explains(capsys):
    assert cli.main(["methods"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in DEFENSES)
    assert cli.main(["methods", "cfa"]) == 0
    assert "released code" in capsys.readouterr().out
    assert cli.main(["methods", "cfb"]) == 2
    assert "unknown defense 'cfb'" in capsys.readouterr().err


def asked(words):
    return flags.asked_for(cli.parser().parse_args(["train", *words.split()]))


def test_flags_choose_options_and_presets():
    train = asked("--defense cfa --options ccm=false base=trades lambda_1=1").train
    assert train.options == (("base", "trades"), ("ccm", False), ("lambda_1", 1))
    assert train.average == "fawa"  # the crat preset's
    assert asked("--preset released").train.epochs == 200  # of the profile's own method
    assert asked("--defense mart --preset released --beta 3").train.options == (("beta", 3.0),)
    assert asked("--defense frl --beta 6").train.options == (("beta", 6.0),)
    assert asked("--recipe fast --seed 2").but(seed=0) == recipes.recipe("fast")
    assert asked("--recipe fast --options delta=0.2").train.options == (
        ("clean_share", 0.0),
        ("delta", 0.2),
    )
    assert asked("--recipe fast --defense cfa").train.options == ()  # another method, its own
    with pytest.raises(ConfigError, match="unknown preset 'papr'"):
        asked("--preset papr")


def test_the_readmes_own_method_trains(own_store, monkeypatch):
    """The block of the README is run as it stands."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(# A method of your own.*?)```", text, re.DOTALL)
    assert block.count("\n") <= 30
    monkeypatch.setitem(DEFENSES, "lift", None)  # so that the method is gone again behind this test
    scope: dict = {}
    small = dict(train_per_class=26, valid_per_class=5, epochs=2, steps=2, width=4, dtype="float32")
    with monkeypatch.context() as patched:
        patched.setattr(
            "crat.training.train", lambda config, **k: scope.setdefault("asked", config)
        )
        exec(block, scope)
    run = train(scope["asked"].but(**small), progress="none", device="cpu")
    assert run.history().loss.notna().all()
    assert {"weight"} <= set(run.history().columns)


def test_the_fast_recipe_is_a_run_of_cifar10():
    config = recipes.recipe("fast")
    train = config.train
    assert (config.data.name, config.model.name, train.average) == (
        "cifar10",
        "preact_resnet18",
        "ema_update",
    )
    assert (train.epochs, train.batch_size, train.schedule, train.dtype) == (
        30,
        128,
        "one_cycle",
        "bfloat16",
    )
    updates = train.epochs * (50_000 - 10 * config.data.valid_per_class) // train.batch_size
    assert 10 / (1 - train.average_decay) < updates  # the average forgets where it began
    assert config.resolved().train.eps == "8/255"
    # what it shares with the gpu profile: data, network, epochs, batches, precision
    changed = {f: getattr(TrainConfig(), f) for f in RECIPE_SETS}
    assert config.but(**changed) == profile("gpu")
    with pytest.raises(ConfigError, match="unknown recipe 'faster'; known: fast"):
        recipes.recipe("faster")


def test_the_fast_recipe_attacks_as_at_does_and_trains_on_smoothed_labels():
    settings = recipes.recipe("fast").but(steps=2).resolved().train
    plain = replace(settings, defense="pgd_at", options=())
    task = Task(torch.full((10,), 5), (3, 32, 32), settings.epochs)
    smooth, at = (make_defense(train, task) for train in (settings, plain))
    network = models.build(ModelConfig("small_cnn", width=4), 10, (3, 32, 32)).train()
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6)
    moved, as_at = (
        method.craft(network, x, y, generator=torch.Generator().manual_seed(1))
        for method in (smooth, at)
    )
    assert torch.equal(moved, as_at)
    assert not torch.equal(moved, x)
    losses, _ = smooth.loss(network, x, moved, y)
    expected = F.cross_entropy(network(moved), y, label_smoothing=0.1)
    torch.testing.assert_close(losses, expected)
