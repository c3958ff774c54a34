"""The pages of the report: their content."""

import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from report_pages import (
    CLAIMING,
    EXECUTED,
    EXERCISES,
    PAGES,
    REPORTS,
    ROOT,
    STEMS,
    cells_of,
    papers_of,
    published_claims,
    report,
    rows,
    text,
    words,
)

from crat import cli
from crat.batch import frontpage, site
from crat.batch.pages import Page, SiteError, alt_text
from crat.batch.rows import VERDICTS
from crat.papers import PAPERS, common, leaderboard
from crat.training.run import Run

home = report  # the fixture
MATHJAX = ROOT / "docs" / "site" / "_static" / "mathjax"


def test_mathjax_is_the_published_file_with_its_licence():
    (digest,) = re.findall(r"\b[0-9a-f]{64}\b", text(MATHJAX / "NOTICE"))
    assert hashlib.sha256((MATHJAX / "tex-svg.js").read_bytes()).hexdigest() == digest
    assert "Apache License" in text(MATHJAX / "LICENSE")


def test_the_first_page_says_what_is_found_and_on_which_data(home):
    page = text(home / "index.html")
    places = [
        page.index(mark)
        for mark in (
            'src="_static/thumbs/first.png"',
            'class="report-setting"',
            '<table id="leaderboard"',
            '<table id="classes"',
            'class="report-notebooks"',
            'class="report-course"',
            '<div id="claims">',
        )
    ]
    assert places == sorted(places)
    found = re.search(r'<div class="report-found">(.*?)</div>', page, re.DOTALL)[1]
    *sentences, setting = map(words, re.findall(r"<p.*?</p>", found, re.DOTALL))
    assert len(sentences) == 3
    at = leaderboard.by_class("laptop").loc["AT"]
    assert f"{100 * at.max():.0f} of 100" in sentences[0]
    assert at.idxmin() in sentences[0]
    assert common.BASELINE in sentences[1]
    verdicts = [v for stem in CLAIMING for v in published_claims(home, stem).verdict]
    assert sentences[2].startswith(f"Of {len(verdicts)} claims")
    for verdict in VERDICTS:
        assert f"{verdicts.count(verdict)} {verdict}" in sentences[2]
    for said in ("Fashion-MNIST, 20,000 training", "small_cnn", "Profile: laptop", "0, 1, 2"):
        assert said in setting


def test_the_first_picture_is_of_the_profile_s_own_runs(tmp_path):
    pages = [Page(ROOT / "notebooks" / f"{STEMS[1]}.ipynb", tmp_path)]
    assert frontpage.key_picture(pages, "laptop")["figure"].name == "classes"
    assert frontpage.key_picture(pages, "quick") == frontpage.key_picture(pages, "laptop")
    assert frontpage.key_picture(pages, "paper") is None


def test_the_claims_are_those_of_the_notebooks(home):
    page = text(home / "index.html")
    papers = papers_of(page)
    assert list(papers) == [stem[:2] for stem in CLAIMING]
    for stem in CLAIMING:
        expected = published_claims(home, stem)
        paper = papers[stem[:2]]
        shown = cells_of(paper)
        assert len(shown) == len(expected)
        for cells, row in zip(shown, expected.itertuples(), strict=True):
            # who says it stands beside what is said, so that a row is understood anywhere
            assert cells[0].startswith(f"{row.paper}, {row.where}")
            assert row.statement in cells[0]
            assert row.verdict in cells
        bar = re.search(r'role="img" aria-label="([^"]*)"', paper)[1]
        counts = expected.verdict.value_counts()
        assert bar.startswith(f"{len(expected)} claims: ")
        assert all(f"{n} {verdict}" in bar for verdict, n in counts.items())
    ids = re.findall(r'<tr id="(claim-[\w-]+)"', page)
    assert len(set(ids)) == len(ids) == page.count('class="report-link"')


def test_no_column_has_the_same_value_in_all_rows(home):
    """But for the verdicts, which may well be."""
    page = text(home / "index.html")
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        for column in zip(*cells_of(table), strict=True):
            assert len(set(column)) > 1 or column[0] in VERDICTS, table[:300]


def test_the_leaderboard_is_that_of_notebook_06(home):
    """Computed apart, shown alike: every row that the notebook printed, number for number."""
    notebook = json.loads(text(ROOT / "notebooks" / "06_all_methods.ipynb"))
    outputs = [
        "".join(o.get("text", "")) for cell in notebook["cells"] for o in cell.get("outputs", ())
    ]
    (printed,) = [
        output
        for output in outputs
        if output.lstrip().startswith("method ")
        and "crossfit" in output
        and "cifar10: " not in output
    ]
    shown = rows(text(home / "index.html"), "leaderboard")
    assert len(shown) == len(printed.splitlines()) - 1
    for method, *cells in shown:
        name = re.escape(method.removesuffix(" the one to beat"))
        (line,) = re.findall(rf"^ *{name} +(\d.*)$", printed, re.MULTILINE)
        numbers = re.findall(r"\d+\.\d(?: ± \d+\.\d)?", line)
        del numbers[2], numbers[-1]  # of the union of two attacks, which the page leaves out
        assert cells == numbers
    assert [row[0] for row in shown if "the one to beat" in row[0]] == [
        f"{common.BASELINE} the one to beat"
    ]


def test_the_heat_map_has_each_class_and_legible_letters(home):
    page = text(home / "index.html")
    shown = rows(page, "classes")
    methods = list(leaderboard.leaderboard("laptop").method)
    table = leaderboard.by_class("laptop").loc[methods]
    assert [row[0] for row in shown] == methods
    for cells, accuracies in zip(shown, table.to_numpy(), strict=True):
        assert cells[1:] == [f"{100 * accuracy:.1f}" for accuracy in accuracies]
    heat = re.search(r'<table id="classes".*?</table>', page, re.DOTALL)[0]
    for dark, shade in re.findall(r'<td( class="dark")? style="--shade: ([\d.]+)"', heat):
        colour = [255 + (end - 255) * float(shade) for end in (0x00, 0x62, 0x9B)]
        assert contrast(colour, (255, 255, 255) if dark else (0, 0, 0)) >= 4.5


def test_cifar10_has_its_own_board(home):
    page = text(home / "index.html")
    board = leaderboard.leaderboard("laptop", dataset="cifar10")
    shown = rows(page, "leaderboard-cifar10")
    assert [row[0].removesuffix(" the one to beat") for row in shown] == list(board.method)
    assert [row[1].split()[0] for row in shown] == [f"{100 * clean:.1f}" for clean in board.clean]
    assert rows(page, "classes-cifar10")[0][0] == board.method[0]
    written = pd.read_csv(home / "leaderboard-cifar10.csv")
    assert list(written.method) == list(board.method)
    assert 'href="leaderboard-cifar10.tex" download' in page


def contrast(*colours):
    """The contrast ratio of two colours (WCAG 2)."""
    channels = [[c / 255 for c in colour] for colour in colours]
    linear = [
        [c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in of] for of in channels
    ]
    light = sorted(
        sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), of, strict=True)) for of in linear
    )
    return (light[1] + 0.05) / (light[0] + 0.05)


def test_the_tables_for_a_paper_are_those_of_the_command(home, tmp_path, own_store, capsys):
    names = [tmp_path / name for name in ("own.csv", "own.tex")]
    assert cli.main(["leaderboard", "--csv", f"{names[0]}", "--latex", f"{names[1]}"]) == 0
    for path in names:
        assert text(path) == text(home / f"leaderboard{path.suffix}")
    assert all(f'href="leaderboard{p.suffix}" download' in text(home / "index.html") for p in names)


def markdown(source):
    return {"cell_type": "markdown", "source": source}


@pytest.mark.parametrize(
    ("code", "below", "expected"),
    [
        (
            "fig = plots.confusion_heat(m, names)",
            "Tops are mistaken for *tops*, in [all](a.md) of the runs. More.",
            "The idea: Row-normalised confusion matrices (K, K) side by side in percent: true class"
            " down. Tops are mistaken for tops, in all of the runs.",
        ),
        (
            'ax.set(xlabel="seeds", ylabel="gain", title="grey: none")',
            "## Next\n\nThis sentence is one of the next section, not of the figure.",
            "The idea: gain over seeds · grey: none.",
        ),
        ("draw()", "Do attacks end in few classes, or in many of them?", "The idea: We draw."),
        ("draw()", "The forms.", "The idea: We draw."),
    ],
    ids=["function and reading", "axes", "a question", "a word"],
)
def test_the_rule_for_what_a_figure_shows(code, below, expected):
    cells = [markdown("## 1 The idea\n\nWords. We draw."), {"cell_type": "code", "source": code}]
    assert alt_text([*cells, markdown(below)], 1) == expected


@pytest.mark.parametrize("stem", STEMS)
def test_the_text_for_a_figure_says_what_it_shows(home, stem):
    page = text(home / "notebooks" / f"{stem}.html")
    images = re.findall(r"<img[^>]*>", page)
    alts = [unescape(re.search(r'alt="([^"]*)"', image)[1]) for image in images]
    names = {path.stem for path in (home.parent / stem).glob("*.*")}
    for alt in alts:
        assert alt not in names
        assert 20 <= len(alt) <= 300, alt
        assert " " in alt, alt
        assert not re.search(r"[_$`\\]|^Figure:|\.png|\.svg", alt), alt


def test_the_course_is_there_without_its_solutions(home):
    first = text(home / "index.html")
    for path in EXERCISES:
        assert f'href="notebooks/course/{path.stem}.html"' in first
        page = text(home / "notebooks" / "course" / f"{path.stem}.html")
        assert "NotImplementedError" in page
        assert "SOLUTION" not in page
    assert 'href="notebooks/course/README.html"' in first
    guide = text(home / "notebooks" / "course" / "README.html")
    assert all(f'href="{path.stem}.html"' in guide for path in EXERCISES)
    assert not list(home.rglob("solutions"))


@pytest.mark.parametrize("stem", CLAIMING)
def test_a_paper_has_its_report(home, stem):
    page = text(home / REPORTS[stem])
    expected = published_claims(home, stem)
    tables = re.findall(r'<table class="[^"]*report-results.*?</table>', page, re.DOTALL)
    shown = [row for table in tables for row in cells_of(table)]
    marks = {"supported": "[Re]", "reversed": "[not Re]", "no effect": "[not Re]"}
    results = sorted(f"{marks.get(v, '')} {v}".strip() for v in expected.verdict)
    assert sorted(row[0] for row in shown) == results
    first = text(home / "index.html")
    for address in re.findall(r'href="\.\./\.\./index\.html#(claim-[\w-]+)"', page):
        assert f'id="{address}"' in first
    headings = re.findall(r'<h2>([^<]*)<a class="headerlink"', page)
    assert headings[:5] == [
        "Scope",
        "What was reproduced, and what was not",
        "Minutes and hardware",
        "What was easy",
        "What was difficult",
    ]
    assert f"crat reproduce {stem[:2]} --profile laptop --recompute" in words(page)


def test_the_minutes_are_those_of_the_cards(home):
    plan = PAPERS["08"].plan("laptop")
    names = {Run.of(config).name for key, config in plan.items() if key != "live"}
    cards = [json.loads(text(*ROOT.glob(f"results/*/{name}/card.json"))) for name in names]
    page = words(text(home / REPORTS["08_long_tail"]))
    minutes = sum(card["train_seconds"] for card in cards) / 60
    assert f"{len(cards)} runs, {minutes:.0f} minutes of training on AMD EPYC, one thread" in page


def test_claims_of_another_data_set_have_its_runs(home):
    page = words(text(home / REPORTS["04_wei2023_cfa"]))
    command = "crat reproduce 04 --profile laptop --recompute"
    assert re.search(rf"CIFAR-10 # {command} ?: 6 runs, \d+ minutes of training", page)


def test_a_paper_without_its_scope_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(site.reproducibility, "WRITTEN", tmp_path)
    with pytest.raises(SiteError, match=r"04\.md is missing"):
        site.reproducibility.sections("04")
    (tmp_path / "04.md").write_text("# CFA\n\n## Scope\n\nsome\n")
    with pytest.raises(SiteError, match="no section What was easy, What was difficult"):
        site.reproducibility.sections("04")


def test_pages_are_whole_and_lead_nowhere_else(home):
    """Every local address exists, none is remote, and no page names the machine that built it."""
    assert all((home / page).exists() for page in PAGES)
    for path in (home / page for page in PAGES):
        page = text(path)
        fetched = re.findall(r"<(?!a\b)\w+[^>]*\b(?:href|src|data|srcset|poster)=\"([^\"]*)", page)
        assert not [address for address in fetched if re.match(r"\w+:|//", address)], path
        for address in re.findall(r'\b(?:href|src)="([^"#?]+)[^"]*"', page):
            assert (
                re.match("https?:|mailto:", address) or (path.parent / unescape(address)).exists()
            ), (path, address)
        for place in (ROOT, home, Path.home() / "x"):
            assert f"{place}".removesuffix("/x") + "/" not in page, path
    for path in [*home.glob("**/*.css"), *home.glob("_static/*.js")]:
        assert not re.search(r"url\([\"']?(https?:)?//|@import [\"'](https?:)?//", text(path)), path


def test_a_page_says_where_it_comes_from(home):
    executed, committed = (
        text(home / "notebooks" / f"{stem}.html") for stem in (EXECUTED, STEMS[0])
    )
    assert "this very run" in executed
    assert "Executed by <code>crat reproduce --profile laptop</code>" in executed
    assert "Shown as committed" in committed
    assert f'href="../../{EXECUTED}/broken_by.csv"' in executed


def test_what_was_there_survives_a_failed_build(home, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    (tmp_path / "00_broken.ipynb").write_text("{")
    with pytest.raises(SiteError, match="00_broken"):
        site.build("laptop", notebooks=tmp_path, figures=home.parents[1])
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_without_runs_the_first_page_says_so(monkeypatch):
    monkeypatch.setattr("crat.store.files.published_home", lambda: Path("nothing"))
    assert leaderboard.leaderboard("laptop").empty
    listed = ("notebooks", "course", "extras", "reports", "guides", "docs")
    nothing = {heading: [] for heading in listed}
    page = frontpage.first_page([], "laptop", site._boards("laptop"), nothing)
    assert "No claims yet" in page
    assert "No run of this profile is published yet" in page


def test_links_lead_to_pages_or_are_words(home):
    page = text(home / "notebooks" / f"{EXECUTED}.html")
    assert 'href="../docs/methods.html#cfa"' in page
    assert '<p><span class="xref myst">a</span> <a class' in page  # it has no page
    assert 'href="https://a.b/c.md"' in page


def test_errors_are_one_line(monkeypatch, tmp_path, capsys):
    assert cli.main(["site", "--profile", "slow"]) == 2
    with pytest.raises(SiteError, match="they come with a clone"):
        site.build("quick", notebooks=tmp_path, figures=tmp_path)
    monkeypatch.setattr(site.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["site"]) == 1
    assert capsys.readouterr().err.splitlines()[1] == (
        "crat: the report as pages needs sphinx, myst_nb, sphinx_book_theme: "
        "pip install 'crat[site]'"
    )


@pytest.mark.parametrize(
    ("there", "told"),
    [((), ""), (("chromium", "chromedriver"), " required"), (("apt-get",), "")],
    ids=["no apt-get", "a browser", "apt-get may not"],
)
def test_ci_asks_for_a_browser_and_goes_on_without(tmp_path, there, told):
    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\nexit 100\n")
    (tmp_path / "make").write_text("#!/bin/sh\necho $1 $CRAT_BROWSER\n[ $1 != $RED ]\n")
    for path in tmp_path.iterdir():
        path.chmod(0o755)
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    for red in ("none", "test", "test-old-cpu"):
        env = {"PATH": str(tmp_path), "RED": red}
        run = subprocess.run(
            ["/bin/sh", ROOT / ".ci" / "run"], capture_output=True, text=True, env=env
        )
        assert run.stdout.splitlines() == [f"test{told}", f"test-old-cpu{told}"]
        assert (run.returncode == 0) == (red == "none")
        assert ("will skip" in run.stderr) == (not told)
