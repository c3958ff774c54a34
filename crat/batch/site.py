"""`crat site`: the report as pages: what was found, claims, leaderboard, the executed notebooks.

    figures/<profile>/*/ -> sources -> sphinx (docs/site) -> figures/<profile>/site/

    index.md                       frontpage.py
    notebooks/*.ipynb              pages.py, with the exercises of notebooks/course
    docs/reproducibility/*.md      reproducibility.py, with what is written by hand there
    docs/*.md                      the repository's
    *.md                           docs/site/*.md, such as a page with a script of its own

Nothing is run and nothing is fetched: the pages open from the disk, without a server.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from crat import store
from crat.batch import explorer, frontpage, reproducibility
from crat.batch.notebook import ROOT
from crat.batch.pages import Page, SiteError, annotated, exercise
from crat.config import PROFILES
from crat.names import one_of
from crat.papers import PAPERS, leaderboard
from crat.papers.common import BASELINE
from crat.training.run import Run

ALSO = "cifar10"  # the data set of the second leaderboard
UNUSED = (".buildinfo", "objects.inv", "search.html")  # files of sphinx


def index_of(home: Path) -> Path:
    """The path of the report's first page in figures/<profile>."""
    return home / "site" / "index.html"


def build(profile: str, notebooks: Path = ROOT / "notebooks", figures: Path | None = None) -> Path:
    """Builds the pages of a profile anew; returns the first of them.

    figures: None is CRAT_FIGURES, else the checkout's own. The old pages stay until the new ones
    are whole. Raises ConfigError on an unknown profile, SiteError where the extra is not installed,
    the repository is not there, or sphinx fails; StoreError where nothing can be written.
    """
    profile = one_of("profile", profile, PROFILES)
    needed = ("sphinx", "myst_nb", "sphinx_book_theme")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        listed = ", ".join(missing)
        raise SiteError(f"the report as pages needs {listed}: pip install 'crat[site]'")
    home = (figures or store.figures_home()) / profile
    paths = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    pages = [Page(path, home / path.stem, PAPERS.get(path.stem[:2])) for path in paths]
    if not pages or not (ROOT / "docs" / "site" / "conf.py").exists():
        raise SiteError(f"no notebooks in {notebooks}: they come with a clone of the repository")
    store.must_be_writable(home, "CRAT_FIGURES")
    with tempfile.TemporaryDirectory(prefix=".site-", dir=home) as draft:  # on the same disk
        html = Path(draft, "html")
        boards = _boards(profile)
        _write_sources(Path(draft, "source"), pages, profile, boards)
        _sphinx(Path(draft))
        frontpage.write_pictures(html / "_static" / "thumbs", pages, profile)
        _write_leaderboards(html, profile, boards)
        explorer.write_numbers(html)
        for name in UNUSED:
            (html / name).unlink(missing_ok=True)
        if (home / "site").exists():
            (home / "site").rename(Path(draft, "old"))
        html.rename(home / "site")
    return index_of(home)


def _write_sources(
    folder: Path, pages: Sequence[Page], profile: str, boards: Sequence[frontpage.Board]
) -> None:
    """Writes the sources for sphinx: the first page, and all others, which it lists.

    Their folders are the repository's, so that their links to each other lead where they do there.
    """
    course = _write_course(folder / "notebooks" / "course")
    extras = _write_copies(sorted((ROOT / "docs" / "site").glob("*.md")), folder)
    docs = _write_copies(sorted((ROOT / "docs").glob("*.md")), folder / "docs")
    for page in pages:
        text = json.dumps(annotated(page, profile))
        store.write_text(folder / "notebooks" / f"{page.stem}.ipynb", text)
    reports = _write_reports(pages, profile, folder / "docs" / "reproducibility")
    listed = {
        "notebooks": [f"notebooks/{page.stem}" for page in pages],
        "course": course,
        "extras": extras,
        "reports": reports,
        "guides": [f"notebooks/course/{stem}" for stem in ("README", *dict(course)) if course],
        "docs": [f"docs/{stem}" for stem, _ in docs],
    }
    first = frontpage.first_page(pages, profile, boards, listed)
    store.write_text(folder / "index.md", first)


def _boards(profile: str) -> list[frontpage.Board]:
    """The leaderboard of the profile's own data set, and that of CIFAR-10 where it has runs."""
    own = leaderboard.data_of(profile)
    also = () if own == ALSO else (ALSO,)
    return [_board(profile, own), *(_board(profile, d) for d in also if _published(profile, d))]


def _published(profile: str, dataset: str) -> list[Run]:
    methods = leaderboard.published_runs(profile, dataset=dataset)
    return [run for runs in methods.values() for run in runs]


def _board(profile: str, dataset: str) -> frontpage.Board:
    runs = _published(profile, dataset)
    methods = leaderboard.leaderboard(profile, dataset=dataset)
    attack = leaderboard.attack_name(profile, dataset)
    classes = leaderboard.by_class(profile, dataset=dataset)
    return frontpage.Board(
        data=dataset,
        file=_file(profile, dataset),
        methods=methods,
        classes=classes.loc[list(methods.method)],
        columns=("clean", *leaderboard.ROBUST),
        seeds=tuple(sorted({run.config.train.seed for run in runs})),
        attack=attack,
        baseline=BASELINE,
        compared={method: _compared(method, runs[0], attack) for method in methods.method},
    )


def _compared(method: str, run: Run, attack: str) -> str:
    """The explorer's address of the first seeds of the baseline and of a method; run: of any."""
    baseline, other = (f"{name}-s0" for name in (BASELINE, method))
    return explorer.link(run.config.data.name, baseline, other, attack)


def _write_copies(paths: Sequence[Path], folder: Path) -> list[tuple[str, str]]:
    """Copies pages of the repository; returns the stem and the title of each."""
    titles = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        store.write_text(folder / path.name, text)
        heading = re.search(r"^# +(.+)$", text, re.MULTILINE)
        titles.append((path.stem, heading[1] if heading else path.stem))
    return titles


def _write_course(folder: Path) -> list[tuple[str, str]]:
    """Writes the exercises, not their solutions, and the guide; the stem and title of each one."""
    course = ROOT / "notebooks" / "course"
    paths = sorted(course.glob("[0-9]_*.ipynb"))
    for path in paths:
        store.write_text(folder / path.name, json.dumps(exercise(path)))
    _write_copies([course / "README.md"], folder)
    return [(path.stem, Page(path, path.parent / "never run").title) for path in paths]


def _write_reports(pages: Sequence[Page], profile: str, folder: Path) -> list[str]:
    """Writes the reproducibility report of each notebook that claims something.

    Returns their places in the list of contents, under the notebooks' shorter titles.
    """
    entries = []
    for page in pages:
        if text := reproducibility.report(page, profile):
            store.write_text(folder / f"{page.number}.md", text)
            entries.append(f"{page.title} <docs/reproducibility/{page.number}>")
    return entries


def _file(profile: str, dataset: str) -> str:
    """The name of a leaderboard's files: "leaderboard", or with a data set that is not its own."""
    own = dataset == leaderboard.data_of(profile)
    return "leaderboard" if own else f"leaderboard-{dataset}"


def _write_leaderboards(folder: Path, profile: str, boards: Sequence[frontpage.Board]) -> None:
    """Writes the leaderboards' tables for downloading, by `crat leaderboard`, if they have rows."""
    for board in boards:
        if board.rows:
            files = ["--csv", str(folder / f"{board.file}.csv")]
            files += ["--latex", str(folder / f"{board.file}.tex")]
            words = ["--profile", profile, "--data", board.data]
            _run("crat", "leaderboard", *words, *files)


def _sphinx(draft: Path) -> None:
    """Runs sphinx and prints its warnings to stderr; raises SiteError."""
    source = draft / "source"
    places = ["-d", str(draft / "doctrees"), str(source), str(draft / "html")]
    words = ["-q", "-b", "html", "-c", str(ROOT / "docs" / "site"), *places]
    if said := _run("sphinx", *words).replace(f"{source}{os.sep}", ""):
        print(said, file=sys.stderr)


def _run(module: str, *words: str) -> str:
    """Runs a module in a child process; returns what it said on stderr. Raises SiteError."""
    env = os.environ | {"NO_COLOR": "1"}
    command = [sys.executable, "-X", "utf8", "-m", module, *words]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=env)
    said = run.stderr.strip()
    if run.returncode:
        raise SiteError(f"{module} failed: {said.splitlines()[-1] if said else run.returncode}")
    return said
