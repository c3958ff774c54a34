"""The report, built once for all of its tests."""

import contextlib
import io
import json
import shutil

import pytest
from report_pages import EXECUTED, ROOT

from crat.batch import site


@pytest.fixture(scope="session")
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
