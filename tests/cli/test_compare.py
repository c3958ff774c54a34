"""`crat compare`, `crat show`, `crat runs`: published runs beside each other and one by one."""

import numpy as np
import pandas as pd
import pytest

from crat import cli
from crat.cli.compare import compared
from crat.papers.evidence import Evidence
from crat.training.named import find_run, label

WAT, TRADES = "wat-s0-63a4f", "fashion_mnist-small_cnn-trades-s0-d00b"


@pytest.fixture
def crat(own_store, capsys):
    def run(*words):
        code = cli.main([*words])
        return code, *capsys.readouterr()

    return run


def test_two_methods_with_all_their_seeds(crat, tmp_path):
    files = {"--csv": tmp_path / "c.csv", "--latex": tmp_path / "c.tex", "--out": tmp_path / "out"}
    flags = [str(word) for pair in files.items() for word in pair]
    code, out, _ = crat("compare", WAT, "--base", TRADES, *flags)
    assert code == 0
    table = pd.read_csv(files["--csv"]).set_index("method")
    assert list(table.index) == ["trades + ema", "wat + ema"]
    # the same numbers as notebook 06's
    evidence = Evidence.of("06", "laptop")
    keys = evidence.planned("WAT+EMA", "TRADES+EMA")
    test = evidence.judge(evidence.battery, keys)
    found = test.compare("WAT+EMA", "TRADES+EMA", "worst")
    ours = table.loc["wat + ema"]
    assert ours.seeds == len(test.keys("WAT+EMA")) >= 3
    expected = [test.each("WAT+EMA", "worst").mean(), found.value, found.low, found.high]
    names = ["worst", "worst_difference", "worst_low", "worst_high"]
    assert np.allclose(ours[names].astype(float), expected)
    assert table.worst_difference.isna().tolist() == [True, False]
    tex = files["--latex"].read_text()
    assert rf"\textbf{{{100 * ours.worst:.1f} $\pm$" in tex
    assert tex.count(r"\\") == 3
    drawn = {path.name for path in files["--out"].iterdir()}
    assert {"frontier.png", "frontier.csv", "classes.pdf", "classes.csv"} <= drawn
    assert f"{100 * found.value:+.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]" in out


def test_the_named_runs_alone(crat):
    code, out, _ = crat("compare", TRADES, WAT, "--alone", "--images", "500")
    assert code == 0
    assert "500 test images, PGD-20; seeds: trades + ema 1, wat + ema 1" in out
    assert "±" not in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([WAT], "all runs are wat + ema: a comparison needs two methods"),
        ([WAT, "universal_at-s0-17c"], "are on fashion_mnist and fashion_mnist_mini: compare"),
        ([WAT, "nothing"], "no run 'nothing': crat runs lists them"),
    ],
)
def test_what_cannot_be_compared_is_one_line(crat, words, line):
    code, _, error = crat("compare", *words)
    assert code == 2
    assert line in error
    assert error.count("\n") == 1


def test_a_comparison_of_one_seed_has_no_verdict_on_a_method(own_store):
    asked = {f"{label(find_run(name).config)}-s0": find_run(name).config for name in (WAT, TRADES)}
    from crat.config import Selection
    from crat.store import Store

    evidence = Evidence("compare", "laptop", asked, Selection(), Store.usual(), {})
    table = compared(evidence.judge(evidence.battery, first=300), "trades + ema")
    assert table.worst_sd.isna().all()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fashion_mnist-small_cnn-cfa-s0-82fec", "cfa on trades"),
        ("fashion_mnist-small_cnn-cfa-s0-4034f", "cfa"),
        ("fashion_mnist-small_cnn-trades-s0-d00b", "trades + ema"),
        ("codat-s0-a0ac7", "codat + ema, rho 1.0"),
        ("pgd_at-s0-2eff8", "pgd_at, drop_classes (0,)"),
        ("cifar10-preact_resnet18-cfa", "cfa + ema, average_decay 0.995"),
    ],
)
def test_labels_tell_methods_apart(name, words):
    assert label(find_run(name).config) == words


def test_runs_are_filtered_by_words(crat):
    code, out, _ = crat("runs", "fashion_mnist-", "cfa on trades")
    lines = out.splitlines()[2:]
    assert code == 0
    assert len(lines) >= 3
    assert all("-cfa-s" in line and "cfa on trades" in line for line in lines)
    assert "no run of" in crat("runs", "no such method")[1]


def test_one_run_is_shown(crat, tmp_path):
    figure = tmp_path / "history.png"
    code, out, _ = crat("show", WAT, "--figure", str(figure))
    history = find_run(WAT).history()
    assert code == 0
    assert out.startswith("fashion_mnist-small_cnn-wat-s0-63a4f417f0925dcd: wat + ema\n")
    assert "--defense wat" in out
    (shirt,) = [line for line in out.splitlines() if line.startswith("Shirt")]
    best = find_run(WAT).card()["best"]["epoch"]
    rows = history[(history.split == "valid") & (history["class"] == "Shirt")].set_index("epoch")
    assert f"{100 * rows.robust_acc[best]:.1f}" in shirt
    assert len(shirt.split("  ")[-1].strip()) <= len(rows)
    assert figure.stat().st_size > 5000
