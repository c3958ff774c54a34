"""Claims of the papers, our estimates of them, and the verdicts.

`decide` joins an `Estimate` (crat.analysis.comparisons) to a `Claim`, whose direction gives the
sign; `settle` applies Holm's correction inside each family. Fractions, not percent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from crat.analysis.comparisons import (
    LEVEL,
    ClaimError,
    Estimate,
    against_published,
    compare,
    mcnemar,
    pearson,
    rank_correlation,
    share,
)
from crat.store import as_published, published_home, write_text

__all__ = [
    "Claim",
    "ClaimError",
    "Estimate",
    "Verdict",
    "against_published",
    "claims_table",
    "compare",
    "decide",
    "holm",
    "markdown",
    "mcnemar",
    "ours",
    "pearson",
    "rank_correlation",
    "read",
    "settle",
    "share",
    "write",
]

SETTINGS = ("paper's setting", "other setting")  # only the first may be read against the paper
# the smallest difference that matters, where a claim names no other
SMALLEST = {"average": 0.01, "worst": 0.02}
# shown in percentage points
POINTS = ("average", "worst", "crossfit", "tail", "gap", "spread", "share")
# the numeric columns of a claims table
NUMBERS = ["value", "low", "high", "p", "detectable", "df", "p_holm"]


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, declared before our number is seen.

    direction: the sign claimed ("greater" or "less" than 0) for A - B, for a correlation, or for a
        share minus its reference.
    number: the paper's number as printed.
    smallest_difference: the smallest difference that matters; needed unless the functional is in
        SMALLEST.
    Raises ClaimError on another direction or setting, or without a smallest difference above 0.
    """

    paper: str
    where: str  # section, figure, table or abstract
    statement: str  # in our words
    functional: str  # average, worst, tail, spread, rank correlation, share ...
    direction: str = "greater"
    family: str = "main"  # Holm's, usually the notebook
    setting: str = SETTINGS[1]
    number: str = ""
    smallest_difference: float = nan

    def __post_init__(self) -> None:
        for name, allowed in (("direction", ("greater", "less")), ("setting", SETTINGS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ClaimError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}")
        smallest = self.smallest_difference
        if isnan(smallest):
            smallest = SMALLEST.get(self.functional, nan)
        if not smallest > 0:
            raise ClaimError(
                f"{self.functional!r} needs a smallest_difference above 0; built in: {SMALLEST}"
            )
        object.__setattr__(self, "smallest_difference", smallest)


@dataclass(frozen=True)
class Verdict:
    """A claim with its estimate (None: not run).

    p_holm: set by `settle`; until then the plain p counts.
    """

    claim: Claim
    estimate: Estimate | None
    p_holm: float = nan

    @property
    def verdict(self) -> str:
        """Supported, reversed, no effect, undecided or not run."""
        if self.estimate is None:
            return "not run"
        if self.estimate.kind == "checkpoints":
            return "undecided"  # two checkpoints say nothing about two methods
        sign = 1 if self.claim.direction == "greater" else -1
        low, high = sorted((sign * self.estimate.low, sign * self.estimate.high))
        p = self.estimate.p if isnan(self.p_holm) else self.p_holm
        if p < 1 - LEVEL and (low > 0 or high < 0):
            return "supported" if low > 0 else "reversed"
        largest = max(-low, high)
        return "no effect" if largest < self.claim.smallest_difference else "undecided"


def decide(claim: Claim, estimate: Estimate | None) -> Verdict:
    """The verdict on a claim before Holm's correction.

    Raises ClaimError where a published number would be compared in another setting (selection or
    attack) than the paper's.
    """
    if estimate and estimate.kind == "published" and claim.setting != SETTINGS[0]:
        raise ClaimError(
            "a published number may only be compared in the paper's setting (equal selection and "
            "attack)"
        )
    return Verdict(claim, estimate)


def holm(p: ArrayLike) -> NDArray:
    """Holm's adjusted p-values; nan stays nan and is not counted.

    Source: Holm 1979 (Scand. J. Statist. 6).
    """
    p = np.asarray(p, float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    adjusted = np.full(p.shape, nan)
    steps = p[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def settle(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The same verdicts with p_holm, by Holm's correction inside each family.

    A claim that was not run or has one seed is not counted as a test.
    """
    p = np.array([_tested_p(v) for v in verdicts])
    families = np.array([v.claim.family for v in verdicts])
    for family in set(families):
        p[families == family] = holm(p[families == family])
    return [replace(v, p_holm=float(q)) for v, q in zip(verdicts, p, strict=True)]


def _tested_p(verdict: Verdict) -> float:
    """The p that enters Holm's correction; nan where no test was made."""
    estimate = verdict.estimate
    if estimate is None or estimate.kind == "checkpoints":
        return nan
    return estimate.p


def claims_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Table of claims after Holm's correction: statement, paper's number, estimate, verdict."""
    nothing = Estimate(nan, nan, nan, nan, kind="")
    rows = []
    for v in settle(verdicts):
        row = asdict(v.claim) | asdict(v.estimate or nothing)
        rows.append(row | {"p_holm": v.p_holm, "verdict": v.verdict})
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Markdown table "paper / ours / verdict" of a `claims_table`; POINTS are in points."""
    lines = ["| the paper says | its number | ours | verdict | setting |", "|---|---|---|---|---|"]
    for row in table.itertuples():
        cells = (
            f"{row.statement} ({row.paper}, {row.where})",
            row.number or "-",
            ours(row),
            row.verdict,
            row.setting,
        )
        escaped = [str(cell).replace("|", "\\|") for cell in cells]
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines) + "\n"


def ours(row: Any) -> str:
    """A row's estimate in words, "+16.1 [10.1, 22.1] points", with the reason if undecided.

    The reason is one seed, an interval that Holm's correction does not let pass, or the difference
    that would have been detected.
    """
    if row.verdict == "not run":
        return "-"
    in_points = row.functional in POINTS

    def number(value: float, sign: str = "") -> str:
        if in_points:
            return f"{round(100 * value, 6):{sign}.1f}"
        return f"{round(value, 6):{sign}.3f}"

    text = f"{number(row.value, '+')} [{number(row.low)}, {number(row.high)}]"
    if in_points:
        text += " points"
    if row.verdict != "undecided":
        return text
    if row.kind == "checkpoints":
        return f"{text}, one seed"
    if row.p < 1 - LEVEL:
        return f"{text}, p {row.p_holm:.3f} after Holm"
    return text if isnan(row.detectable) else f"{text}, detectable {number(row.detectable)}"


def write(verdicts: Sequence[Verdict], path: str | Path) -> None:
    """Writes the claims table as JSON records (nan is null), atomically."""
    table = claims_table(verdicts)
    write_text(Path(path), table.to_json(orient="records", indent=1, double_precision=15))


def read(path: str | Path) -> pd.DataFrame:
    """The table that `write` wrote.

    Raises ClaimError where it is missing or damaged, StoreError where it lies in results/ and is
    not as it was published.
    """
    file, published = Path(path).resolve(), published_home()
    if published in file.parents and file.exists():
        as_published(file, published)
    try:
        table = pd.DataFrame(json.loads(Path(path).read_text()))
        return table.astype(dict.fromkeys(NUMBERS, float))
    except (OSError, ValueError, KeyError) as error:
        raise ClaimError(f"no claims table in {path} ({error}): run its notebook again") from None
