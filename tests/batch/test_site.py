"""The pages of the report: their content, and their behaviour in headless Chromium offline."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from crat import cli
from crat.analysis import claims
from crat.batch import frontpage, site
from crat.batch.pages import SiteError
from crat.papers import PAPERS, leaderboard

ROOT = Path(__file__).parents[2]
STEMS = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
PAGES = ["index.html", *(f"notebooks/{stem}.html" for stem in STEMS)]
PAGES += [f"docs/{path.stem}.html" for path in sorted((ROOT / "docs").glob("*.md"))]
EXERCISES = sorted((ROOT / "notebooks" / "course").glob("[0-9]_*.ipynb"))
PAGES += [f"notebooks/course/{stem}.html" for stem in ("README", *(p.stem for p in EXERCISES))]
CLAIMING = [stem for stem in STEMS if hasattr(PAPERS[stem[:2]], "CLAIMS")]
PAGES += [f"papers/{stem}.html" for stem in CLAIMING]
EXECUTED = "02_attacks_side_by_side"
MATHJAX = ROOT / "docs" / "site" / "_static" / "mathjax"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The laptop report, with one notebook as if executed there; sphinx must not complain."""
    figures = tmp_path_factory.mktemp("figures")
    own = shutil.ignore_patterns("site", ".site-*", "*.ipynb", "success.json")  # what git ignores
    shutil.copytree(ROOT / "figures" / "laptop", figures / "laptop", ignore=own)
    executed = json.loads((ROOT / "notebooks" / f"{EXECUTED}.ipynb").read_text(encoding="utf-8"))
    executed["cells"][2]["source"] += "\n# this very run"
    links = "[a](../crat/run.py) [m](../docs/methods.md#cfa) [w](https://a.b/c.md)"
    executed["cells"].append(
        {"cell_type": "markdown", "id": "links", "metadata": {}, "source": links}
    )
    (figures / "laptop" / EXECUTED / f"{EXECUTED}.ipynb").write_text(json.dumps(executed))
    (figures / "laptop" / EXECUTED / "success.json").write_text("{}")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        index = site.build("laptop", figures=figures)
    assert said.getvalue() == ""
    assert index == figures / "laptop" / "site" / "index.html"
    return index.parent


def text(path):
    return path.read_text(encoding="utf-8")


def rows(page, table):
    """The cells of a table of the first page, tags taken off."""
    return cells_of(re.search(rf'<table id="{table}".*?</table>', page, re.DOTALL)[0])


def cells_of(table):
    """The cells of the body of a table, tags taken off."""
    body = re.search(r"<tbody>(.*?)</tbody>", table, re.DOTALL)[1]
    cells = [
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)
        for row in re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    ]
    return [[words(cell) for cell in row] for row in cells]


def words(html):
    """The words of a piece of a page."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def papers_of(page):
    """The folded papers of the first page, by number, as HTML."""
    found = re.findall(
        r'<details class="report-paper" id="claims-(\d\d)">(.*?)</details>', page, re.S
    )
    return dict(found)


def published_claims(home, stem):
    """The claims of a notebook, as they lie beside the report or in results/."""
    places = [home.parent / stem / "claims.json"]
    places += sorted(ROOT.glob(f"results/*/claims_{stem[:2]}.json"))
    return claims.read(next(path for path in places if path.exists()))


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
    assert f"{100 * at.max():.0f} of 100" in sentences[0] and at.idxmin() in sentences[0]
    assert leaderboard.BASELINE in sentences[1]
    verdicts = [v for stem in CLAIMING for v in published_claims(home, stem).verdict]
    assert sentences[2].startswith(f"Of {len(verdicts)} claims")
    for verdict in frontpage.VERDICTS:
        assert f"{verdicts.count(verdict)} {verdict}" in sentences[2]
    for said in ("Fashion-MNIST, 20,000 training", "small_cnn", "Profile: laptop", "0, 1, 2"):
        assert said in setting


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
    page = text(home / "index.html")
    for table in (*re.findall(r"<table.*?</table>", page, re.DOTALL),):
        columns = list(zip(*cells_of(table), strict=True))
        assert all(len(set(column)) > 1 for column in columns), table[:300]


def test_the_leaderboard_is_that_of_notebook_06(home):
    """Computed apart, shown alike: every row that the notebook printed, number for number."""
    notebook = json.loads(text(ROOT / "notebooks" / "06_all_methods.ipynb"))
    outputs = [
        "".join(o.get("text", "")) for cell in notebook["cells"] for o in cell.get("outputs", ())
    ]
    (printed,) = [
        output
        for output in outputs
        if output.lstrip().startswith("method ") and "crossfit" in output
    ]
    shown = rows(text(home / "index.html"), "leaderboard")
    assert len(shown) == len(printed.splitlines()) - 1
    for method, *cells in shown:
        name = re.escape(method.removesuffix(" the one to beat"))
        (line,) = re.findall(rf"^ *{name} +(\d.*)$", printed, re.MULTILINE)
        numbers = re.findall(r"\d+\.\d(?: ± \d+\.\d)?", line)
        del numbers[2]  # the union of two attacks, which the page leaves out
        assert cells == numbers
    assert [row[0] for row in shown if "the one to beat" in row[0]] == [
        f"{leaderboard.BASELINE} the one to beat"
    ]


def test_the_heat_map_has_each_class_and_legible_letters(home):
    page = text(home / "index.html")
    table = leaderboard.by_class("laptop")
    shown = rows(page, "classes")
    assert [row[0] for row in shown] == list(table.index)
    for cells, accuracies in zip(shown, table.to_numpy(), strict=True):
        assert cells[1:] == [f"{100 * accuracy:.1f}" for accuracy in accuracies]
    heat = re.search(r'<table id="classes".*?</table>', page, re.DOTALL)[0]
    for dark, shade in re.findall(r'<td( class="dark")? style="--shade: ([\d.]+)"', heat):
        colour = [255 + (end - 255) * float(shade) for end in (0x00, 0x62, 0x9B)]
        assert contrast(colour, (255, 255, 255) if dark else (0, 0, 0)) >= 4.5


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


@pytest.mark.parametrize("stem", STEMS)
def test_the_text_for_a_figure_says_what_it_shows(home, stem):
    page = text(home / "notebooks" / f"{stem}.html")
    images = re.findall(r"<img[^>]*>", page)
    alts = [unescape(re.search(r'alt="([^"]*)"', image)[1]) for image in images]
    names = {path.stem for path in (home.parent / stem).glob("*.*")}
    for alt in alts:
        assert alt not in names
        assert 20 <= len(alt) <= 300 and " " in alt, alt
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
    page = text(home / "papers" / f"{stem}.html")
    expected = published_claims(home, stem)
    tables = re.findall(r'<table class="[^"]*report-results.*?</table>', page, re.DOTALL)
    shown = [row for table in tables for row in cells_of(table)]
    marks = {"supported": "[Re]", "reversed": "[not Re]", "no effect": "[not Re]"}
    results = sorted(f"{marks.get(v, '')} {v}".strip() for v in expected.verdict)
    assert sorted(row[0] for row in shown) == results
    first = text(home / "index.html")
    for address in re.findall(r'href="\.\./index\.html#(claim-[\w-]+)"', page):
        assert f'id="{address}"' in first
    headings = [words(h) for h in re.findall(r"<h2>(.*?)<a", page, re.DOTALL)]
    assert headings[:5] == [
        "Scope",
        "What was reproduced, and what was not",
        "Minutes and hardware",
        "What was easy",
        "What was difficult",
    ]
    assert f"crat reproduce {stem[:2]} --profile laptop --recompute" in words(page)


def test_the_minutes_are_those_of_the_cards(home):
    cards = [json.loads(text(p)) for p in ROOT.glob("results/fashion_mnist_mini/*/card.json")]
    short = [c for c in cards if c["config"]["data"]["imbalance_ratio"] != 1.0]
    page = words(text(home / "papers" / "08_long_tail.html"))
    minutes = sum(card["train_seconds"] for card in short) / 60
    told = re.search(r"(\d+) minutes of training on (.*?)\. A claim", page)
    assert abs(int(told[1]) - minutes) <= 0.2 * minutes + 1  # nor are controls without a tail
    assert told[2] == "AMD EPYC, one thread"


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
    nothing = dict.fromkeys(("notebooks", "course", "extras", "reports", "guides", "docs"), [])
    page = frontpage.first_page([], "laptop", nothing)
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


# --- in the browser ---

FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic
    --no-first-run
    --disable-background-networking --disable-component-update --disable-sync
    --window-size=1300,900"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a network; skips where there is none, or fails where CI promises it."""
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        install = "Debian: apt-get install chromium-driver"
        reason = f"the report was not opened: no chromium and chromedriver ({install})"
        pytest.fail(reason) if os.environ.get("CRAT_BROWSER") == "required" else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for flag in [
        *FLAGS.split(),
        f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")  # the driver is spoken to directly
        opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        opened.get("data:,")  # what the browser's own first page asks for is not ours
        yield opened
        opened.quit()


def visit(browser, path, place=""):
    """Opens a page from the disk, with an empty log, and waits until its formulas are set."""
    browser.get("about:blank")  # an address that differs in its place only would open nothing
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri() + place)
    browser.set_script_timeout(600), browser.set_page_load_timeout(600)
    browser.execute_async_script(
        "const done = arguments[0];"
        "window.MathJax?.startup ? MathJax.startup.promise.then(() => done()) : done()"
    )


def requests(browser):
    """The addresses asked for by the last visit."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_and_shows_everything(home, browser, page):
    visit(browser, home / page)
    assert browser.title.endswith("crat: the report")
    asked = requests(browser)
    assert (home / page).as_uri() in asked
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    errors = [
        entry["message"]
        for entry in browser.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING")
    ]
    assert errors == []
    images = browser.execute_script(
        "return [...document.images].map(i => [i.src, i.complete && i.naturalWidth, i.alt])"
    )
    assert all(width > 0 and alt for _, width, alt in images), images
    formulas, unset, wrong = browser.execute_script(
        "const all = s => document.querySelectorAll(s).length;"
        "return [all('mjx-container'), all('.math:not(:has(mjx-container))'),"
        "  all('[data-mml-node=merror]')]"
    )
    assert (unset, wrong) == (0, 0)
    assert bool(formulas) == ('class="math' in text(home / page))
    if page in {f"notebooks/{stem}.html" for stem in STEMS}:
        assert len(images) == text(ROOT / "notebooks" / f"{Path(page).stem}.ipynb").count(
            '"image/png"'
        )


@pytest.mark.parametrize("table", ["#claims-04 table", "#leaderboard"])
def test_tables_sort_both_ways(home, browser, table):
    visit(browser, home / "index.html", "#claims-04")
    keys = """return [...document.querySelector(arguments[0]).tBodies[0].rows]
        .map((row) => row.cells[arguments[1]])
        .map((cell) => cell.dataset.key ?? cell.textContent.trim().toLowerCase())"""
    headings = browser.find_elements(By.CSS_SELECTOR, f"{table} thead th")
    for column, heading in enumerate(headings):
        orders = {}
        for _ in range(2):
            heading.find_element(By.TAG_NAME, "button").click()
            orders[heading.get_attribute("aria-sort")] = browser.execute_script(keys, table, column)
        up, down = orders["ascending"], orders["descending"]
        valued = [value for value in up if value != ""]
        # no value: last, both ways
        assert up[len(valued) :] == [""] * (len(up) - len(valued)) == down[len(valued) :]
        assert [v for v in down if v != ""] == sorted_like(valued)[::-1], heading.text
        assert valued == sorted_like(valued), heading.text
    assert len(headings) >= 4


def sorted_like(values):
    """Numbers by size, words by the alphabet."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return sorted(values)


def shown_claims(browser):
    """The rows of claims that are seen; the count beside the filter must agree."""
    every = browser.find_elements(By.CSS_SELECTOR, "#claims tbody tr")
    count = browser.find_element(By.CLASS_NAME, "report-count").text
    shown = [row for row in every if row.is_displayed()]
    assert count == f"{len(shown)} of {len(every)} claims"
    return shown


def test_the_claims_are_folded_and_filtered(home, browser):
    visit(browser, home / "index.html")
    every = browser.find_elements(By.CSS_SELECTOR, "#claims tbody tr")
    assert not any(row.is_displayed() for row in every)
    chip = browser.find_element(By.CSS_SELECTOR, '.report-tools button[data-verdict="supported"]')
    chip.click()
    supported = shown_claims(browser)
    assert 0 < len(supported) < len(every)
    assert {row.get_attribute("data-verdict") for row in supported} == {"supported"}
    assert browser.current_url.endswith("#verdict=supported")
    field = browser.find_element(By.CSS_SELECTOR, ".report-tools input")
    field.send_keys("Tian order")
    found = shown_claims(browser)
    assert 0 < len(found) < len(supported)
    assert all("Tian" in row.text and "order" in row.text for row in found)
    chip.click()
    field.clear()
    field.send_keys("no such claim")
    assert shown_claims(browser) == []
    field.clear()
    field.send_keys(" ")
    assert not any(row.is_displayed() for row in every)  # folded again


@pytest.mark.parametrize(
    ("address", "verdicts", "paper"),
    [
        ("#verdict=reversed", {"reversed"}, ""),
        ("#verdict=no+effect", {"no effect"}, ""),
        ("#verdict=undecided&paper=04", {"undecided"}, "04"),
        ("#paper=wei", {"supported", "reversed", "undecided", "not run"}, "Wei"),
    ],
)
def test_an_address_filters_the_claims(home, browser, address, verdicts, paper):
    visit(browser, home / "index.html", address)
    found = shown_claims(browser)
    assert {row.get_attribute("data-verdict") for row in found} == verdicts
    assert all(paper in row.get_attribute("data-paper") for row in found)


def test_an_address_of_a_claim_unfolds_it(home, browser):
    visit(browser, home / "index.html", "#claim-04-ema-at-worst")
    (row,) = browser.find_elements(By.CSS_SELECTOR, "tr:target")
    assert row.is_displayed()
    top = browser.execute_script("return arguments[0].getBoundingClientRect().top", row)
    assert 0 < top < 900


def test_code_is_folded_and_stays_so_on_other_pages(home, browser):
    page, other = (home / "notebooks" / f"{stem}.html" for stem in STEMS[:2])

    def code():
        cells = browser.find_elements(By.CSS_SELECTOR, ".cell > .cell_input")
        return [cell.is_displayed() for cell in cells]

    visit(browser, page)
    try:
        assert all(code()) and len(code()) > 5
        browser.find_element(By.CSS_SELECTOR, ".cell .report-fold").click()
        assert code()[0] is False and all(code()[1:])
        everything = browser.find_element(By.CLASS_NAME, "report-fold-all")
        assert everything.text == "hide code"
        everything.click()
        assert not any(code())
        assert browser.find_element(By.CSS_SELECTOR, ".cell_output").is_displayed()
        visit(browser, other)
        assert not any(code())
        browser.find_element(By.CLASS_NAME, "report-fold-all").click()
        assert all(code())
    finally:
        browser.execute_script("localStorage.clear()")


A4 = {"width": 718, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # inside its margins


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("docs/")])
def test_print_cuts_nothing(home, browser, page):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", A4)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        visit(browser, home / page)
        browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
        cut = """return [...document.querySelectorAll("article pre, article table, article img, "
            + "article mjx-container")]
            .filter((e) => e.getBoundingClientRect().width > 0)
            .filter((e) => e.scrollWidth > e.clientWidth + 1 && e.tagName === "PRE"
              || e.getBoundingClientRect().right > innerWidth + 1)
            .map((e) => [e.tagName, e.textContent.slice(0, 80)])"""
        assert browser.execute_script(cut) == []
        closed = "return document.querySelectorAll('article details:not([open])').length"
        assert browser.execute_script(closed) == 0
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_phone_sees_all_of_it(home, browser):
    """Nothing is wider than the screen; the claims are cards whose cells say what they are."""
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for page in PAGES:
            visit(browser, home / page)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, (
                page
            )
        visit(browser, home / "index.html", "#claims-01")
        assert not browser.find_element(By.CSS_SELECTOR, "#claims thead").is_displayed()
        assert browser.find_element(By.CSS_SELECTOR, "#claims tbody .verdict").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
