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
from crat.batch import site
from crat.papers import leaderboard
from crat.papers.common import MAIN_SEEDS

ROOT = Path(__file__).parents[2]
STEMS = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
PAGES = ["index.html", *(f"notebooks/{stem}.html" for stem in STEMS)]
PAGES += [f"docs/{path.stem}.html" for path in sorted((ROOT / "docs").glob("*.md"))]
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
    body = re.search(rf'<table id="{table}".*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    cells = [
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)
        for row in re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    ]
    return [
        [" ".join(unescape(re.sub(r"<[^>]+>", "", cell)).split()) for cell in row] for row in cells
    ]


def test_mathjax_is_the_published_file_with_its_licence():
    (digest,) = re.findall(r"\b[0-9a-f]{64}\b", text(MATHJAX / "NOTICE"))
    assert hashlib.sha256((MATHJAX / "tex-svg.js").read_bytes()).hexdigest() == digest
    assert "Apache License" in text(MATHJAX / "LICENSE")


def test_the_claims_are_those_of_the_notebooks(home):
    shown = rows(text(home / "index.html"), "claims")
    expected = []
    for stem in STEMS:
        paths = [
            home.parent / stem / "claims.json",
            ROOT / "results" / "fashion_mnist" / f"claims_{stem[:2]}.json",
        ]
        for path in [path for path in paths if path.exists()][:1]:
            expected += [
                (stem[:2], row.statement, row.verdict) for row in claims.read(path).itertuples()
            ]
    assert len(expected) > 30
    assert [(row[6][:2], row[1], row[4]) for row in shown] == expected


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
    for method, seeds, *cells in shown:
        name = re.escape(method.removesuffix(" the one to beat"))
        (line,) = re.findall(rf"^ *{name} +(\d.*)$", printed, re.MULTILINE)
        assert seeds == str(MAIN_SEEDS)
        numbers = re.findall(r"\d+\.\d(?: ± \d+\.\d)?", line)
        del numbers[2]  # the union of two attacks, which the page leaves out
        assert cells == numbers
    assert [row[0] for row in shown if "the one to beat" in row[0]] == [
        f"{leaderboard.BASELINE} the one to beat"
    ]


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
    with pytest.raises(site.SiteError, match="00_broken"):
        site.build("laptop", notebooks=tmp_path, figures=home.parents[1])
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_without_runs_the_first_page_says_so(monkeypatch):
    monkeypatch.setattr("crat.store.files.published_home", lambda: Path("nothing"))
    assert leaderboard.leaderboard("laptop").empty
    page = site._first_page([], "laptop", [])
    assert "No claims yet" in page
    assert "No run of this profile is published yet" in page


def test_links_lead_to_pages_or_are_words(home):
    page = text(home / "notebooks" / f"{EXECUTED}.html")
    assert 'href="../docs/methods.html#cfa"' in page
    assert '<p><span class="xref myst">a</span> <a class' in page  # it has no page
    assert 'href="https://a.b/c.md"' in page


def test_errors_are_one_line(monkeypatch, tmp_path, capsys):
    assert cli.main(["site", "--profile", "slow"]) == 2
    with pytest.raises(site.SiteError, match="they come with a clone"):
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


def visit(browser, path):
    """Opens a page from the disk, with an empty log, and waits until its formulas are set."""
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())
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
    if Path(page).stem in STEMS:
        assert len(images) == text(ROOT / "notebooks" / f"{Path(page).stem}.ipynb").count(
            '"image/png"'
        )


@pytest.mark.parametrize("table", ["claims", "leaderboard"])
def test_tables_sort_both_ways(home, browser, table):
    visit(browser, home / "index.html")
    body = browser.find_elements(By.TAG_NAME, "table")
    assert body[0].get_attribute("id") == "claims"  # first of all that the page shows
    keys = """return [...document.getElementById(arguments[0]).tBodies[0].rows]
        .map((row) => row.cells[arguments[1]])
        .map((cell) => cell.dataset.key ?? cell.textContent.trim().toLowerCase())"""
    headings = body[["claims", "leaderboard"].index(table)].find_elements(
        By.CSS_SELECTOR, "thead th"
    )
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
    assert len(headings) >= 7


def sorted_like(values):
    """Numbers by size, words by the alphabet."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return sorted(values)


def test_the_claims_are_filtered(home, browser):
    visit(browser, home / "index.html")
    all_rows = browser.find_elements(By.CSS_SELECTOR, "#claims tbody tr")

    def left():
        count = browser.find_element(By.CLASS_NAME, "report-count").text
        shown = [row for row in all_rows if row.is_displayed()]
        assert count in (f"{len(shown)} of {len(all_rows)} claims", f"{len(shown)} claims")
        return shown

    chip = browser.find_element(By.CSS_SELECTOR, '.report-tools button[data-verdict="supported"]')
    chip.click()
    supported = left()
    assert 0 < len(supported) < len(all_rows)
    assert {row.get_attribute("data-verdict") for row in supported} == {"supported"}
    field = browser.find_element(By.CSS_SELECTOR, ".report-tools input")
    field.send_keys("Tian order")
    assert 0 < len(left()) < len(supported)
    assert all("Tian" in row.text and "order" in row.text for row in left())
    chip.click()
    field.clear()
    field.send_keys("no such claim")
    assert left() == []


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
        visit(browser, home / "index.html")
        assert not browser.find_element(By.CSS_SELECTOR, "#claims thead").is_displayed()
        assert browser.find_element(By.CSS_SELECTOR, "#claims tbody .verdict").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
