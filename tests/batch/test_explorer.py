"""The explorer: its numbers are the outcomes, and the page answers in headless Chromium offline."""

import base64
import csv
import gzip
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import test_site_browser
from report_pages import text
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from test_site_browser import requests, visit

from crat import data, store
from crat.analysis import metrics
from crat.batch import explorer, site
from crat.outcomes import evaluate, standard_battery, strong_battery
from crat.papers import common
from crat.papers.all_methods import evidence_runs
from crat.training.named import find_run
from crat.training.run import Run

browser = test_site_browser.browser
RESULTS = store.published_home()
SOURCE = site.ROOT / "docs" / "site" / "explorer.md"
LARGEST = 8_000_000  # bytes of the page's own files; a method of three seeds adds 0.1 MB
H100 = "preact_resnet18, 14 epochs"  # what tells those runs from the others on CIFAR-10
RUNS = (  # data set, key, attack, images
    ("fashion_mnist", "AT+EMA-s0", "PGD-20", 10_000),
    ("fashion_mnist", "CFA (AT)-s1", "CW-20", 10_000),
    ("fashion_mnist", "Adv+ +EMA-s0", "AA", 1000),
    ("fashion_mnist_mini", "SPAT+EMA, form plain-s0", "CW-20", 2000),
    ("cifar10", f"AT+EMA, {H100}-s0", "AA", 2000),  # without logits
)
TWO = (f"AT+EMA, {H100}-s0", f"CFA (AT)+EMA, {H100}-s0")
ON_H100 = explorer.link("cifar10", *TWO, "AA").removeprefix("explorer.html")
PAIR = "#data=fashion_mnist&attack=PGD-20&a=AT+EMA-s0&b=WAT+EMA-s0"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page as in the report, made where no data set was fetched."""
    draft = tmp_path_factory.mktemp("explorer")
    listed = "# First\n\n```{toctree}\nexplorer\n```\n"
    store.write_text(draft / "source" / "index.md", listed)
    store.write_text(draft / "source" / "explorer.md", text(SOURCE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRAT_DATA", str(draft / "nothing"))
        site._sphinx(draft)
        explorer.write_numbers(draft / "html")
    return draft / "html" / explorer.PAGE


@pytest.fixture(scope="module")
def numbers(page):
    """The content of numbers.js."""
    script = text(page.parent / explorer.PLACE / "numbers.js")
    return json.loads(re.fullmatch(r"window.CRAT_NUMBERS = (.*);\n", script, re.DOTALL)[1])


def decoded(shown, key, attack):
    """Labels, predictions and margins of a run in numbers.js, as model.js reads them."""
    arrays = np.frombuffer(gzip.decompress(base64.b64decode(shown["arrays"])), np.uint8)
    (run,) = [run for run in shown["runs"] if run["key"] == key]
    place = run["outcomes"][attack]
    at, n = place["at"], place["n"]
    y = arrays[:n].astype(int)
    codes = arrays[at : at + n].astype(int)
    added = np.zeros(n, np.int8)  # each outcome's margins are stored less the last one's
    for before in run["outcomes"].values():
        if before["n"] == n and before["at"] <= at:
            added += arrays[before["at"] + shown["margins_after"] :][:n].view(np.int8)
    levels = added.astype(float)
    margin = np.sign(levels) * (levels / shown["levels"]) ** 2 * run["largest"]
    return run, y, np.where(codes == 0, y, codes - 1), margin


def outcomes_of(run, attack, n):
    """What the package's own reader says of a run, from its folder's name."""
    found = find_run(run["run"])
    dataset = found.config.data.name
    battery = standard_battery(dataset) | strong_battery(dataset)
    question = {"dtype": run["outcomes"][attack]["dtype"], "tell": None}
    first = n if n < len(evaluate(found, {}, **question).y) else None
    return evaluate(found, {attack: battery[attack]}, first=first, **question)


# --- the numbers ---


@pytest.mark.parametrize(("dataset", "key", "attack", "n"), RUNS, ids=lambda value: str(value))
def test_the_numbers_are_the_outcomes(numbers, dataset, key, attack, n):
    run, y, prediction, margin = decoded(numbers[dataset], key, attack)
    found = outcomes_of(run, attack, n)
    assert len(y) == n
    assert (y == found.y).all()
    assert (prediction == found.predictions[attack]).all()
    largest = run["largest"]
    true = found.margins[attack].astype(float)
    assert np.abs(true).max() <= largest
    step = np.sqrt(largest) / explorer.LEVELS / 2  # of the square root
    assert (np.abs(np.sqrt(np.abs(margin)) - np.sqrt(np.abs(true))) < 1.001 * step).all()
    assert (np.sign(margin) * np.sign(true) >= 0).all()


def test_the_leaderboards_runs_have_its_names(numbers):
    keys = {run["key"]: run["run"] for run in numbers["fashion_mnist"]["runs"]}
    for key, config in evidence_runs("laptop").items():
        run = Run.of(config)
        if run.published:
            assert keys[key] == run.name


def test_the_leaderboards_baseline_is_shown_unasked(numbers):
    for shown in numbers.values():
        assert shown["default"][0] == explorer.DEFAULTS[0] == f"{common.BASELINE}-s0"


def test_no_name_stands_for_two_runs_and_no_attack_for_one(numbers):
    for name, shown in numbers.items():
        keys = [run["key"] for run in shown["runs"]]
        assert len(keys) == len(set(keys)), name
        assert set(shown["default"]) <= set(keys)
        assert shown["attacks"][:2] == ["PGD-20", "CW-20"]
        for attack in shown["attacks"]:
            assert sum(attack in run["outcomes"] for run in shown["runs"]) > 1
        assert all("clean" in run["outcomes"] for run in shown["runs"])


def test_two_runs_of_one_name_get_the_end_of_their_folders(numbers):
    configs = {
        Path(f"{end}-run-aaaaaa{end}"): find_run("fashion_mnist-small_cnn-wat-s0").config
        for end in ("111111", "222222")
    }
    assert [name.key for name in explorer._names(configs).values()] == [
        "WAT+EMA, 111111-s0",
        "WAT+EMA, 222222-s0",
    ]


def test_the_page_is_small(page):
    """Its own files, with the pictures of all test images, which need the fetched data set."""
    folder = page.parent / explorer.PLACE
    sprites = sorted((folder / "images").glob("*.png"))
    drawn = sum(path.stat().st_size for path in sprites)
    scripts = sum(path.stat().st_size for path in folder.glob("*.*"))
    assert scripts + drawn * 10_000 / 2000 < LARGEST
    assert len(sprites) == 10


def test_the_pictures_are_the_images(numbers, page):
    pil = pytest.importorskip("PIL.Image")
    mini = data.load("fashion_mnist_mini")
    sprite = numbers["fashion_mnist"]["images"][6]
    assert sprite == numbers["fashion_mnist_mini"]["images"][6]
    assert numbers["cifar10"]["images"] == []
    drawn = np.asarray(pil.open(page.parent / explorer.PLACE / "images" / sprite["file"]))
    shirts = mini.x_test[mini.y_test == 6][:, 0].numpy()
    assert sprite["images"] == len(shirts) == 200
    for place in (0, 1, 41, 199):
        row, column = divmod(place, sprite["columns"])
        tile = drawn[28 * row : 28 * row + 28, 28 * column : 28 * column + 28].astype(int)
        tile = tile * (255 // max(drawn.max(), 1))  # a reader may leave 16 greys as they are
        assert np.abs(tile - shirts[place]).max() <= 9


def test_an_altered_outcome_is_not_shown(tmp_path):
    run = find_run("fashion_mnist_mini-small_cnn-tian2021-s0").published
    copy = tmp_path / "fashion_mnist_mini" / run.name
    shutil.copytree(run, copy)
    shutil.copy(RESULTS / store.SUMS, tmp_path)
    assert explorer.collect(tmp_path) == []  # one run cannot be compared
    path = sorted((copy / "eval").glob("*.npz"))[0]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(store.StoreError, match="not as it was published"):
        explorer.collect(tmp_path)


def test_nothing_published_is_no_error(tmp_path):
    explorer.write_numbers(tmp_path, tmp_path / "nothing")
    assert text(tmp_path / explorer.PLACE / "numbers.js") == "window.CRAT_NUMBERS = {};\n"


def test_a_link_is_readable():
    made = explorer.link("fashion_mnist", "AT+EMA-s0", "Adv+ +EMA-s0", "AA", "Shirt", "a:Coat")
    assert made == (
        "explorer.html#data=fashion_mnist&attack=AA&a=AT+EMA-s0&b=Adv+%20+EMA-s0"
        "&class=Shirt&cell=a:Coat"
    )
    shown = explorer.link("fashion_mnist", "AT+EMA-s0", "WAT+EMA-s0", "PGD-20", "Shirt", "b-only")
    assert f"`{shown}`" in text(SOURCE)
    assert explorer.link("cifar10", "a&b", "c=d") == "explorer.html#data=cifar10&a=a%26b&b=c%3Dd"


# --- in the browser ---


def opened(browser, page, address=""):
    """Opens the page anew at an address and waits until it is drawn."""
    browser.get("data:,")
    browser.get(page.as_uri() + address)
    drawn(browser)


def drawn(browser, change=""):
    """Waits until the page shows its address; change: what the address must have by then."""
    script = (
        "const ready = document.getElementById('explorer')?.dataset.ready;"
        "return ready === (location.hash || '#') ? ready : null"
    )

    def done(browser):
        address = browser.execute_script(script)
        return address is not None and change in address

    WebDriverWait(browser, 60).until(done)


def find(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, f"#explorer {selector}")


def click(browser, selector, change=""):
    (element,) = find(browser, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()
    drawn(browser, change)


def choose(browser, name, value, change):
    (element,) = find(browser, f"select[data-key='{name}']")
    Select(element).select_by_value(value)
    drawn(browser, change)


def chosen(browser, name):
    (element,) = find(browser, f"select[data-key='{name}']")
    return Select(element).first_selected_option.text


def test_it_opens_from_the_disk_without_a_network(browser, page):
    visit(browser, page)
    drawn(browser)
    assert {url.split(":")[0] for url in requests(browser)} <= {"file", "data"}
    assert [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []
    assert [chosen(browser, f"a-{part}") for part in ("method", "average", "seed")] == [
        "AT",
        "EMA",
        "0",
    ]
    assert find(browser, ".x-said")[0].text == ""
    assert len(find(browser, "svg .x-class")) == 10


@pytest.mark.parametrize(
    ("address", "keys", "attack", "n"),
    [
        (PAIR, ("AT+EMA-s0", "WAT+EMA-s0"), "PGD-20", 10_000),
        (ON_H100, TWO, "AA", 1000),
    ],
    ids=["all images", "the first 1,000"],
)
def test_its_intervals_are_those_of_python(browser, page, numbers, address, keys, attack, n):
    opened(browser, page, address)
    dataset = re.search("data=([^&]+)", address)[1]
    shown = browser.execute_script(
        "return [...document.querySelectorAll('#x-classes tbody tr')].map((row) =>"
        "[...row.querySelectorAll('[data-value]')].map((cell) =>"
        "[cell.dataset.value, cell.dataset.low, cell.dataset.high].map(Number)))"
    )
    for side, key in enumerate(keys):
        _, y, prediction, _ = decoded(numbers[dataset], key, attack)
        _, _, clean, _ = decoded(numbers[dataset], key, "clean")
        table = metrics.summary(
            y[:n], clean[:n], {attack: prediction[:n]}, numbers[dataset]["classes"]
        )
        for place, name in enumerate(("clean", attack)):
            rows = table[table.attack == name][["robust_acc", "low", "high"]].to_numpy()
            ours = np.array([row[2 * side + place] for row in shown])
            np.testing.assert_allclose(ours, rows, rtol=0, atol=1e-12)
    notes = " ".join(note.text for note in find(browser, ".x-warn"))
    assert ("the first 1,000 of 10,000 test images" in notes) == (n == 1000)


def test_a_question_is_asked_by_clicks(browser, page, numbers):
    """Menus, a class, a cell; then back; then the same by its address."""
    opened(browser, page)
    choose(browser, "b-method", "TRADES", "b=TRADES")
    choose(browser, "b-average", "none", "b=TRADES-s0")
    choose(browser, "b-seed", "1", "b=TRADES-s1")
    click(browser, "svg .x-class[data-key='class-6']", "class=Shirt")
    assert "Where Shirt goes under PGD-20" in find(browser, "#x-class h2")[0].text
    click(browser, "[data-cell='a:4']", "cell=a:Coat")

    _, y, prediction, margin = decoded(numbers["fashion_mnist"], "AT+EMA-s0", "PGD-20")
    images = np.flatnonzero((y == 6) & (prediction == 4))
    assert find(browser, "[data-cell='a:4'] b")[0].text == str(len(images))
    assert find(browser, "#x-cell h2")[0].text.startswith(f"{len(images)} images of Shirt")
    first = int(find(browser, ".x-images li")[0].get_attribute("data-image"))
    assert first in images
    assert margin[first] == margin[images].min()
    shown = len(find(browser, ".x-images li"))
    assert shown < len(images)
    click(browser, ".x-more")
    assert len(find(browser, ".x-images li")) == min(len(images), 5 * shown)
    assert "first 200 images of the class only" in find(browser, "#x-cell")[0].text

    address = browser.execute_script("return location.hash")
    browser.back()
    drawn(browser)
    assert not find(browser, "#x-cell")
    assert find(browser, "#x-class")
    browser.back()
    drawn(browser)
    assert not find(browser, "#x-class")
    opened(browser, page, address)
    assert find(browser, ".x-said")[0].text == ""
    assert [chosen(browser, f"b-{part}") for part in ("method", "average", "seed")] == [
        "TRADES",
        "none",
        "1",
    ]
    assert len(find(browser, ".x-images li")) == shown


def test_what_one_run_saves_and_its_pictures(browser, page, numbers):
    link = explorer.link("fashion_mnist", "AT+EMA-s0", "WAT+EMA-s0", "PGD-20", "6", "b-only")
    opened(browser, page, link.removeprefix(explorer.PAGE))
    robust = []
    for key in ("AT+EMA-s0", "WAT+EMA-s0"):
        _, y, clean, _ = decoded(numbers["fashion_mnist"], key, "clean")
        _, _, attacked, _ = decoded(numbers["fashion_mnist"], key, "PGD-20")
        robust.append((clean == y) & (attacked == y))
    saved = np.flatnonzero((y == 6) & ~robust[0] & robust[1])
    assert find(browser, "[data-cell='b-only'] b")[0].text == str(len(saved))
    assert {int(li.get_attribute("data-image")) for li in find(browser, ".x-images li")} <= set(
        saved.tolist()
    )
    pictures = find(browser, ".x-images .x-pic:not(.x-none)")
    assert pictures
    assert all("test image" in picture.get_attribute("aria-label") for picture in pictures)
    whole = browser.execute_async_script(
        "const [style, done] = arguments; const image = new Image();"
        "image.onload = () => done([image.naturalWidth, image.naturalHeight]);"
        "image.onerror = () => done([]);"
        'image.src = /url\\("(.*)"\\)/.exec(style)[1]',
        pictures[0].value_of_css_property("background-image"),
    )
    assert whole == [28 * explorer.COLUMNS, 28 * 200 / explorer.COLUMNS]


def test_tables_are_given_as_csv(browser, page):
    opened(browser, page, PAIR + "&class=Shirt&cell=both")
    tables = [button.get_attribute("data-csv") for button in find(browser, ".x-csv")]
    row, images, classes = (list(csv.reader(io.StringIO(table))) for table in tables)
    assert [len(table) for table in (row, classes)] == [11, 11]
    assert sum(int(cells[1]) for cells in row[1:]) == 1000
    assert len(images) - 1 == int(find(browser, "[data-cell='both'] b")[0].text)
    shown = find(browser, "#x-classes tbody tr:nth-child(7) td[data-value]")[1]
    only_left = int(find(browser, "[data-cell='a-only'] b")[0].text)
    assert int(classes[7][-2]) == only_left
    assert float(classes[7][5]) == float(shown.get_attribute("data-value"))


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("#data=mnist", "there is no data set mnist; shown is fashion_mnist."),
        ("#attack=PGD-7", "there is no attack PGD-7 on fashion_mnist; shown is PGD-20."),
        ("#a=ZZZ-s0", "ZZZ-s0 is not here; shown is AT+EMA-s0."),
        (
            "#attack=AA&a=AT+EMA-s0&b=SPAT+EMA-s0",
            "AT+EMA-s0 has no published outcomes under AA; shown is AT-s0.",
        ),
        (
            "#attack=AA&a=AT+EMA-s0&b=WAT+EMA-s0",
            "AT+EMA-s0 has no published outcomes under AA; shown is AT-s0. "
            "WAT+EMA-s0 has no published outcomes under AA; shown is AT-s1.",
        ),
        ("#class=Hat", "there is no class Hat; none is open."),
        ("#class=6&cell=c:9", "there is no cell c:9; none is open."),
        ("#%E0%A4%A&=&data", ""),
    ],
)
def test_a_bad_address_falls_back_and_says_so(browser, page, address, told):
    opened(browser, page, address)
    assert find(browser, ".x-said")[0].text == told
    assert len(find(browser, "svg .x-class")) == 10


def test_menus_offer_what_the_attack_judged(browser, page, numbers):
    opened(browser, page, "#data=fashion_mnist&attack=AA&a=AT-s0")
    options = [option.text for option in Select(find(browser, "select")[2]).options]
    assert options == ["AT", "SPAT", "Adv+"]
    assert "were searched in bfloat16" in " ".join(n.text for n in find(browser, ".x-warn"))


def test_a_run_is_found_by_the_end_of_its_folder(browser, page):
    opened(browser, page, "#data=fashion_mnist&a=53db9ebe064f4488")
    assert [chosen(browser, f"a-{part}") for part in ("method", "average")] == ["AT", "none"]


def test_the_keyboard_suffices(browser, page):
    opened(browser, page, PAIR)
    find(browser, "svg .x-class")[6].send_keys(Keys.ENTER)
    drawn(browser, "class=Shirt")
    active = "return document.activeElement.dataset.key"
    assert browser.execute_script(active) == "class-6"  # drawn anew, and still in focus
    find(browser, "[data-cell='b:0']")[0].send_keys(Keys.SPACE)
    drawn(browser, "cell=b:T-shirt/top")
    assert browser.execute_script(active) == "cell-b:0"
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('#explorer :is(button, select, [role=button])')]"
        ".filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim())).length"
    )
    assert unnamed == 0


def test_cifars_images_are_not_shipped(browser, page):
    opened(browser, page, "#data=cifar10&attack=PGD-20&class=cat&cell=a:dog")
    assert "CIFAR-10's images are not crat's to ship" in find(browser, "#x-cell")[0].text
    assert find(browser, ".x-images li")
    assert not find(browser, ".x-pic")


def test_a_phone_shows_all_of_it(browser, page):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for cell in ("", "&class=Ankle boot", "&class=Shirt&cell=b-only"):
            opened(browser, page, PAIR + cell)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
            sizes = browser.execute_script(
                "return [...document.querySelectorAll('#explorer *')]"
                ".filter((e) => [...e.childNodes].some((n) => n.nodeType === 3))"
                ".map((e) => parseFloat(getComputedStyle(e).fontSize))"
            )
            assert min(sizes) >= 12
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
