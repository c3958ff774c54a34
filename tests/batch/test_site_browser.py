"""The pages of the report: their behaviour in headless Chromium, offline."""

import json
import os
import shutil
from pathlib import Path

import pytest
from report_pages import PAGES, REPORTS, ROOT, STEMS, report, text
from selenium import webdriver
from selenium.webdriver.common.by import By

FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic
    --no-first-run
    --disable-background-networking --disable-component-update --disable-sync
    --window-size=1300,900"""


home = report  # the fixture


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
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", heading)
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
        assert all(code())
        assert len(code()) > 5
        browser.find_element(By.CSS_SELECTOR, ".cell .report-fold").click()
        assert [not shown for shown in code()] == [True, *[False] * (len(code()) - 1)]
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


PRINTED = [page for page in PAGES if not page.startswith("docs/") or page in REPORTS.values()]


@pytest.mark.parametrize("page", PRINTED)
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
