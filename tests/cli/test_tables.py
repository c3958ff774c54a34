"""--csv and --latex of four commands, and files that cannot be written."""

import re

import numpy as np
import pandas as pd
import pytest

from crat import cli
from crat.analysis.two_phase import Design
from crat.cli.evaluate import corruption_files
from crat.outcomes.cache import Outcomes
from crat.outcomes.sampled import Sampled
from crat.outcomes.tables import class_latex, class_summary
from crat.papers.common import BASELINE
from crat.papers.leaderboard import leaderboard
from crat.text import Bold, aligned, booktabs

WAT = "wat-s0-63a4f"
ODD = ("a_b & c%", "#{1}", "[x]", "*", "a\\b", "~$^|<>", "two\nlines", "plain")


@pytest.fixture
def crat(own_store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = cli.main([*words])
        return code, *capsys.readouterr()

    return run


def rows_of(tex):
    """The cells of a table for a paper, after a check of all that LaTeX would stumble over."""
    assert tex.count("{") - tex.count(r"\{") == tex.count("}") - tex.count(r"\}")
    for name in ("table", "tabular"):
        assert tex.count(rf"\begin{{{name}}}") == tex.count(rf"\end{{{name}}}") == 1
    lines = tex.splitlines()
    assert lines[0] == r"% needs \usepackage{booktabs}"
    assert next(line for line in lines if line.endswith("rule")) == r"\toprule"
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == 1
    columns = len(re.search(r"\\begin{tabular}{(l r*)}", tex.replace("{lr", "{l r"))[1]) - 1
    found = [line.removesuffix(r" \\") for line in lines if line.endswith(r"\\")]
    for row in found:
        # what stands bare is LaTeX's own: all else has its backslash
        assert not re.search(r"(?<!\\)[%#_^~]|[<>|]", row), row
        assert not row.startswith(("[", "*")), row
    cells = [re.split(r"(?<!\\) & ", row) for row in found]
    assert {len(row) for row in cells} == {columns}
    return cells


def outcomes(names, n=20):
    """Each class has n images; the first k of class k are wrong under attack."""
    y = np.repeat(np.arange(len(names)), n)
    place = np.tile(np.arange(n), len(names))
    attacked = np.where(place < y, (y + 1) % len(names), y)
    logits = {name: np.eye(len(names))[y] for name in ("clean", "PGD-20")}
    predictions = {"clean": y, "PGD-20": attacked}
    right_by = {"clean": np.ones(len(y)), "PGD-20": np.where(attacked == y, 1.0, -1.0)}
    return Outcomes("test", tuple(names), y, logits, predictions, {}, right_by)


def test_odd_names_of_classes_are_printed_as_they_are():
    cells = rows_of(class_latex(outcomes(ODD), "50 % of a_b & c"))
    assert [row[0] for row in cells[1:9]] == [
        r"a\_b \& c\%",
        r"\#\{1\}",
        "{}[x]",
        "{}*",
        r"a\textbackslash{}b",
        r"\textasciitilde{}\$\textasciicircum{}\textbar{}\textless{}\textgreater{}",
        "two lines",
        "plain",
    ]
    assert cells[0] == ["class", "n", "clean", "PGD-20"]


def test_the_worst_class_of_each_column_is_bold_and_has_its_interval():
    found = outcomes(("a", "b", "c"))
    tex = class_latex(found, "net on photos, Linf 8/255")
    assert r"\caption{net on photos, Linf 8/255: right in percent, with Wilson's 95 \%" in tex
    cells = rows_of(tex)
    assert cells[3][3] == r"\textbf{90.0 [69.9, 97.2]}"
    assert sum("textbf" in row[3] for row in cells) == 1
    assert not any("textbf" in row[2] for row in cells)  # all are right when clean
    assert cells[-1][:1] == ["worst class"]
    assert cells[-1][3] == "90.0"
    table = class_summary(found).set_index(["attack", "class"])
    assert table.loc[("PGD-20", "c"), "robust_acc"] == 0.9
    assert (100 * table.loc[("PGD-20", "c"), ["low", "high"]]).round(1).tolist() == [69.9, 97.2]


def test_classes_that_are_equally_bad_are_all_marked():
    found = outcomes(("a", "b", "c"))
    tied = np.where((found.y == 1) & (np.arange(60) < 22), 0, found.predictions["PGD-20"])
    found.predictions["PGD-20"] = tied
    cells = rows_of(class_latex(found, "net"))
    assert ["textbf" in row[3] for row in cells[1:4]] == [False, True, True]


def test_autoattack_on_a_sample_is_a_column_and_rows():
    found = outcomes(("a", "b"), n=200)

    def attack(places):
        y = found.y[places]
        predictions = {"clean": y, "AA-sampled": np.where(y == 1, 0, y)}
        parts = {"AA-sampled": np.where(y == 1, "apgd-t", "")}
        return Outcomes("test", ("a", "b"), y, {}, predictions, parts)

    sampled = Sampled.of(found, ("PGD-20",), Design(), attack)
    table = class_summary(found, sampled)
    last = table[table.attack == "AA-sampled"]
    assert last["class"].tolist() == ["a", "b"]
    assert np.allclose(last.robust_acc, sampled.table.robust_acc)
    assert last.clean_acc.tolist() == [1, 1]
    tex = class_latex(found, "net", sampled)
    cells = rows_of(tex)
    assert cells[0][-1] == "AA-sampled"
    assert cells[2][-1].startswith(r"\textbf{0.0 [")
    assert f"estimates from {len(sampled.sample.places)} attacked images" in tex


def test_corruptions_are_a_table_of_severities():
    y = np.arange(20) % 2
    wrong = {"fog-1": y, "fog-2": np.where(np.arange(20) < 5, 1 - y, y), "snow-1": y}
    found = Outcomes("test", ("a", "b"), y, {}, {"clean": y, **wrong}, {})
    table, tex = corruption_files(found, "pgd_at, fashion_mnist")
    cells = rows_of(tex)
    assert cells[0] == ["corruption", "severity 0", "severity 1", "severity 2"]
    assert ["fog", "", "0.0", "25.0"] in cells
    assert ["snow", "", "0.0", ""] in cells
    assert table.set_index(["corruption", "severity"]).error[("fog", 2)] == 0.25


def test_a_star_in_a_name_is_no_mark():
    rows = [["A*", "1.0", Bold("2.0")], ["B", "-1.5 [-2.0, 0.5]", "1.0"]]
    assert aligned(("m", "x", "y"), rows).splitlines()[1].split() == ["A*", "1.0", "2.0*"]
    cells = rows_of(booktabs(("m", "x", "y"), [rows]))
    assert cells[1] == ["A*", "1.0", r"\textbf{2.0}"]
    assert cells[2] == ["B", "$-$1.5 [$-$2.0, 0.5]", "1.0"]


def test_evaluate_writes_both_tables(crat):
    code, out, _ = crat("evaluate", WAT, "--csv", "new/a.csv", "--latex", "new/a.tex")
    assert code == 0
    assert out.endswith("\nnew/a.csv\n\nnew/a.tex\n")
    table = pd.read_csv("new/a.csv")
    attacked = table[table.attack == "PGD-20"]
    with open("new/a.tex", encoding="utf-8") as file:
        cells = rows_of(file.read())
    column = cells[0].index("PGD-20")
    worst = attacked[attacked.robust_acc == attacked.robust_acc.min()]
    bold = [row for row in cells[1:] if "textbf" in row[column]]
    assert [row[0] for row in bold] == worst["class"].tolist() == ["Coat", "Shirt"]  # a tie
    low, high = 100 * worst.low.min(), 100 * worst.high.min()
    value = 100 * worst.robust_acc.min()
    assert {row[column] for row in bold} == {rf"\textbf{{{value:.1f} [{low:.1f}, {high:.1f}]}}"}


def test_the_leaderboard_is_printed_and_written(crat):
    code, out, _ = crat("leaderboard", "--csv", "b.csv", "--latex", "b.tex")
    assert code == 0
    assert "10000 test images under PGD-20: percent, mean over seeds ± sd" in out
    expected = leaderboard("laptop")
    table = pd.read_csv("b.csv")
    assert table.method.tolist() == expected.method.tolist()
    for name in ("clean", "average", "average_sd", "worst", "worst_sd", "tail", "crossfit"):
        assert np.allclose(table[name], expected[name]), name
    others = table[table.method != BASELINE]
    assert (others.worst_low < others.worst_difference).all()
    assert table[table.method == BASELINE].worst_difference.isna().all()
    base = table.set_index("method").worst[BASELINE]
    assert np.allclose(others.worst_difference, others.worst - base)
    with open("b.tex", encoding="utf-8") as file:
        cells = rows_of(file.read())
    assert len(cells) == 1 + len(table)
    for column, name in ((3, "average"), (5, "worst")):
        (best,) = [row[0] for row in cells if "textbf" in row[column]]
        assert best == table.method[table[name].idxmax()]


def test_the_leaderboard_of_another_data_set(crat):
    code, out, _ = crat("leaderboard", "--data", "CIFAR-10", "--csv", "b.csv")
    assert code == 0
    assert "cifar10, 10000 test images under PGD-20" in out
    table, expected = pd.read_csv("b.csv"), leaderboard("laptop", dataset="cifar10")
    assert table.method.tolist() == expected.method.tolist()
    for name in ("clean", "average", "worst", "tail"):
        assert np.allclose(table[name], expected[name]), name
    code, _, error = crat("leaderboard", "--data", "mnist")
    assert (code, error.count("\n")) == (2, 1)
    assert "leaderboard's data set" in error


def test_a_leaderboard_without_runs_is_one_line(crat):
    code, _, error = crat("leaderboard", "--profile", "paper")
    assert (code, error.count("\n")) == (1, 1)
    assert "no run of the profile paper is published: crat runs lists those" in error
    assert crat("leaderboard", "--profile", "papers")[0] == 2


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "nothing", "--csv"],
        ["audit", "nothing", "--latex"],
        ["compare", "nothing", "--csv"],
        ["leaderboard", "--latex"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_that_cannot_be_written_is_told_before_any_work(crat, tmp_path, words):
    (tmp_path / "file").write_text("mine")
    for place, line in {
        str(tmp_path): "is a folder: name a file",
        "": "is a folder: name a file",
        "file/table.txt": f"{tmp_path / 'file'} is a file, no folder",
    }.items():
        code, _, error = crat(*words, place)
        assert (code, error.count("\n")) == (2, 1)
        assert line in error
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", [["audit", "net.py:Net"], ["compare", "a", "b"]])
def test_a_report_goes_into_no_file(crat, tmp_path, command):
    (tmp_path / "file").write_text("mine")
    code, _, error = crat(*command, "--out", "file")
    assert (code, error.count("\n")) == (2, 1)
    assert "is a file, no folder" in error
