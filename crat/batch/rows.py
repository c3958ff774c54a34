"""The claims as the pages of the report show them: a row for each, and the verdicts counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from math import isnan
from pathlib import Path
from typing import Any

from crat.batch.notebook import ROOT
from crat.batch.pages import Page
from crat.config import profile as base_run
from crat.papers.common import claims_file, evidence_profile
from crat.store import digest

Row = dict[str, Any]

VERDICTS = ("supported", "reversed", "no effect", "undecided", "not run")
TITLES = {
    "fashion_mnist": "Fashion-MNIST",
    "fashion_mnist_mini": "the shipped subset of Fashion-MNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
}


def claims_of(page: Page, profile: str) -> list[Row]:
    """A row for each claim of a notebook: of this profile's run or, without one, as published.

    The columns *_key are for sorting, id is the address of the row on the first page, here says
    whether the claims are this run's.
    """
    from crat.analysis import claims

    own = page.folder / "claims.json"
    path = own if own.exists() else _published(page, profile)
    if not path.exists():
        return []
    ids = _ids(page)
    rows = []
    for row in claims.read(path).itertuples():
        number = re.search(r"[-+]?\d+(\.\d+)?", row.number.replace("−", "-"))
        scale = 100 if row.functional in claims.POINTS else 1
        said = (row.paper, row.statement)
        shown = {
            "id": f"claim-{page.number}-{ids.get(said) or digest(said)[:6]}",
            "number_key": float(number[0]) if number else "",
            "ours": re.sub(r"-(?=\d)", "−", claims.ours(row)),
            "ours_key": "" if isnan(row.value) else scale * row.value,
            "verdict_key": VERDICTS.index(row.verdict),
            "stem": page.stem,
            "here": path == own,
        }
        rows.append(row._asdict() | shown)
    return rows


def _published(page: Page, profile: str) -> Path:
    data = base_run(evidence_profile(profile)).data.name
    published = ROOT / "results" / data / claims_file(page.number, profile)
    subset = ROOT / "results" / f"{data}_mini" / published.name  # 07 and 08 judge on it only
    return published if published.exists() else subset


def _ids(page: Page) -> dict[tuple[str, str], str]:
    """The key in CLAIMS of each claim, as a part of an address, by paper and statement."""
    return {
        (claim.paper, claim.statement): re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")
        for key, claim in page.claims.items()
    }


def counted(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many rows have each verdict, in the order of VERDICTS; those without any are left out."""
    counts = Counter(row["verdict"] for row in rows)
    return {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}


def in_words(counts: Mapping[str, int]) -> str:
    """The counts in words, such as "2 supported, 1 not run"."""
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.items())


def varying(rows: list[Row], names: Iterable[str]) -> list[str]:
    """The columns that do not have the same value in all rows; the others tell nothing."""
    return [name for name in names if len({row[name] for row in rows}) > 1]


def dataset_title(name: str) -> str:
    """A data set's name as papers write it."""
    return TITLES.get(name, name)
