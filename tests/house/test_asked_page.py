"""docs/asked.md: its blocks run in their order and print what the page shows."""

import contextlib
import io
import re
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import crat
from crat.attacks.judge import attacked_logits
from crat.outcomes.margins import of

ROOT = Path(crat.__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "asked.md"
TRACKER = r"https://github\.com/[\w.-]+/[\w.-]+/issues/\d+"
ROUNDING = 0.02  # of margins; that of float32 and of another CPU's order of sums is far smaller
RADIUS = 0.003  # tenfold the step of the bisection, 0.3 / 2^10
Page = namedtuple("Page", "printed shown x y scope")  # x, y: the thirty images of most questions


def sections():
    """Heading -> text, what stands before the first heading left out."""
    parts = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks():
    """The Python blocks in their order, each with the output below it or None."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", text, re.DOTALL)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page as a reader types it in a checkout, with an empty store."""
    scope, printed, shown = {}, [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRAT_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(sys, "path", list(sys.path))
        patch.chdir(ROOT)
        for code, output in blocks():
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, scope)
            printed.append(out.getvalue())
            shown.append(output)
            if len(printed) == 1:
                x, y = scope["x"], scope["y"]
    return Page(printed, shown, x, y, scope)


def test_every_block_prints_what_the_page_shows(page):
    for printed, shown in zip(page.printed, page.shown, strict=True):
        lines = [line.rstrip() for line in printed.splitlines()]
        assert lines == shown.splitlines()


def test_no_number_of_the_page_is_a_close_one(page):
    """Another CPU rounds otherwise; the outcomes of stored runs are read and need no such care."""
    scope = page.scope
    logits = attacked_logits(scope["model"], page.x, page.y, scope["pgd"])
    assert np.abs(of(logits.numpy(), page.y.numpy())).min() > ROUNDING
    radius, eps = scope["radius"].numpy(), np.array(scope["eps"][1:])
    assert np.abs(radius - eps[:, None]).min() > RADIUS
    clean = attacked_logits(scope["model"], scope["x"], scope["y"], None)
    assert np.abs(of(clean.numpy(), scope["y"].numpy())).min() > ROUNDING


def test_ten_questions_have_their_links_code_and_output():
    assert len(sections()) == 10
    for question, text in sections().items():
        assert question.endswith("?")
        assert re.search(rf"\]\({TRACKER}\)", text), question
        assert "```text\n" in text
    first, *rest = blocks()
    assert not first[1]
    assert all(output for _, output in rest)
    assert len(rest) == PAGE.read_text(encoding="utf-8").count("```text\n")


def test_the_page_is_linked():
    pages = [path for path in (ROOT / "docs").glob("*.md") if path != PAGE]
    assert any("](asked.md)" in path.read_text(encoding="utf-8") for path in pages)
