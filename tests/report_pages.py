"""The report, for its tests: it is built once for each file; its pages, and how they are read."""

import contextlib
import io
import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest

from crat.analysis import claims
from crat.batch import site
from crat.papers import PAPERS

ROOT = Path(__file__).parents[1]
STEMS = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
PAGES = ["index.html", "explorer.html", *(f"notebooks/{stem}.html" for stem in STEMS)]
PAGES += [f"docs/{path.stem}.html" for path in sorted((ROOT / "docs").glob("*.md"))]
EXERCISES = sorted((ROOT / "notebooks" / "course").glob("[0-9]_*.ipynb"))
PAGES += [f"notebooks/course/{stem}.html" for stem in ("README", *(p.stem for p in EXERCISES))]
CLAIMING = [stem for stem in STEMS if hasattr(PAPERS[stem[:2]], "CLAIMS")]
REPORTS = {stem: f"docs/reproducibility/{stem[:2]}.html" for stem in CLAIMING}
PAGES += REPORTS.values()
EXECUTED = "02_attacks_side_by_side"


@pytest.fixture(scope="session")
def report(tmp_path_factory):
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
