"""`crat site`: the report as pages. One page of claims and leaderboard, then each notebook as it
was executed.

    figures/<profile>/*/claims.json, *.ipynb -> sources -> sphinx (with docs/site) ->
    figures/<profile>/index.html

Nothing is run and nothing is fetched: the pages open from the disk, without a server.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import Any

import crat
from crat import store
from crat.config import PROFILES
from crat.config import profile as base_run
from crat.names import one_of
from crat.papers.common import evidence_profile

ROOT = Path(crat.__file__).parents[1]
SAVED = re.compile(r'plots\.save\(.*"(\w+)"\)')
LOCAL_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
ADDRESS = re.compile(r'\b(href|src|data-content_root)="(?!https?:|mailto:|data:|#)([^"]*)"')
VERDICTS = ("supported", "reversed", "no effect", "undecided", "not run")


class SiteError(RuntimeError):
    """Pages that cannot be built: one line with what to do."""


@dataclass(frozen=True)
class Page:
    """A notebook of the report: as it was executed for this profile, or, where it was not, as it
    was committed.
    """

    committed: Path
    folder: Path  # figures/<profile>/<stem>: what its run wrote

    @property
    def stem(self) -> str:
        """Its name, which is the page's, too."""
        return self.committed.stem

    @property
    def executed(self) -> bool:
        """Whether a finished run of it lies in its folder."""
        return (self.folder / self.committed.name).exists() and (
            self.folder / "success.json"
        ).exists()

    @cached_property
    def notebook(self) -> dict[str, Any]:
        """The notebook that is shown."""
        path = self.folder / self.committed.name if self.executed else self.committed
        try:
            notebook = json.loads(path.read_text(encoding="utf-8"))
            return notebook | {"cells": list(notebook["cells"])}
        except (OSError, ValueError, KeyError) as error:
            raise SiteError(f"{path} is no notebook ({error})") from None

    @property
    def title(self) -> str:
        """Its first heading."""
        text = "\n".join(
            "".join(c["source"]) for c in self.notebook["cells"] if c["cell_type"] == "markdown"
        )
        found = re.search(r"^# +(.+)$", text, re.MULTILINE)
        return found[1].strip() if found else self.stem

    @property
    def sentence(self) -> str:
        """Its claim in one sentence, or else its first paragraph, without marks of markdown."""
        title, *paragraphs = re.split(r"\n\s*\n", "".join(self.notebook["cells"][0]["source"]))
        said = (
            [p for p in paragraphs if re.match(r"\*\*[^*]*one sentence", p)]
            or paragraphs[:1]
            or [title]
        )
        return " ".join(re.sub(r"^\*\*[^*]*\*\*|[*`$\\]", "", said[0]).split())

    def figures(self) -> Iterator[tuple[str, bytes]]:
        """Name and PNG of each figure that it saves, in order."""
        for cell in self.notebook["cells"]:
            names = SAVED.findall("".join(cell["source"])) if cell["cell_type"] == "code" else []
            images = [
                output["data"]["image/png"]
                for output in cell.get("outputs", ())
                if "image/png" in output.get("data", ())
            ]
            yield from (
                (name, base64.b64decode("".join(image)))
                for name, image in zip(names, images, strict=False)
            )


def build(profile: str, notebooks: Path = ROOT / "notebooks", figures: Path | None = None) -> Path:
    """Builds the pages of a profile anew; returns figures/<profile>/index.html. The others are in
    site/ beside it.

    figures: None is CRAT_FIGURES, else the checkout's own.

    What was there stays until the new pages are whole. Raises ConfigError on an unknown profile,
    SiteError where the extra is not installed, the repository is not there, or sphinx fails;
    StoreError where nothing can be written.
    """
    profile = one_of("profile", profile, PROFILES)
    missing = [
        name
        for name in ("sphinx", "myst_nb", "sphinx_book_theme")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SiteError(f"the report as pages needs {', '.join(missing)}: pip install 'crat[site]'")
    home = (figures or store.figures_home()) / profile
    pages = [Page(path, home / path.stem) for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))]
    if not pages or not (ROOT / "docs" / "site" / "conf.py").exists():
        raise SiteError(f"no notebooks in {notebooks}: they come with a clone of the repository")
    store.must_be_writable(home, "CRAT_FIGURES")
    # the same disk: what is ready is renamed
    with tempfile.TemporaryDirectory(prefix=".site-", dir=home) as draft:
        _write_sources(Path(draft, "source"), pages, profile)
        _sphinx(Path(draft))
        _write_thumbnails(Path(draft, "html", "_static", "thumbs"), pages)
        _move_in(Path(draft), home)
    return home / "index.html"


def _write_sources(folder: Path, pages: list[Page], profile: str) -> None:
    """All that sphinx reads: the first page, the notebooks with a note on their origin, the
    tables of docs/.
    """
    docs = {
        path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
    }
    known = {*docs, *(page.stem for page in pages)}
    for page in pages:
        store.write_text(
            folder / f"{page.stem}.ipynb", json.dumps(_annotated(page, profile, known))
        )
    for stem, text in docs.items():
        store.write_text(folder / f"{stem}.md", _relinked(text, known))
    store.write_text(folder / "index.md", _first_page(pages, profile, list(docs)))


def _first_page(pages: list[Page], profile: str, docs: list[str]) -> str:
    """docs/site/index.md.jinja, filled in."""
    import jinja2

    from crat.papers import leaderboard

    templates = jinja2.FileSystemLoader(ROOT / "docs" / "site")
    environment = jinja2.Environment(
        loader=templates, autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("index.md.jinja").render(
        profile=profile,
        evidence=evidence_profile(profile),
        claims=_claims(pages, profile),
        verdicts=VERDICTS,
        board=leaderboard.leaderboard(profile).to_dict("records"),
        columns=("clean", *leaderboard.ROBUST),
        baseline=leaderboard.BASELINE,
        attack=leaderboard.attack_name(profile),
        number=_percent,
        pages=pages,
        pictured={page.stem for page in pages if _thumbnail(page)},
        docs=docs,
    )


def _annotated(page: Page, profile: str, known: set[str]) -> dict[str, Any]:
    """The notebook with a note on where it comes from, alt texts, and links from each figure to
    its files.
    """
    cells: list[dict[str, Any]] = []
    for cell in page.notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            cells.append(cell | {"source": _relinked(source, known)})
            continue
        names = SAVED.findall(source)
        source = source.removeprefix("# NBVAL_IGNORE_OUTPUT\n")  # a word to the tests
        shown = {
            "mystnb": {
                "image": {"alt": f"Figure: {', '.join(names) or 'output of the cell above'}"}
            }
        }
        cells.append(cell | {"source": source, "metadata": cell["metadata"] | shown})
        links = [_files(page, name) for name in names]
        if any(links):
            cells.append(_prose(f'<p class="report-files">{" · ".join(filter(None, links))}</p>'))
    if page.executed:
        note = f"Executed by <code>crat reproduce --profile {profile}</code>."
    else:
        note = (
            f"Shown as committed: there is no finished run of <code>crat reproduce --profile "
            f"{profile}</code> here. "
            "What is live in it ran in the profile quick; what it draws from published runs is the "
            "laptop profile's."
        )
    first = f'<p class="report-origin">{note}</p>'
    return page.notebook | {"cells": [*cells[:1], _prose(first), *cells[1:]]}


def _prose(source: str) -> dict[str, Any]:
    return {
        "cell_type": "markdown",
        "id": store.digest(source)[:16],
        "metadata": {},
        "source": source,
    }


def _files(page: Page, name: str) -> str:
    """Links to a figure's PDF and table, as far as they are there; pages are in site/, beside
    the figures' folders.
    """
    kinds = {"csv": "its numbers (CSV)", "pdf": "PDF"}
    there = {
        suffix: text
        for suffix, text in kinds.items()
        if (page.folder / f"{name}.{suffix}").exists()
    }
    links = [
        f'<a href="../{page.stem}/{name}.{suffix}">{text}</a>' for suffix, text in there.items()
    ]
    return f"{name}: {', '.join(links)}" if links else ""


def _relinked(text: str, known: set[str]) -> str:
    """Markdown whose links to files of the repository lead to their pages; where they have none,
    the words stay.
    """

    def link(found: re.Match) -> str:
        stem = Path(found[2]).stem
        return (
            f'<a href="{stem}.html{found[3] or ""}">{found[1]}</a>' if stem in known else found[1]
        )

    return LOCAL_LINK.sub(link, text)


def _thumbnail(page: Page) -> list[bytes]:
    """The figure that stands for a notebook: its first that is neither a toy nor of the live
    training; [] without.
    """
    drawn = list(page.figures())
    return [png for name, png in drawn if not name.startswith(("toy", "live"))][:1] or [
        png for _, png in drawn
    ][:1]


def _write_thumbnails(folder: Path, pages: list[Page]) -> None:
    folder.mkdir()
    for page in pages:
        for png in _thumbnail(page):
            (folder / f"{page.stem}.png").write_bytes(png)


def _claims(pages: list[Page], profile: str) -> list[dict[str, Any]]:
    """A row per claim of all notebooks: of this profile's runs, or, where there are none, as
    published in results/.
    """
    from crat.analysis import claims

    published = ROOT / "results" / base_run(evidence_profile(profile)).data.name
    rows = []
    for page in pages:
        own, shared = page.folder / "claims.json", published / f"claims_{page.stem[:2]}.json"
        path = own if own.exists() else shared
        if path.exists():
            rows += [_claim_row(row, page, own.exists()) for row in claims.read(path).itertuples()]
    return rows


def _claim_row(row: Any, page: Page, here: bool) -> dict[str, Any]:
    """A claim as it is shown, and what it is sorted by."""
    from crat.analysis import claims

    scale = 100 if row.functional in claims.POINTS else 1
    number = re.search(r"[-+]?\d+(\.\d+)?", row.number.replace("−", "-"))
    return {
        "paper": row.paper,
        "where": row.where,
        "statement": row.statement,
        "setting": row.setting,
        "number": row.number or "–",
        "number_key": float(number[0]) if number else "",
        "ours": re.sub(r"-(?=\d)", "−", claims.ours(row)),
        "ours_key": "" if isnan(row.value) else scale * row.value,
        "verdict": row.verdict,
        "verdict_key": VERDICTS.index(row.verdict),
        "stem": page.stem,
        "here": here,
    }


def _percent(mean: float, sd: float) -> str:
    """Fractions as percent, with the sd where there is one."""
    return f"{100 * mean:.1f}" + ("" if isnan(sd) else f" ± {100 * sd:.1f}")


def _sphinx(draft: Path) -> None:
    """Runs sphinx in a process of its own; its warnings go to stderr."""
    folders = [draft / "source", draft / "html"]
    words = [
        "-m",
        "sphinx",
        "-q",
        "-b",
        "html",
        "-c",
        ROOT / "docs" / "site",
        "-d",
        draft / "doctrees",
        *folders,
    ]
    run = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    said = run.stderr.replace(f"{draft / 'source'}{os.sep}", "").strip()
    if run.returncode:
        raise SiteError(f"sphinx failed: {said.splitlines()[-1] if said else run.returncode}")
    if said:
        print(said, file=sys.stderr)


def _move_in(draft: Path, home: Path) -> None:
    """Puts whole pages in the place of the old ones; the first page moves up, beside the
    figures' folders.
    """
    html, site = draft / "html", home / "site"
    for name in (".buildinfo", "objects.inv", "search.html"):
        (html / name).unlink(missing_ok=True)
    first = ADDRESS.sub(
        lambda m: f'{m[1]}="{_from_above(m[2])}"', (html / "index.html").read_text(encoding="utf-8")
    )
    (html / "index.html").unlink()
    for page in html.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        store.write_text(page, re.sub(r'href="(\./)?index\.html', 'href="../index.html', text))
    if site.exists():
        site.rename(draft / "old")
    html.rename(site)
    store.write_text(home / "index.html", first)


def _from_above(address: str) -> str:
    """An address of the page site/index.html as seen from the folder above."""
    return (
        address
        if address.startswith("index.html")
        else os.path.normpath(f"site/{address}") + "/" * address.endswith("/")
    )
