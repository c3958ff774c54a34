"""The first page of the report: what was found, on which data, the leaderboard, the claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crat.analysis.claims import SETTINGS
from crat.batch.estimates import images
from crat.batch.notebook import ROOT
from crat.batch.pages import Page
from crat.batch.rows import Row, claims_of, counted, dataset_title, in_words, varying
from crat.config import DATASETS
from crat.config import profile as base_run
from crat.papers.common import BASELINE, evidence_profile
from crat.text import percent

KEY_PICTURE = ("01", "classes")  # notebook and name of the figure that stands first
COMMITTED = "laptop"  # the profile whose runs the committed notebooks draw
NAMED = "AT"  # the method whose best and worst class are told
DECIDED = ("supported", "reversed", "no effect")
DARK = 0.84  # from this share on, white is more legible than black on a cell of the heat map


@dataclass(frozen=True)
class Board:
    """The leaderboard of a profile on a data set (crat.papers.leaderboard)."""

    data: str  # name of the data set
    file: str  # name of the tables for downloading, without their ends
    methods: pd.DataFrame  # of `leaderboard`
    classes: pd.DataFrame  # of `by_class`
    columns: tuple[str, ...]  # of methods that are shown
    seeds: tuple[int, ...]
    attack: str
    baseline: str
    compared: Mapping[str, str]  # method -> the address of its comparison with the baseline

    @property
    def title(self) -> str:
        """The data set as it is written."""
        return dataset_title(self.data)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The methods, a row each."""
        return self.methods.to_dict("records")

    @property
    def heat(self) -> list[tuple[str, list[tuple[float, float]]]]:
        """The classes of each method with their shades (`shaded`)."""
        return shaded(self.classes)


def first_page(
    pages: Sequence[Page], profile: str, boards: Sequence[Board], folders: Mapping[str, Any]
) -> str:
    """The first page in markdown: docs/site/index.md.jinja, filled in.

    boards: that of the profile's own data set, then any others.
    folders: the other pages, by the heading under which they are listed.
    """
    papers = [paper for page in pages if (paper := _paper(page, profile))]
    rows = [row for paper in papers for row in paper["rows"]]
    return _template().render(
        setting=setting(pages, profile, boards[0].seeds),
        picture=key_picture(pages, profile),
        all_elsewhere=bool(rows) and {row["setting"] for row in rows} == {SETTINGS[1]},
        findings=findings(boards[0], rows),
        papers=papers,
        counts=counted(rows),
        boards=boards,
        number=_mean_sd,
        percent=percent,
        dark=DARK,
        pages=pages,
        origin=_origin,
        origins=sorted({_origin(page) for page in pages}),
        thumbnails={page.stem: page.thumbnail() for page in pages},
        **folders,
    )


def _template() -> Any:
    import jinja2

    templates = jinja2.FileSystemLoader(ROOT / "docs" / "site")
    environment = jinja2.Environment(
        loader=templates, autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("index.md.jinja")


def _paper(page: Page, profile: str) -> dict[str, Any]:
    """The claims of a notebook, counted, and the columns that tell them apart; {} without any."""
    rows = claims_of(page, profile)
    if not rows:
        return {}
    counts = counted(rows)
    return {
        "page": page,
        "rows": rows,
        "counts": counts,
        "words": f"{len(rows)} claims: {in_words(counts)}",
        "columns": varying(rows, ("number", "setting")),
        "here": rows[0]["here"],
    }


def setting(pages: Sequence[Page], profile: str, seeds: Sequence[int]) -> str:
    """A line on data, network, profile, seeds and attack of the numbers on the page."""
    evidence = evidence_profile(profile)
    run = base_run(evidence).resolved()
    spec = DATASETS[run.data.name]
    epsilon, steps = spec.protocol.eps, spec.protocol.test_steps
    words = [
        f"Data: {dataset_title(run.data.name)}, {images(run):,} training and"
        f" {spec.test_images:,} test images{_besides(pages, evidence)}.",
        f"Network: {run.model.name}, {run.train.epochs} epochs.",
        f"Profile: {evidence}{'' if evidence == profile else ', as published'}.",
        f"Seeds: {', '.join(map(str, seeds)) or 'none is published'}.",
        f"Attack: PGD-{steps}, ε = {epsilon}.",
    ]
    return " ".join(words)


def _besides(pages: Sequence[Page], evidence: str) -> str:
    """The data sets besides the profile's own, with the notebooks that have runs on them."""
    main = base_run(evidence).data.name
    numbers: dict[str, list[str]] = {}
    for page in pages:
        for name in sorted({run.data.name for run in page.plan(evidence).values()} - {main}):
            numbers.setdefault(name, []).append(page.number)
    besides = [f"{dataset_title(name)} ({', '.join(of)})" for name, of in numbers.items()]
    return f"; runs of some notebooks are on {', '.join(besides)}" if besides else ""


def findings(board: Board, rows: Sequence[Row]) -> list[str]:
    """The sentences that say what is found: one on classes, one on methods, one on claims (rows).

    What there are no numbers of is left out.
    """
    said = []
    if NAMED in board.classes.index:
        at = board.classes.loc[NAMED]
        said.append(
            f"Under {board.attack} an adversarially trained network ({NAMED}) keeps"
            f" {100 * at.max():.0f} of 100 test images of its best class ({at.idxmax()}), and"
            f" {100 * at.min():.0f} of its worst ({at.idxmin()})."
        )
    if not board.methods.empty:
        said.append(_of_methods(board.methods))
    if rows:
        said.append(_of_claims(counted(rows)))
    return said


def _of_claims(counts: Mapping[str, int]) -> str:
    """A sentence on the claims: those decided, and those that are not."""
    told = {verdict: n for verdict, n in counts.items() if verdict in DECIDED}
    rest = {verdict: n for verdict, n in counts.items() if verdict not in DECIDED}
    all_of, decided = sum(counts.values()), sum(told.values())
    said = f"Of {all_of} claims, most of them the papers’, {decided} are decided"
    said += f": {in_words(told)}" if told else ""
    return f"{said}. The others: {in_words(rest)}." if rest else f"{said}."


def _of_methods(board: pd.DataFrame) -> str:
    """A sentence on the method of the best worst class, and that of the best average."""
    fair = board.loc[board.worst.idxmax()]
    robust = board.loc[board.average.idxmax()]
    others = board[(board.method == BASELINE) & ~board.method.isin((fair.method, robust.method))]
    beside = "".join(
        f"; {base.method} has {percent(base.worst)} and {percent(base.average)} %"
        for base in others.itertuples()
    )
    if fair.method == robust.method:
        return (
            f"{fair.method} has both the best worst class ({percent(fair.worst)} %) and the best"
            f" average ({percent(fair.average)} %) of the {len(board)} methods{beside}."
        )
    return (
        f"No method is best in both: {fair.method} has the best worst class ({percent(fair.worst)}"
        f" %, average {percent(fair.average)} %), {robust.method} the best average"
        f" ({percent(robust.average)} %, worst class {percent(robust.worst)} %){beside}."
    )


def shaded(classes: pd.DataFrame) -> list[tuple[str, list[tuple[float, float]]]]:
    """Each method with its classes' accuracies and shades: 0 for the table's lowest, 1 highest."""
    values = classes.to_numpy(float)
    if not values.size:
        return []
    low, range_ = values.min(), np.ptp(values) or 1.0
    shades = (values - low) / range_
    return [
        (str(method), list(zip(row.tolist(), shade.tolist(), strict=True)))
        for method, row, shade in zip(classes.index, values, shades, strict=True)
    ]


def _origin(page: Page) -> str:
    return "as executed for this profile" if page.executed else "as committed"


def key_picture(pages: Sequence[Page], profile: str) -> dict[str, Any] | None:
    """The figure that stands first, with the page that it is from; None where it is not drawn.

    A committed notebook draws the laptop's runs, so it has no such figure for a larger profile.
    """
    number, name = KEY_PICTURE
    for page in pages:
        own = page.executed or evidence_profile(profile) == COMMITTED
        for figure in page.figures() if own and page.number == number else ():
            if figure.name == name:
                return {"page": page, "figure": figure}
    return None


def write_pictures(folder: Path, pages: Sequence[Page], profile: str) -> None:
    """Writes the pictures of the first page into a new folder."""
    folder.mkdir()
    for page in pages:
        if figure := page.thumbnail():
            (folder / f"{page.stem}.png").write_bytes(figure.png)
    if first := key_picture(pages, profile):
        (folder / "first.png").write_bytes(first["figure"].png)


def _mean_sd(mean: float, sd: float) -> str:
    """A fraction in percent, with its sd where there is one."""
    return percent(mean) + ("" if isnan(sd) else f" ± {percent(sd)}")
