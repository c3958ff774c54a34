"""The notebooks as pages of the report: what stands in them, and the words for their figures."""

from __future__ import annotations

import ast
import base64
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from crat import store
from crat.analysis.claims import Claim
from crat.batch.notebook import ROOT
from crat.papers.common import Runs, evidence_profile

Cell = dict[str, Any]

SAVED = re.compile(r'plots\.save\(.*"(\w+)"\)')
PLOTS = ROOT / "crat" / "plots"
LONGEST_ALT, SHORTEST_READING = 300, 45  # characters
# what a summary says to those who call the function
PANELS = re.compile(r",? a panel (?:for )?each[^.;:]*|; columns .*")
LETTERS = {"varepsilon": "ε", "lambda": "λ", "beta": "β", "delta": "δ", "eta": "η", "le": "≤"}
# a picture from elsewhere, such as the badge of a service, by its words
BADGE = re.compile(r"!\[([^\]]*)\]\(https?:[^)]*\)")


class SiteError(RuntimeError):
    """A failed build of the pages: one line with what to do."""


@dataclass(frozen=True)
class Picture:
    """A figure that a notebook shows."""

    name: str  # of its files
    png: bytes
    alt: str  # what it shows, in words


@dataclass(frozen=True)
class Page:
    """A notebook of the report: as executed for this profile, else as committed."""

    committed: Path
    folder: Path  # figures/<profile>/<stem>, with the files of its run
    paper: ModuleType | None = None  # of crat.papers: its plan of runs, and its claims

    @property
    def stem(self) -> str:
        """The name of the notebook and of its page."""
        return self.committed.stem

    @property
    def number(self) -> str:
        """The first characters of the name, such as "04"."""
        return self.stem[:2]

    @property
    def claims(self) -> dict[str, Claim]:
        """The claims that its paper declares, by key."""
        return getattr(self.paper, "CLAIMS", {})

    def plan(self, profile: str) -> Runs:
        """The runs that figures and claims are drawn from, by key; none for an exercise."""
        if self.paper is None:
            return {}
        asked: Runs = self.paper.plan(evidence_profile(profile))
        return {key: run for key, run in asked.items() if key != "live"}

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
        prose = [_source(c) for c in self.notebook["cells"] if c["cell_type"] == "markdown"]
        heading = re.search(r"^# +(.+)$", "\n".join(prose), re.MULTILINE)
        return heading[1].strip() if heading else self.stem

    @property
    def sentence(self) -> str:
        """The claim in one sentence, else the first paragraph, without marks of markdown."""
        title, *paragraphs = re.split(r"\n\s*\n", _source(self.notebook["cells"][0]))
        said = [p for p in paragraphs if re.match(r"\*\*[^*]*one sentence", p)]
        first = [*said, *paragraphs, title][0]
        return plain(re.sub(r"^\*\*[^*]*\*\*", "", first))

    def figures(self) -> Iterator[Picture]:
        """The saved figures, in order."""
        cells = self.notebook["cells"]
        for place, cell in enumerate(cells):
            if cell["cell_type"] != "code":
                continue
            names = SAVED.findall(_source(cell))
            shown = [output.get("data", {}) for output in cell.get("outputs", ())]
            images = ["".join(data["image/png"]) for data in shown if "image/png" in data]
            for name, image in zip(names, images, strict=False):
                yield Picture(name, base64.b64decode(image), alt_text(cells, place))

    def thumbnail(self) -> Picture | None:
        """The figure that stands for it, preferably neither a toy nor of the live training."""
        drawn = list(self.figures())
        chosen = [figure for figure in drawn if not figure.name.startswith(("toy", "live"))]
        return next(iter([*chosen, *drawn]), None)

    def links(self, name: str) -> str:
        """The links from site/notebooks/<stem>.html to a figure's PDF and table, as HTML."""
        kinds = {"csv": "its numbers (CSV)", "pdf": "PDF"}
        links = [
            f'<a href="../../{self.stem}/{name}.{suffix}">{text}</a>'
            for suffix, text in kinds.items()
            if (self.folder / f"{name}.{suffix}").exists()
        ]
        return f"{name}: {', '.join(links)}" if links else ""


def annotated(page: Page, profile: str) -> dict[str, Any]:
    """The notebook with a note on its origin, alt texts, and links from figures to their files."""
    cells: list[Cell] = []
    for place, cell in enumerate(page.notebook["cells"]):
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        source = _source(cell)
        alt = alt_text(page.notebook["cells"], place)
        metadata = cell["metadata"] | {"mystnb": {"image": {"alt": alt}}}
        shown = source.removeprefix("# NBVAL_IGNORE_OUTPUT\n")  # for the tests only
        cells.append(cell | {"source": shown, "metadata": metadata})
        links = " · ".join(filter(None, map(page.links, SAVED.findall(source))))
        if links:
            cells.append(_prose(f'<p class="report-files">{links}</p>'))
    command = f"<code>crat reproduce --profile {profile}</code>"
    note = f"Executed by {command}."
    if not page.executed:
        note = (
            f"Shown as committed: there is no finished run of {command} here. What is live in it "
            "ran in the profile quick; what it draws from published runs is the laptop profile's."
        )
    return page.notebook | {"cells": [*cells[:1], _note(note), *cells[1:]]}


def exercise(path: Path) -> dict[str, Any]:
    """An exercise of the course with a note on what it is; pictures from elsewhere are words.

    Raises SiteError where the file is no notebook.
    """
    notebook = Page(path, path.parent / "never run").notebook
    cells = []
    for cell in notebook["cells"]:
        prose = cell["cell_type"] == "markdown"
        cells.append(cell | {"source": BADGE.sub(r"\1", _source(cell))} if prose else cell)
    note = _note(
        "An exercise, to be read here and solved in JupyterLab; nothing in it has been run."
    )
    return notebook | {"cells": [*cells[:1], note, *cells[1:]]}


def _note(text: str) -> Cell:
    return _prose(f'<p class="report-origin">{text}</p>')


def _prose(source: str) -> Cell:
    cell = {"cell_type": "markdown", "metadata": {}, "source": source}
    return cell | {"id": store.digest(source)}


def _source(cell: Cell) -> str:
    return "".join(cell["source"])


def alt_text(cells: Sequence[Cell], place: int) -> str:
    """What the figure of a code cell shows, in words, for readers who do not see it.

    The heading of its section; what is drawn, by the summary of the plot function, or else by the
    names of the axes; and the sentence that reads it, which is the first of the prose below the
    cell unless that begins with a heading, asks a question or is a word or two. Where nothing is
    known, the last sentence of the prose above.
    """
    heading = ""
    above = ""
    for cell in cells[:place]:
        if cell["cell_type"] == "markdown":
            above = _source(cell)
            found = re.findall(r"^#+ +(.+)$", above, re.MULTILINE)
            heading = re.sub(r"^[\d.]+ ", "", plain(found[-1])) if found else heading
    read = _first_sentence(cells[place + 1]) if place + 1 < len(cells) else ""
    said = " ".join(filter(None, (_drawn(_source(cells[place])), read)))
    return shortened(": ".join(filter(None, (heading, said or _sentences(above)[-1]))))


def _first_sentence(cell: Cell) -> str:
    """The sentence of a cell of prose that reads the figure above it; "" where none does."""
    source = _source(cell).strip()
    if cell["cell_type"] != "markdown" or source.startswith(("#", "|", "$$", "<")):
        return ""
    first = _sentences(source)[0]
    reads = len(first) >= SHORTEST_READING and first.endswith(".") and "table" not in first
    return first if reads else ""


def _sentences(text: str) -> list[str]:
    """The sentences of markdown, headings and formulas left out; at least one, perhaps empty."""
    text = re.sub(r"^#[^\n]*|\$\$.*?\$\$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.split(r"(?<=[.!?]) +(?=[A-Z(*])|(?<=:) *$", plain(text)) or [""]


def _drawn(source: str) -> str:
    """The summary of the plot function that a cell calls, or its axes, and the title it gives."""
    called = re.findall(r"plots\w*\.(\w+)\(", source)
    summaries = [_summaries()[name] for name in called if name in _summaries()]
    words = PANELS.sub("", summaries[0]) if summaries else ""
    x, y = (_argument(f"{axis}label", source) or _argument(axis, source) for axis in "xy")
    if not words and x and y:
        words = f"{y} over {x}"
    title = _argument("title", source)
    said = " · ".join(filter(None, (plain(words).rstrip("."), plain(title).rstrip("."))))
    return f"{said}." if said else ""


def _argument(name: str, source: str) -> str:
    """The text that a cell gives as an argument or a variable of this name, up to a brace."""
    given = re.search(rf'\b{name} ?= ?f?"([^"{{]+)"', source)
    return given[1] if given else ""


@cache
def _summaries() -> dict[str, str]:
    """The first line of the docstring of each function that draws a figure."""
    summaries: dict[str, str] = {}
    for path in sorted(PLOTS.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name):
                drawn = node.returns.id == "Figure"
                said = (ast.get_docstring(node) or "") if drawn else ""
                summaries |= {node.name: said.partition("\n")[0]} if said else {}
    return summaries


def plain(text: str) -> str:
    """Markdown as words in one line: no marks, the words of links, formulas as letters."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\\([a-z]+)", lambda name: LETTERS.get(name[1], name[1]), text)
    text = re.sub(r"\b(\w)_\{?(\w+)\}?", r"\1\2", text)  # the index of a letter
    return " ".join(re.sub(r"[*`$\\]", "", text).replace("_", " ").split())


def shortened(text: str, longest: int = LONGEST_ALT) -> str:
    """The text, cut between two words where it is longer than that, with an ellipsis."""
    if len(text) <= longest:
        return text
    return text[: longest - 1].rsplit(" ", 1)[0].rstrip(",;:") + "…"
