"""A page for each paper in the form of a reproducibility report.

claims.json, the paper's runs and their published cards -> results, commands, minutes, hardware
docs/reproducibility/<number>.md                        -> scope, what was easy, what difficult
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from crat.batch.notebook import ROOT
from crat.batch.pages import Page, SiteError
from crat.batch.rows import Row, claims_of, counted, dataset_title
from crat.config import profile as base_run
from crat.papers.common import evidence_profile
from crat.training.run import Run

WRITTEN = ROOT / "docs" / "reproducibility"
SECTIONS = ("Scope", "What was easy", "What was difficult")  # what is written by hand
# verdict -> its mark; the two others have none, for they reproduce nothing and refute nothing
MARKS = {"supported": "[Re]", "reversed": "[not Re]", "no effect": "[not Re]"}


@dataclass(frozen=True)
class Cost:
    """What the runs of a notebook on some data sets took, by their cards."""

    published: int
    asked: int
    minutes: float  # of training
    devices: tuple[str, ...]

    @property
    def hardware(self) -> str:
        """The devices in words."""
        return " and ".join(self.devices).replace(", 1 threads", ", one thread") or "none yet"

    @classmethod
    def of(cls, runs: Iterable[Run]) -> Cost:
        """The cost of runs; each name counts once, and a run without a published card costs 0."""
        by_name = {run.name: run for run in runs}
        cards = [run.card() for run in by_name.values() if run.published]
        return cls(
            published=len(cards),
            asked=len(by_name),
            minutes=sum(card["train_seconds"] for card in cards) / 60,
            devices=tuple(sorted({card["device"] for card in cards})),
        )


def report(page: Page, profile: str) -> str:
    """The report on the papers of a notebook, in markdown; "" where it claims nothing.

    Raises SiteError where what is written by hand is missing.
    """
    rows = claims_of(page, profile)
    if not rows:
        return ""
    written = sections(page.number)
    runs = {key: Run.of(config) for key, config in page.plan(profile).items()}
    heading = f"# Reproducibility report: {page.title}\n"
    parts = [heading, _head(page, rows), written.pop("Scope"), _results(page, rows, runs, profile)]
    parts += [_minutes(runs), *written.values()]
    return "\n".join(parts)


def sections(number: str) -> dict[str, str]:
    """The sections of docs/reproducibility/<number>.md with their headings, by name, in order.

    Raises SiteError where the file or one of SECTIONS is missing.
    """
    path = WRITTEN / f"{number}.md"
    if not path.exists():
        raise SiteError(f"{path} is missing: a paper with claims has its scope written there")
    parts = path.read_text(encoding="utf-8").split("\n## ")[1:]
    found = {part.partition("\n")[0].strip(): f"\n## {part.strip()}\n" for part in parts}
    missing = [name for name in SECTIONS if name not in found]
    if missing:
        raise SiteError(f"{path} has no section {', '.join(missing)}")
    return found


def _head(page: Page, rows: Sequence[Row]) -> str:
    counts = counted(rows)
    reproduced = counts.get("supported", 0)
    refuted = sum(n for verdict, n in counts.items() if MARKS.get(verdict) == "[not Re]")
    return (
        f"{len(rows)} claims: {reproduced} reproduced [Re], {refuted} not reproduced [not Re],"
        f" {counts.get('undecided', 0)} undecided, {counts.get('not run', 0)} not run."
        f" [The notebook](../../notebooks/{page.stem}.ipynb) has the evidence,"
        " [the rules](../claims.md) say how a claim is decided.\n"
    )


def _results(page: Page, rows: Sequence[Row], runs: dict[str, Run], profile: str) -> str:
    """The section of the claims: a table for each data set that decides some of them."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["dataset"]].append(row)
    lines = ["\n## What was reproduced, and what was not\n"]
    lines.append(
        "[Re]: supported, the interval lies on the claimed side. [not Re]: reversed, or no effect,"
        " the difference being smaller than what would matter. Undecided and not run claims are"
        f" neither. Setting of all claims: {_settings(rows)}.\n"
    )
    for dataset, own in groups.items():
        data = dataset or _main_data(profile, runs)
        lines += [f"### {dataset_title(data)}\n", _command(page, runs, dataset, profile)]
        lines.append(_table(own))
    return "\n".join(lines)


def _settings(rows: Sequence[Row]) -> str:
    return " and ".join(sorted({row["setting"] for row in rows}))


def _main_data(profile: str, runs: dict[str, Run]) -> str:
    """The data set of a notebook's main runs."""
    used = [run.config.data.name for run in runs.values()]
    main = base_run(evidence_profile(profile)).data.name
    return main if main in used else used[0]


def _command(page: Page, runs: dict[str, Run], dataset: str, profile: str) -> str:
    """The line above a table: the command that decides its claims, its minutes and hardware.

    dataset: the one that decides them, where it is not that of the notebook's main runs.
    """
    own = [run for run in runs.values() if not dataset or run.config.data.name == dataset]
    line = f"`crat reproduce {page.number} --profile {evidence_profile(profile)} --recompute`"
    cost = Cost.of(own)
    if not cost.published:
        unknown = "so neither minutes nor hardware are known"
        return f"{line}. None of its {cost.asked} runs is published, {unknown}.\n"
    runs_of = f"{cost.published} of {cost.asked}" if cost.published < cost.asked else cost.asked
    return (
        f"{line}: {runs_of} runs, {cost.minutes:.0f} minutes of training on"
        f" {cost.hardware}. A claim needs a part of them; attacking the trained"
        " networks is not in the minutes. Without `--recompute` the same command reads the"
        " published logits and trains the live example only.\n"
    )


def _table(rows: Sequence[Row]) -> str:
    """The claims as an HTML table: mark and verdict, the claim, the paper's number and ours."""
    numbered = any(row["number"] for row in rows)
    header = ["Result", "Claim", *(["Its number"] if numbered else []), "Ours, 95 % interval"]
    lines = [
        '```{raw} html\n<table class="report-table report-cards report-results"><thead><tr>',
        *(f'<th scope="col">{name}</th>' for name in header),
        "</tr></thead><tbody>",
    ]
    for row in rows:
        cells = [_result(row), _said(row)]
        cells += [escape(row["number"]) or "–"] if numbered else []
        cells.append("–" if row["ours"] == "-" else escape(row["ours"]))
        labelled = zip(header, cells, strict=True)
        tds = "".join(f'<td data-label="{name}">{cell}</td>' for name, cell in labelled)
        lines.append(f'<tr data-verdict="{row["verdict"]}">{tds}</tr>')
    return "\n".join([*lines, "</tbody></table>\n```\n"])


def _result(row: Row) -> str:
    mark = MARKS.get(row["verdict"])
    verdict = f'<span class="verdict" data-verdict="{row["verdict"]}">{row["verdict"]}</span>'
    return f"<div><strong>{mark}</strong> {verdict}</div>" if mark else verdict


def _said(row: Row) -> str:
    source = escape(f"{row['paper']}, {row['where']}")
    link = f'<a class="report-link" href="../../index.html#{row["id"]}">#</a>'
    return f"<div><small>{source}</small>{escape(row['statement'])} {link}</div>"


def _minutes(runs: dict[str, Run]) -> str:
    """The section on minutes and hardware: a row for each method and data set."""
    groups = defaultdict(list)
    for run in runs.values():
        train, data = run.config.train, run.config.data
        images = f"{dataset_title(data.name)}, {train.epochs} epochs"
        groups[train.defense, images].append(run)
    lines = ["\n## Minutes and hardware\n", "| training | data | runs | minutes in all |"]
    lines.append("|---|---|---|---|")
    for (defense, images), own in groups.items():
        cost = Cost.of(own)
        minutes = f"{cost.minutes:.0f}" if cost.published else "not known"
        lines.append(f"| `{defense}` | {images} | {cost.asked} | {minutes} |")
    whole = Cost.of(runs.values())
    lines.append(f"| all | | {whole.asked} | {whole.minutes:.0f} |")
    lines.append(
        f"\nHardware: {whole.hardware}. The minutes are the `train_seconds` of the published cards"
        " (`results/*/*/card.json`). Notebooks share runs, so the minutes of several pages do not"
        " add up.\n"
    )
    return "\n".join(lines)
