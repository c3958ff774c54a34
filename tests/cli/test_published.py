"""`crat evaluate` of published runs, where neither the images nor any network are here."""

import re

import pytest

from crat import cli, store
from crat.cli import published
from crat.cli.flags import words_for
from crat.config import RunConfig
from crat.outcomes.batteries import standard_battery
from crat.outcomes.evaluation import at_hand, evaluate
from crat.training.run import WEIGHTS, Run, card_config


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CRAT_DATA", str(tmp_path / "data"))
    return tmp_path


def run_with(n_outcomes, network=False, data="fashion_mnist"):
    """The published run with the most (-1) or the fewest (0) outcomes.

    network: of those whose network is published, too, or of the others.
    """
    cards = store.results_home().glob(f"{data}/*/card.json")
    by_size = {
        (len(list(card.parent.glob("eval/*"))), card.parent.name): card.parent
        for card in cards
        if (card.parent / WEIGHTS).exists() == network and (card.parent / "eval").exists()
    }
    folders = [folder for _, folder in sorted(by_size.items())]
    folder = folders[n_outcomes]
    return Run(
        card_config(store.read_json(folder / "card.json"), folder),
        store.home() / folder.name,
        folder,
    )


@pytest.mark.parametrize("n_outcomes", [0, -1])
def test_what_is_published_is_shown_and_the_rest_is_named(n_outcomes, capsys):
    run = run_with(n_outcomes)
    names = [name for name in at_hand(run, standard_battery("fashion_mnist")) if name != "clean"]
    assert "PGD-20" in names
    assert cli.main(["evaluate", run.name]) == 0
    told = capsys.readouterr().out
    assert re.search(r"class +n +clean +" + " +".join(names) + r"( +union)?\n", told)
    found = evaluate(run, {"PGD-20": standard_battery("fashion_mnist")["PGD-20"]})
    assert re.search(
        rf"{found.classes[0]} +1000 +{100 * found.robust('clean')[found.y == 0].mean():.1f} \[",
        told,
    )
    lacking = [name for name in standard_battery("fashion_mnist") if name not in names]
    if lacking:
        assert (
            f"\nnot published: {', '.join(lacking)}, nor the network that would be attacked; "
            "to have them:\n" in told
        )
        assert "\n  crat data fetch fashion_mnist\n  crat train --recompute --defense " in told
        assert f"\n  crat evaluate {run.name} --recompute --split test " in told
        assert f" --attacks {' '.join(lacking)}\n" in told
    assert not store.home().exists()


def test_what_is_asked_and_not_published_is_a_line(capsys):
    run = run_with(0)
    assert cli.main(["evaluate", run.name, "--attacks", "Square"]) == 1
    told = capsys.readouterr()
    assert told.err == (
        f"crat: Square of {run.name}: not published as asked, nor is its network; "
        f"`crat evaluate {run.name}` shows what is, and how to make the rest\n"
    )
    # a part of it is shown
    assert cli.main(["evaluate", run.name, "--attacks", "pgd", "Square"]) == 1
    told = capsys.readouterr()
    assert re.search(r"class +n +clean +PGD-20\n", told.out)
    assert "not published: Square, nor" in told.out
    assert cli.main(["evaluate", run.name, "--corruptions"]) == 1
    assert (
        "gaussian_noise-1, gaussian_noise-2, gaussian_noise-3 and 67 more of"
        in capsys.readouterr().err
    )


def test_a_sample_that_is_not_published_is_named_below_phase_one(capsys):
    run = run_with(-1)
    assert cli.main(["evaluate", run.name, "--attacks", "AA-sampled"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"class +n +clean +PGD-20 +CW-20 +union\n", told)
    assert "not published: AA-sampled, nor" in told
    assert " --attacks AA-sampled\n" in told
    assert "standard error" not in told


def test_other_images_and_precisions_are_listed():
    run = run_with(-1)
    lines = published.others(run)
    assert any(re.match(r"test images, best epoch: .*PGD-20", line) for line in lines)
    assert all(re.match(r"(test|valid) images, (best|last) epoch", line) for line in lines)
    assert len(lines) > 1


def test_a_run_that_is_neither_published_nor_finished_keeps_its_error(capsys):
    run = Run.of(RunConfig().but(seed=70))
    store.write_json(run.folder / "card.json", {"config": run.config.as_dict(), "finished": False})
    assert cli.main(["evaluate", run.name]) == 1
    assert f"{run.name} is not trained here: `crat train`" in capsys.readouterr().err


def test_a_run_that_starts_from_another_has_the_commands_of_both():
    start = run_with(0)
    folder = store.home() / "recomputed"
    tuned = Run.of(start.config.but(seed=70, start_from=start.name))
    made = Run(tuned.config, folder / tuned.name)
    first, second = published._trainings(made)
    assert first == words_for(start.config)
    assert second.endswith(f"--start-from {start.name}")
    assert second == words_for(tuned.config)
    lost = Run.of(start.config.but(start_from="nowhere"))
    assert published._trainings(lost) == [words_for(lost.config)]


def test_beside_a_published_network_only_the_images_are_missing(capsys):
    run = run_with(0, network=True)
    assert cli.main(["evaluate", run.name, "--attacks", "PGD-20", "Square"]) == 1
    told = capsys.readouterr().out
    assert "not published: Square; to have them:\n  crat data fetch fashion_mnist\n" in told
    assert "crat train" not in told
    assert f"\n  crat evaluate {run.name} --split test " in told
    assert "--recompute" not in told
    assert cli.main(["evaluate", run.name, "--attacks", "Square"]) == 1
    assert "crat data fetch fashion_mnist" in capsys.readouterr().err
    assert cli.main(["runs"]) == 0
    listed = capsys.readouterr().out
    assert re.search(rf"{run.name} .* results/, its network too\n", listed)
    assert re.search(rf"{run_with(0).name} .* results/\n", listed)
