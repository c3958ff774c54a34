import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
from tiny_runs import shorten_autoattack

from crat import cli, store
from crat.cli.flags import KNOWN, asked_for, settings, words_for
from crat.config import ConfigError, DataConfig, ModelConfig, RunConfig, TrainConfig, profile
from crat.data import sources
from crat.training.named import find_run
from crat.training.run import Run

TINY = [
    "--train-per-class",
    "20",
    "--valid-per-class",
    "10",
    "--epochs",
    "1",
    "--steps",
    "1",
    "--progress",
    "none",
]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CRAT_DATA", str(tmp_path / "data"))
    return tmp_path / "runs"


@pytest.mark.parametrize("words", ["--help", "train --help", "reproduce --help"])
def test_help_is_light(words):
    """No heavy package and no other command is imported; test_packaging counts the modules."""
    code = """
import sys
from crat.cli import main
try: main(sys.argv[1:])
finally: print(*sys.modules)
"""
    command = [sys.executable, "-c", code, *words.split()]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith("usage: crat")
    imported = set(told.splitlines()[-1].split())
    assert not {"torch", "numpy", "pandas", "papermill"} & imported
    names = [name for name in cli.COMMANDS if f"crat.cli.{name}" in imported]
    assert names == words.replace("--help", "").split()


def test_help_lists_what_a_user_does(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    users, _, maintainers = capsys.readouterr().out.partition("for maintainers:")
    assert all(re.search(rf"^    {name}\b", users, re.MULTILINE) for name in cli.COMMANDS)
    for name in cli.FOR_MAINTAINERS:
        assert not re.search(rf"^    {name}\b", users, re.MULTILINE)
        assert f"crat {name} " in maintainers


def test_the_module_is_the_command():
    told = subprocess.run(
        [sys.executable, "-m", "crat", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"crat \d+\.\d+\.\d+\n", told.stdout)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ("tarin", 2, "did you mean train?; see crat --help"),
        ("data lst", 2, "did you mean list?; see crat data --help"),
        (
            "train --epoch 3",
            2,
            "unrecognized arguments: --epoch 3; did you mean --epochs?; see crat train --help",
        ),
        ("--versio", 2, "did you mean --version?"),
        ("train --epochs three", 2, "invalid int value: 'three'"),
        ("train --epochs 0", 2, "epochs must be at least 1, not 0"),
        ("train --head cosine --scale -1", 2, "scale must be at least 0, not -1.0"),
        (
            "train --head augmented --extra-outputs -3",
            2,
            "extra_outputs must be at least 0, not -3",
        ),
        ("train --eps -1", 2, "eps lies in [0, 1], such as 8/255, not '-1'"),
        ("train --eps 8", 2, "eps lies in [0, 1], such as 8/255, not '8'"),
        ("train --train-per-class -5", 2, "train_per_class must be at least 1, not -5"),
        ("train --eps 8/0", 2, "'8/0' is not a number: write 0.1 or 8/255"),
        ("train --defense trade", 2, "unknown defense 'trade'; known: standard, pgd_at, trades"),
        (
            "train --data cifar",
            2,
            "stl10, tiny_imagenet, imagenet; did you mean cifar10 or cifar100?",
        ),
        (
            "train --options lambda_1=1 lamda_2=1 --defense cfa",
            2,
            "cfa has no option 'lamda_2'; it has: base,",
        ),
        ("train --defense tradez", 2, "did you mean trades?"),
        ("train --model preact-resnet-18x", 2, "did you mean preact_resnet18?"),
        ("train --recipe fats", 2, "unknown recipe 'fats'; known: fast; did you mean fast?"),
        ("methods trade", 2, "did you mean trades?"),
        ("audit m:f --data cifar", 2, "did you mean cifar10 or cifar100?"),
        (
            "audit m:f --data mnist --attacks AutoAtack",
            2,
            "unknown attack 'AutoAtack'; known: FGSM, PGD-100,",
        ),
        ("site --profile laptopp", 2, "did you mean laptop?"),
        ("train --model vgg", 2, "unknown model 'vgg'; known: small_cnn"),
        ("train --profile slow", 2, "unknown profile 'slow'; known: quick, laptop, gpu, paper"),
        ("train --device tpu", 2, "device 'tpu' cannot be used here"),
        ("train --progress loud", 2, "unknown progress 'loud'; known: bar, line, none"),
        ("train --data cifar10", 1, "cifar10 is not in"),
        (
            "train --train-per-class 9000",
            1,
            "class 0 (T-shirt/top) of fashion_mnist_mini has 800 training images",
        ),
        ("train --drop-classes 11", 2, "11"),
        ("evaluate nothing", 2, "no run 'nothing': crat runs lists them"),
        ("data fetch fashion_mnist_mini", 1, "shipped in the package: nothing to fetch"),
        ("data fetch cifar11", 2, "unknown data set 'cifar11'"),
        ("data fetch cifar10 --mirror apt", 1, "no mirror 'apt' for cifar10; known:"),
        ("reproduce --profile slow", 2, "unknown profile 'slow'"),
    ],
)
def test_errors_are_one_line(words, code, line, runs, capsys):
    assert cli.main(words.split()) == code
    told = capsys.readouterr()
    assert told.err.startswith("crat: ")
    assert told.err.count("\n") == 1
    assert line in told.err
    assert not runs.exists() or not list(runs.iterdir())


@pytest.mark.parametrize("words", ["", "data"])
def test_a_command_that_needs_another_prints_its_help(words, capsys):
    assert cli.main(words.split()) == 2
    told = capsys.readouterr()
    assert told.out.startswith(f"usage: crat {words}".rstrip())
    assert told.err == ""


def test_an_interrupt_is_one_line_and_a_bug_keeps_its_traceback(monkeypatch, capsys):
    def raises(error):
        def listing():
            raise error

        return listing

    monkeypatch.setattr(sources, "listing", raises(KeyboardInterrupt()))
    assert cli.main(["data", "list"]) == 130
    assert capsys.readouterr().err == "crat: stopped; the same command resumes from what is done\n"
    monkeypatch.setattr(sources, "listing", raises(ValueError("not ours")))
    with pytest.raises(ValueError, match="not ours"):
        cli.main(["data", "list"])


def test_a_closed_pipe_is_no_success():
    """`crat reproduce | head -1` did not do all that it was asked for."""
    code = (
        "import sys\nfrom crat import cli\nfrom crat.cli import runs\n"
        "runs.run = lambda _: print('a' * 100)\nsys.exit(cli.main(['runs']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_full_disk_is_one_line(runs, capsys):
    runs.write_text("a file where the folder should be")
    assert cli.main(["train", *TINY]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_every_setting_has_a_flag():
    words = """--data cifar10 --train-per-class 7 --valid-per-class 8 --split first --split-seed 9
        --drop-classes 5 2 --imbalance-ratio 10 --augment crop --padding zero
        --model wrn_34_10 --width 2 --depth 16 --head augmented --extra-outputs 5 --scale 9
        --defense trades --eps 0.031 --step-size 2/255 --steps 3 --beta 1 --options a=0.5 b=word
        --epochs 2 --batch-size 4 --lr 0.2 --schedule cosine --momentum 0.8 --weight-decay 0
        --eps-warmup 3 --average ema_update --average-decay 0.9 --average-start 1
        --fawa-threshold 0.2 --awp 0.01 --awp-warmup 1
        --batch-norm eval --seed 4 --dtype float32 --trace-per-class 5 --start-from a-run
        --teacher another-run"""
    parsed = vars(cli.parser().parse_args(["train", *words.split()]))
    config = profile("laptop").but(**{name: parsed[name] for _, _, name in settings()})
    assert config.data == DataConfig("cifar10", 7, 8, "first", 9, (2, 5), 10.0, "crop", "zero")
    assert config.model == ModelConfig("wrn_34_10", 2, 16, "augmented", 9.0, 5)
    assert config.train == TrainConfig(
        "trades",
        "0.031",
        "2/255",
        3,
        (("a", 0.5), ("b", "word")),
        2,
        4,
        0.2,
        "cosine",
        0.8,
        0.0,
        3,
        "ema_update",
        0.9,
        1,
        0.2,
        0.01,
        1,
        "eval",
        4,
        "float32",
        5,
        "a-run",
        "another-run",
    )


@pytest.mark.parametrize("name", ["split", "padding", "augment", "batch_norm"])
def test_help_knows_the_allowed_names(name):
    """Every value that the help shows is accepted and nothing else is."""
    (part,) = (part for part, _, known in settings() if known == name)
    for value in KNOWN[name]:
        config = profile("quick").but(**{name: value})
        assert getattr(getattr(config, part), name) == value
    with pytest.raises(ConfigError) as refused:
        profile("quick").but(**{name: "another"})
    assert all(value in str(refused.value) for value in KNOWN[name])


def test_train_evaluate_publish(runs, tmp_path, monkeypatch, capsys):
    assert cli.main(["train", "--defense", "trades", "--beta", "3", "--device", "cpu", *TINY]) == 0
    config = profile("quick").but(
        defense="trades", beta=3.0, train_per_class=20, valid_per_class=10, epochs=1, steps=1
    )
    run = Run.of(config)
    told = capsys.readouterr().out
    assert run.name in told
    assert "epoch 1 of 1" in told
    history = run.history()
    shirt = history[(history.split == "valid") & (history["class"] == "Shirt")].iloc[0]
    assert re.search(
        rf"Shirt +10 +{100 * shirt.clean_acc:.1f} +{100 * shirt.robust_acc:.1f}\n", told
    )

    assert cli.main(["runs"]) == 0
    assert re.search(rf"{run.name} +trades, .* 1 of 1 +1: \d+\.\d % +here", capsys.readouterr().out)

    # later ones read what the first did
    for name in (run.name, str(run.folder), run.name.removeprefix("fashion_")):
        assert (
            cli.main(["evaluate", name, "--split", "valid", "--attacks", "FGSM", "--device", "cpu"])
            == 0
        )
        told = capsys.readouterr().out
        assert re.search(r"class +n +clean +FGSM\n", told)
        assert re.search(rf"Shirt +10 +{100 * shirt.clean_acc:.1f} \[[\d.]+, [\d.]+\]", told)
        assert len(list((run.folder / "eval").glob("*.npz"))) == 2
    assert cli.main(["evaluate", run.name, "--attacks", "PGB"]) == 2
    assert (
        "unknown attack 'PGB'; "
        "known: FGSM, PGD-20, CW-20, Hunter, Square, AA, AA-sampled; did you mean"
        in capsys.readouterr().err
    )

    shorten_autoattack(monkeypatch)
    words = ["--split", "valid", "--attacks", "AA-sampled", "--device", "cpu"]
    assert cli.main(["evaluate", run.name, *words]) == 0
    told = capsys.readouterr().out
    assert re.search(r"class +n +clean +PGD-20 +CW-20 +union\n", told)
    assert re.search(r"AA-sampled: AutoAttack on \d+ of 100 images, \d+ with the smallest", told)
    assert re.search(r"\nShirt +10 +\d+ +\d+\.\d \[\d+\.\d, \d+\.\d\] +\d+\.\d\n", told)
    assert cli.main(["evaluate", run.name, *words, "--attacks", "AA-sampled", "hunter"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"class +n +clean +Hunter +PGD-20 +CW-20 +union\n", told)
    assert "that PGD-20, CW-20 and Hunter left" in told

    monkeypatch.setattr(store, "results_home", lambda: tmp_path / "results")
    assert cli.main(["publish", run.name]) == 0
    published = tmp_path / "results" / "fashion_mnist_mini" / run.name
    assert capsys.readouterr().out == f"{published}\n"
    assert json.loads((published / "card.json").read_text())["finished"]


def test_a_run_is_found_by_a_part_of_its_name_if_only_one_has_it(runs, capsys):
    for seed in (80, 81):  # none such is published
        run = Run.of(profile("quick").but(seed=seed))
        store.write_json(run.folder / "card.json", {"config": run.config.as_dict()})
    assert find_run("mini-small_cnn-pgd_at-s81") == replace(run, folder=runs / run.name)
    assert cli.main(["evaluate", "mini-small_cnn-pgd_at-s8"]) == 2
    assert "2 runs have 'mini-small_cnn-pgd_at-s8' in their name" in capsys.readouterr().err
    store.write_json(run.folder / "card.json", {"config": {"data": {}}})
    assert cli.main(["evaluate", "mini-small_cnn-pgd_at-s81"]) == 1
    assert "was made by another version of crat" in capsys.readouterr().err
    assert cli.main(["runs"]) == 0
    assert re.search(rf"{run.name} +damaged", capsys.readouterr().out)


def test_a_recomputed_run_has_a_store_of_its_own(runs, capsys):
    assert cli.main(["train", "--recompute", "--seed", "70", "--device", "cpu", *TINY]) == 0
    (folder,) = (path.parent for path in runs.glob("recomputed/*/card.json"))
    asked = ["evaluate", folder.name, "--split", "valid", "--attacks", "FGSM", "--device", "cpu"]
    capsys.readouterr()
    assert cli.main(asked) == 2
    assert "no run" in capsys.readouterr().err
    assert cli.main([*asked, "--recompute"]) == 0
    assert re.search(r"class +n +clean +FGSM\n", capsys.readouterr().out)
    assert len(list((folder / "eval").glob("*.npz"))) == 2


def test_the_data_sets_are_listed(runs, capsys):
    assert cli.main(["data", "list"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"fashion_mnist_mini +shipped in the package +8000 +800 +2000 +200\n", told)
    assert re.search(r"cifar10 +not here", told)


def test_a_run_starts_from_the_weights_of_another(runs, tmp_path, capsys):
    assert cli.main(["train", "--defense", "standard", "--device", "cpu", *TINY]) == 0
    (folder,) = (card.parent for card in runs.glob("*/card.json"))
    for text in (folder.name, folder.name.removeprefix("fashion_"), str(folder)):
        assert cli.main(["train", "--start-from", text, "--device", "cpu", *TINY]) == 0
    (card,) = (store.read_json(path) for path in runs.glob("*pgd_at*/card.json"))
    assert card["start_from"]["run"] == card["config"]["train"]["start_from"] == folder.name
    assert f"--start-from {folder.name}" in words_for(RunConfig.from_dict(card["config"]))

    capsys.readouterr()
    assert cli.main(["train", "--start-from", "standart", *TINY]) == 2
    assert "crat: no run 'standart': crat runs lists them" in capsys.readouterr().err
    elsewhere = folder.rename(tmp_path / "elsewhere")
    assert cli.main(["train", "--start-from", str(elsewhere), *TINY]) == 2
    told = capsys.readouterr().err
    assert f"--start-from takes a run of the store, {runs}, which CRAT_RUNS names;" in told
    assert told.count("\n") == 1


def test_a_run_starts_from_a_published_network_by_a_part_of_its_name(runs):
    part = "pgd_at-s0-53db9ebe064f4488"
    tiny = [word for word in TINY if word not in ("--width", "4")]
    assert cli.main(["train", "--start-from", part, "--device", "cpu", *tiny]) == 0
    (card,) = (store.read_json(path) for path in runs.glob("*/card.json"))
    assert card["start_from"]["run"] == f"fashion_mnist-small_cnn-{part}"


@pytest.mark.parametrize(("again", "place"), [([], ""), (["--recompute"], "recomputed")])
def test_a_start_without_weights_is_a_line_with_the_command_that_trains_it(
    runs, capsys, again, place
):
    name = min(card.parent.name for card in store.results_home().glob("*/*/card.json"))
    assert cli.main(["train", *again, "--start-from", name, "--device", "cpu", *TINY]) == 1
    told = capsys.readouterr().err
    problem = f"crat: the weights of {name} are not in {runs / place}; train it first: "
    assert told.startswith(problem)
    words = shlex.split(told.removeprefix(problem))
    assert words[: 2 + len(again)] == ["crat", "train", *again]
    assert Run.of(asked_for(cli.parser().parse_args(words[1:]))).name == name
