"""`crat site`: the report as pages, with claims, leaderboard and the executed notebooks.

    figures/<profile>/*/ -> sources -> sphinx (docs/site) -> figures/<profile>/site/

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

from crat import store
from crat.batch import explorer
from crat.batch.notebook import ROOT
from crat.config import PROFILES
from crat.config import profile as base_run
from crat.names import one_of
from crat.papers.common import claims_file, evidence_profile
from crat.text import percent

SAVED = re.compile(r'plots\.save\(.*"(\w+)"\)')
VERDICTS = ("supported", "reversed", "no effect", "undecided", "not run")
UNUSED = (".buildinfo", "objects.inv", "search.html")  # files of sphinx


class SiteError(RuntimeError):
    """A failed build of the pages: one line with what to do."""


@dataclass(frozen=True)
class Page:
    """A notebook of the report: as executed for this profile, else as committed."""

    committed: Path
    folder: Path  # figures/<profile>/<stem>, with the files of its run

    @property
    def stem(self) -> str:
        """The name of the notebook and of its page."""
        return self.committed.stem

    @property
    def executed(self) -> bool:
        """Whether its folder holds a finished run of it."""
        output = self.folder / self.committed.name
        return output.exists() and (self.folder / "success.json").exists()

    @cached_property
    def notebook(self) -> dict[str, Any]:
        """The content of the page; raises SiteError where the file is no notebook."""
        path = self.folder / self.committed.name if self.executed else self.committed
        try:
            notebook = json.loads(path.read_text(encoding="utf-8"))
            return notebook | {"cells": list(notebook["cells"])}
        except (OSError, ValueError, KeyError) as error:
            raise SiteError(f"{path} is no notebook ({error})") from None

    @property
    def title(self) -> str:
        """The first heading."""
        prose = [c["source"] for c in self.notebook["cells"] if c["cell_type"] == "markdown"]
        heading = re.search(r"^# +(.+)$", "\n".join(map("".join, prose)), re.MULTILINE)
        return heading[1].strip() if heading else self.stem

    @property
    def sentence(self) -> str:
        """The claim in one sentence, else the first paragraph, without marks of markdown."""
        title, *paragraphs = re.split(r"\n\s*\n", "".join(self.notebook["cells"][0]["source"]))
        said = [p for p in paragraphs if re.match(r"\*\*[^*]*one sentence", p)]
        first = [*said, *paragraphs, title][0]
        return " ".join(re.sub(r"^\*\*[^*]*\*\*|[*`$\\]", "", first).split())

    def figures(self) -> Iterator[tuple[str, bytes]]:
        """The name and PNG of each saved figure, in order."""
        for cell in self.notebook["cells"]:
            if cell["cell_type"] != "code":
                continue
            names = SAVED.findall("".join(cell["source"]))
            shown = [output.get("data", {}) for output in cell.get("outputs", ())]
            images = ["".join(data["image/png"]) for data in shown if "image/png" in data]
            yield from zip(names, map(base64.b64decode, images), strict=False)

    def thumbnail(self) -> bytes | None:
        """The PNG that stands for it, preferably neither a toy nor of the live training."""
        drawn = list(self.figures())
        chosen = [png for name, png in drawn if not name.startswith(("toy", "live"))]
        return next(iter([*chosen, *(png for _, png in drawn)]), None)

    def links(self, name: str) -> str:
        """The links from site/notebooks/<stem>.html to a figure's PDF and table, as HTML."""
        kinds = {"csv": "its numbers (CSV)", "pdf": "PDF"}
        links = [
            f'<a href="../../{self.stem}/{name}.{suffix}">{text}</a>'
            for suffix, text in kinds.items()
            if (self.folder / f"{name}.{suffix}").exists()
        ]
        return f"{name}: {', '.join(links)}" if links else ""


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
    pages = [Page(path, home / path.stem) for path in paths]
    if not pages or not (ROOT / "docs" / "site" / "conf.py").exists():
        raise SiteError(f"no notebooks in {notebooks}: they come with a clone of the repository")
    store.must_be_writable(home, "CRAT_FIGURES")
    with tempfile.TemporaryDirectory(prefix=".site-", dir=home) as draft:  # on the same disk
        html = Path(draft, "html")
        _write_sources(Path(draft, "source"), pages, profile)
        _sphinx(Path(draft))
        _write_thumbnails(html / "_static" / "thumbs", pages)
        explorer.write_numbers(html)
        for name in UNUSED:
            (html / name).unlink(missing_ok=True)
        if (home / "site").exists():
            (home / "site").rename(Path(draft, "old"))
        html.rename(home / "site")
    return index_of(home)


def _write_sources(folder: Path, pages: list[Page], profile: str) -> None:
    """Writes the sources for sphinx: the first page, and the notebooks and tables.

    Their folders are the repository's, so that their links to each other lead where they do there.
    """
    docs = sorted((ROOT / "docs").glob("*.md"))
    for page in pages:
        text = json.dumps(_annotated(page, profile))
        store.write_text(folder / "notebooks" / f"{page.stem}.ipynb", text)
    for path in docs:
        store.write_text(folder / "docs" / path.name, path.read_text(encoding="utf-8"))
    explorer.write_page(folder)
    first = _first_page(pages, profile, [path.stem for path in docs])
    store.write_text(folder / "index.md", first)


def _first_page(pages: list[Page], profile: str, docs: list[str]) -> str:
    """The first page: docs/site/index.md.jinja, filled in."""
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
        pictured={page.stem for page in pages if page.thumbnail()},
        docs=docs,
    )


def _annotated(page: Page, profile: str) -> dict[str, Any]:
    """The notebook with a note on its origin, alt texts, and links from figures to their files."""
    cells: list[dict[str, Any]] = []
    for cell in page.notebook["cells"]:
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        source = "".join(cell["source"])
        names = SAVED.findall(source)
        alt = f"Figure: {', '.join(names) or 'output of the cell above'}"
        metadata = cell["metadata"] | {"mystnb": {"image": {"alt": alt}}}
        source = source.removeprefix("# NBVAL_IGNORE_OUTPUT\n")  # for the tests only
        cells.append(cell | {"source": source, "metadata": metadata})
        links = " · ".join(filter(None, map(page.links, names)))
        if links:
            cells.append(_prose(f'<p class="report-files">{links}</p>'))
    command = f"<code>crat reproduce --profile {profile}</code>"
    note = f"Executed by {command}."
    if not page.executed:
        note = (
            f"Shown as committed: there is no finished run of {command} here. What is live in it "
            "ran in the profile quick; what it draws from published runs is the laptop profile's."
        )
    first = _prose(f'<p class="report-origin">{note}</p>')
    return page.notebook | {"cells": [*cells[:1], first, *cells[1:]]}


def _prose(source: str) -> dict[str, Any]:
    cell = {"cell_type": "markdown", "metadata": {}, "source": source}
    return cell | {"id": store.digest(source)}


def _write_thumbnails(folder: Path, pages: list[Page]) -> None:
    folder.mkdir()
    for page in pages:
        if png := page.thumbnail():
            (folder / f"{page.stem}.png").write_bytes(png)


def _claims(pages: list[Page], profile: str) -> list[dict[str, Any]]:
    """A row for each claim, of this profile's runs or, where there are none, as published.

    The columns *_key are for sorting.
    """
    from crat.analysis import claims

    published = ROOT / "results" / base_run(evidence_profile(profile)).data.name
    rows = []
    for page in pages:
        own = page.folder / "claims.json"
        path = own if own.exists() else published / claims_file(page.stem[:2], profile)
        for row in claims.read(path).itertuples() if path.exists() else ():
            number = re.search(r"[-+]?\d+(\.\d+)?", row.number.replace("−", "-"))
            scale = 100 if row.functional in claims.POINTS else 1
            shown = {
                "number_key": float(number[0]) if number else "",
                "ours": re.sub(r"-(?=\d)", "−", claims.ours(row)),
                "ours_key": "" if isnan(row.value) else scale * row.value,
                "verdict_key": VERDICTS.index(row.verdict),
                "stem": page.stem,
                "here": path == own,
            }
            rows.append(row._asdict() | shown)
    return rows


def _percent(mean: float, sd: float) -> str:
    """A fraction in percent, with its sd where there is one."""
    return percent(mean) + ("" if isnan(sd) else f" ± {percent(sd)}")


def _sphinx(draft: Path) -> None:
    """Runs sphinx in a child process and prints its warnings to stderr; raises SiteError."""
    source = draft / "source"
    words = ["-m", "sphinx", "-q", "-b", "html", "-c", str(ROOT / "docs" / "site")]
    words += ["-d", str(draft / "doctrees"), str(source), str(draft / "html")]
    env = os.environ | {"NO_COLOR": "1"}
    command = [sys.executable, "-X", "utf8", *words]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=env)
    said = run.stderr.replace(f"{source}{os.sep}", "").strip()
    if run.returncode:
        raise SiteError(f"sphinx failed: {said.splitlines()[-1] if said else run.returncode}")
    if said:
        print(said, file=sys.stderr)
