"""Claims of the papers, our estimates of them, and the verdicts.

`decide` joins an `Estimate` (crat.analysis.comparisons) to a `Claim`, whose direction gives the
sign; `settle` corrects for the number of claims: Holm over a paper's primary ones,
Benjamini-Hochberg over a notebook's exploratory ones. Fractions, not percent.
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
    Noise,
    against_published,
    compare,
    contrast,
    detectable_value,
    mcnemar,
    pearson,
    rank_correlation,
    share,
    together,
)
from crat.store import as_published, published_home, write_text

__all__ = [
    "Claim",
    "ClaimError",
    "Estimate",
    "Verdict",
    "against_published",
    "benjamini_hochberg",
    "claims_table",
    "compare",
    "contrast",
    "decide",
    "folded",
    "holm",
    "markdown",
    "mcnemar",
    "ours",
    "pearson",
    "price",
    "rank_correlation",
    "read",
    "settle",
    "share",
    "write",
]

SETTINGS = ("paper's setting", "other setting")  # only the first may be read against the paper
ROLES = ("primary", "exploratory")  # the paper's abstract or a table says so; a control, a question
# the smallest difference that matters, where a claim names no other
SMALLEST = {"average": 0.01, "worst": 0.02}
# shown in percentage points
POINTS = ("average", "worst", "crossfit", "tail", "gap", "spread", "share")
# the numeric columns of a claims table
NUMBERS = ["value", "low", "high", "low90", "high90", "p", "p_adjusted", "detectable", "df"]
# The level of each look where seeds may be added after it (at 3, 5 and 8): three looks at 5 % each
# are false in 11 % of the cases, at 2 % in 6 % at most.
LOOK = 0.02
MOST_SEEDS, MOST_IMAGES = 30, 16  # the farthest that a price goes: seeds, and times the images


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, declared before our number is seen.

    role: primary (the paper's abstract or a table says so) or exploratory (a control, a question of
        ours).
    family: the notebook, whose exploratory claims are corrected together; a paper's primary ones
        are a family of their own.
    looks: how often the claim may be decided as seeds are added; 1: once.
    direction: the sign claimed ("greater" or "less" than 0) for A - B, for a correlation, or for a
        share minus its reference.
    number: the paper's number as printed.
    smallest_difference: the smallest difference that matters; needed unless the functional is in
        SMALLEST.
    dataset: the data set that decides, which the statement names; "": the notebook's.
    Raises ClaimError on another direction, role or setting, or without a smallest difference above
    0.
    """

    paper: str
    where: str  # section, figure, table or abstract
    statement: str  # in our words
    functional: str  # average, worst, tail, spread, rank correlation, share ...
    direction: str = "greater"
    family: str = "main"
    setting: str = SETTINGS[1]
    number: str = ""
    smallest_difference: float = nan
    role: str = ROLES[0]
    looks: int = 1
    dataset: str = ""

    def __post_init__(self) -> None:
        choices = {"direction": ("greater", "less"), "setting": SETTINGS, "role": ROLES}
        for name, allowed in choices.items():
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

    p_adjusted: set by `settle`; until then the plain p counts.
    correction: set by `settle`; by what its p will be multiplied if the claim is the next of its
        family to be decided, the looks included.
    """

    claim: Claim
    estimate: Estimate | None
    p_adjusted: float = nan
    correction: float = 1.0

    @property
    def verdict(self) -> str:
        """No effect, supported, reversed, undecided or not run.

        No effect comes first: the interval of two one-sided tests lies inside the smallest
        difference that matters, however certain the effect is.
        """
        found = self.estimate
        if found is None:
            return "not run"
        if found.kind in ("checkpoints", "floor"):
            return "undecided"  # two checkpoints say nothing about two methods
        if max(-found.low90, found.high90) < self.claim.smallest_difference:
            return "no effect"
        p = found.p if isnan(self.p_adjusted) else self.p_adjusted
        sign = 1 if self.claim.direction == "greater" else -1
        low, high = sorted((sign * found.low, sign * found.high))
        if p < 1 - LEVEL and (low > 0 or high < 0):
            return "supported" if low > 0 else "reversed"
        return "undecided"


def decide(claim: Claim, estimate: Estimate | None) -> Verdict:
    """The verdict on a claim before the correction for their number.

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


def benjamini_hochberg(p: ArrayLike) -> NDArray:
    """Benjamini and Hochberg's adjusted p-values; nan stays nan and is not counted.

    Source: Benjamini and Hochberg 1995 (J. R. Statist. Soc. B 57).
    """
    p = np.asarray(p, float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    adjusted = np.full(p.shape, nan)
    steps = p[order] * order.size / np.arange(1, order.size + 1)
    adjusted[order] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1)
    return adjusted


def settle(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The same verdicts with p_adjusted and correction, corrected inside each family.

    Holm over a paper's primary claims, Benjamini-Hochberg over a notebook's exploratory ones; the
    price of looks comes before. A claim that was not run, has one seed or lies at the floor is not
    counted as a test.
    """
    p = np.array([_tested_p(v) for v in verdicts])
    correction = np.array([_looks(v.claim) for v in verdicts])
    families = [_family(v.claim) for v in verdicts]
    for family in set(families):
        inside = np.array([other == family for other in families])
        correct = holm if family[0] == ROLES[0] else benjamini_hochberg
        p[inside] = correct(p[inside])
        correction[inside] *= _next_factor(p[inside], family[0])
    return [
        replace(v, p_adjusted=float(q), correction=float(factor))
        for v, q, factor in zip(verdicts, p, correction, strict=True)
    ]


def _next_factor(p_adjusted: NDArray, role: str) -> float:
    """The factor of the next claim of a family to be decided, while those decided stay so."""
    tests = np.count_nonzero(~np.isnan(p_adjusted))
    decided = np.count_nonzero(p_adjusted < 1 - LEVEL)
    factor = tests - decided if role == ROLES[0] else tests / (decided + 1)
    return max(float(factor), 1.0)


def _family(claim: Claim) -> tuple[str, str, str]:
    """The role of a claim and what else its correction counts with it."""
    whole = claim.paper if claim.role == ROLES[0] else claim.family
    return claim.role, whole, claim.dataset


def _tested_p(verdict: Verdict) -> float:
    """The p that enters the correction, looks paid for; nan where no test was made."""
    estimate = verdict.estimate
    if estimate is None or estimate.kind in ("checkpoints", "floor"):
        return nan
    return min(1.0, _looks(verdict.claim) * estimate.p)


def _looks(claim: Claim) -> float:
    """By what the looks at a claim multiply its p."""
    return (1 - LEVEL) / LOOK if claim.looks > 1 else 1.0


def price(verdict: Verdict) -> str:
    """What would decide an undecided claim: "8 seeds", "5 seeds and 4 times the images" ...

    It would be found with probability POWER at its corrected level, were it as large as it was
    found here, or as the smallest difference that matters if that is more. "" at a floor, and where
    there is no variance to reckon with, as for a correlation over classes.
    """
    found = verdict.estimate
    if found is None or found.kind == "floor" or isnan(found.seed_variance) or found.seeds < 2:
        return ""
    target = max(abs(found.value), verdict.claim.smallest_difference)
    level = 1 - (1 - LEVEL) / verdict.correction
    for images in (1, 2, 4, 8, MOST_IMAGES):
        for seeds in range(found.seeds, MOST_SEEDS + 1):
            if detectable_value(_with_more(found, seeds, images), level) <= target:
                more = "" if images == 1 else f" and {images} times the images"
                return f"{seeds} seeds{more}"
    return f"over {MOST_SEEDS} seeds and {MOST_IMAGES} times the images"


def _with_more(found: Estimate, seeds: int, images: int) -> Noise:
    """The variance that the estimate would have with more seeds and times the images."""
    df = found.seed_df * (seeds - 1) / (found.seeds - 1)
    from_seeds = Noise(found.seed_variance * found.seeds / seeds, df)
    return together(from_seeds, Noise(found.image_variance / images))


def claims_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Table of claims after correction: statement, paper's number, estimate, verdict, price."""
    nothing = Estimate(nan, nan, nan, nan, kind="")
    rows = []
    for v in settle(verdicts):
        row = asdict(v.claim) | asdict(v.estimate or nothing)
        decided = {"p_adjusted": v.p_adjusted, "verdict": v.verdict}
        decided["price"] = price(v) if v.verdict == "undecided" else ""
        rows.append(row | decided)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Markdown table "paper / ours / verdict" of a `claims_table`; POINTS are in points.

    A verdict in the paper's own setting says so; all others are in another one.
    """
    lines = ["| the paper says | its number | ours | verdict |", "|---|---|---|---|"]
    for row in table.itertuples():
        where = f" ({row.setting})" if row.setting == SETTINGS[0] else ""
        cells = (
            f"{row.statement} ({row.paper}, {row.where})",
            row.number or "-",
            ours(row),
            f"{row.verdict}{where}",
        )
        escaped = [str(cell).replace("|", "\\|") for cell in cells]
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines) + "\n"


def folded(table: pd.DataFrame) -> str:
    """The markdown of a `claims_table`, a part for each role that unfolds: the primary one is open.

    The head of a part counts its verdicts.
    """
    parts = []
    for role in ROLES:
        part = table[table.role == role]
        if part.empty:
            continue
        counts = ", ".join(f"{n} {verdict}" for verdict, n in part.verdict.value_counts().items())
        head = f"<summary><b>{role.capitalize()} claims</b>: {counts}</summary>"
        opened = " open" if role == ROLES[0] else ""
        parts.append(f"<details{opened}>{head}\n\n{markdown(part)}\n</details>\n")
    return "\n".join(parts)


def ours(row: Any) -> str:
    """A row's estimate in words, "+16.1 [10.1, 22.1] points", with the reason if undecided.

    The reason is one seed, a floor, the corrected p, or the difference that would have been
    detected; then the price: what would decide it.
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
    if row.kind == "floor":
        return f"{text}, both at the floor"
    if row.p < 1 - LEVEL:
        text += f", p {row.p_adjusted:.3f} corrected"
    elif not isnan(row.detectable):
        text += f", detectable {number(row.detectable)}"
    return f"{text}; {row.price} would decide" if row.price else text


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
        table = pd.DataFrame(json.loads(Path(path).read_text(encoding="utf-8")))
        return table.astype(dict.fromkeys(NUMBERS, float))
    except (OSError, ValueError, KeyError) as error:
        raise ClaimError(f"no claims table in {path} ({error}): run its notebook again") from None
