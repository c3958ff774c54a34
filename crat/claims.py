"""A paper's statement, its number, ours, and the verdict; and the comparisons on which a verdict may rest.

Every comparison gives an `Estimate`; `decide` joins it to a `Claim`, whose direction its sign is read against; `settle`
applies Holm inside each family. Fractions, not percent. y is (N,) labels; runs are (S, N) bool, S seeds on N images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from crat.metrics import Functional, checked, evaluate, must_be_bool, per_run, permutation_p, resample, spearman, wilson
from crat.store import write_text

LEVEL, POWER = 0.95, 0.8
SETTINGS = ("paper's setting", "other setting")  # only the first may be read against the paper
SMALLEST = {"average": 0.01, "worst": 0.02}  # the smallest difference that matters, where a claim names no other
POINTS = ("average", "worst", "crossfit", "tail", "gap", "spread", "share")  # shown in percentage points
NUMBERS = ["value", "low", "high", "p", "detectable", "df", "p_holm"]  # the numeric columns of a claims table


class ClaimError(ValueError):
    """A claim that cannot be decided as it stands: one line that says what is wrong and what is allowed."""


@dataclass(frozen=True)
class Estimate:
    """A difference (or correlation, or share minus its reference), its 95 % interval and two-sided p.

    kind says what the interval covers: runs | checkpoints (one seed: images only) | correlation | published.
    detectable is the true value that would be found with probability .8.
    """

    value: float
    low: float
    high: float
    p: float
    kind: str = "runs"
    detectable: float = nan
    df: float = nan
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """What a paper says, declared before the number is seen.

    direction is the sign claimed ("greater" or "less" than 0) for A - B, a correlation, or a share minus its reference;
    number is the paper's own, as printed; smallest_difference is needed unless the functional is in SMALLEST.
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
            if getattr(self, name) not in allowed:
                raise ClaimError(f"{name} {getattr(self, name)!r}: it is {allowed[0]!r} or {allowed[1]!r}")
        smallest = SMALLEST.get(self.functional, nan) if isnan(self.smallest_difference) else self.smallest_difference
        if not smallest > 0:
            raise ClaimError(f"{self.functional!r} needs a smallest_difference above 0; built in: {SMALLEST}")
        object.__setattr__(self, "smallest_difference", smallest)


@dataclass(frozen=True)
class Verdict:
    """A claim and its estimate (None: not run); p_holm is set by `settle`, until then the plain p counts."""

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
        found = (self.estimate.p if isnan(self.p_holm) else self.p_holm) < 1 - LEVEL
        if found and (low > 0 or high < 0):
            return "supported" if low > 0 else "reversed"
        return "no effect" if max(-low, high) < self.claim.smallest_difference else "undecided"


def decide(claim: Claim, estimate: Estimate | None) -> Verdict:
    """The verdict before Holm; raises ClaimError for a published number met with another selection or attack."""
    if estimate and estimate.kind == "published" and claim.setting != SETTINGS[0]:
        raise ClaimError("a published number may only be compared in the paper's setting (equal selection and attack)")
    return Verdict(claim, estimate)


def holm(p: ArrayLike) -> NDArray:
    """Holm's adjusted p-values; nan stays nan and is not counted. Holm 1979 (Scand. J. Statist. 6)."""
    p = np.asarray(p, float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    adjusted = np.full(p.shape, nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1)), 1)
    return adjusted


def settle(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The same verdicts with p_holm by Holm inside each family; what was not run or has one seed is no test."""
    p = np.array([v.estimate.p if v.estimate and v.estimate.kind != "checkpoints" else nan for v in verdicts])
    families = np.array([v.claim.family for v in verdicts])
    for family in set(families):
        p[families == family] = holm(p[families == family])
    return [replace(v, p_holm=float(q)) for v, q in zip(verdicts, p, strict=True)]


def _by_t(value: float, variance: float, df: float, kind: str = "runs", note: str = "") -> Estimate:
    """value +- t_df sqrt(variance), its p, and what would be detected with probability POWER."""
    se, t = float(np.sqrt(variance)), stats.t.isf((1 - LEVEL) / 2, df)
    p = 2 * stats.t.sf(abs(value) / se, df) if se > 0 else float(value == 0)
    detectable = float((t + stats.t.isf(1 - POWER, df)) * se)
    return Estimate(float(value), float(value - t * se), float(value + t * se), float(p), kind, detectable, df, note)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Exact two-sided p that two checkpoints, right on (N,) bool a and b, are right equally often."""
    a, b = np.asarray(a), np.asarray(b)
    must_be_bool(a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def compare(
    y: ArrayLike, a: ArrayLike, b: ArrayLike, functional: Functional = "average", *, same_runs: bool = False,
    others: Sequence[ArrayLike] = (), draws: int = 2000, seed: int = 0,
) -> Estimate:  # fmt: skip
    """Mean over runs of the functional, A - B, on the same images: a, b (S_A, N), (S_B, N) bool.

    The variance is s2 (1/S_A + 1/S_B), the seed variance pooled over a, b and `others`, plus a class-stratified paired
    bootstrap over images with any minimum inside. same_runs: a[s] and b[s] are one network twice (two attacks), and
    the seed variance is that of their differences. "worst" must hold for the plug-in minimum and for the cross-fit one:
    the interval is the hull of both. With one seed kind is "checkpoints", the interval covers images, p is McNemar's.
    """
    y, a, b = checked(y, np.atleast_2d(a), np.atleast_2d(b))
    if same_runs and len(a) != len(b):
        raise ClaimError(f"same_runs needs as many runs of each, not {len(a)} and {len(b)}")
    if one_seed := min(len(a), len(b)) == 1:
        a, b = a[:1], b[:1]
    counts, sizes = resample(y, np.vstack([a, b]), draws, seed)

    def estimate(f: Functional) -> Estimate:
        values = evaluate(f, counts, sizes)
        in_a, in_b = values[:, : len(a)], values[:, len(a) :]
        difference = in_a.mean(1) - in_b.mean(1)
        if one_seed:
            seeds, df = 0.0, inf
        elif same_runs:
            seeds, df = (in_a - in_b)[0].var(ddof=1) / len(a), len(a) - 1
        else:
            groups = [in_a[0], in_b[0], *(per_run(y, np.atleast_2d(other), f) for other in others)]
            df = sum(g.size - 1 for g in groups)
            seeds = sum(((g - g.mean()) ** 2).sum() for g in groups) / df * (1 / len(a) + 1 / len(b))
        return _by_t(difference[0], seeds + difference[1:].var(ddof=1), df)

    found = _both(estimate("worst"), estimate("crossfit")) if functional == "worst" else estimate(functional)
    return replace(found, p=mcnemar(a[0], b[0]), kind="checkpoints", note="one seed") if one_seed else found


def _both(plug_in: Estimate, cross_fit: Estimate) -> Estimate:
    """The worst class by plug-in (biased low) and cross-fit (biased high): beyond 0 only where both are."""
    low, high = min(plug_in.low, cross_fit.low), max(plug_in.high, cross_fit.high)
    p = max(plug_in.p, cross_fit.p) if plug_in.value * cross_fit.value > 0 else 1.0
    detectable = max(plug_in.detectable, cross_fit.detectable)
    return replace(plug_in, low=low, high=high, p=p, detectable=detectable, note=f"cross-fit {cross_fit.value:+.4f}")


def against_published(ours: ArrayLike, mean: float, sd: float, n: int = 5) -> Estimate:
    """Our per-run values (m,) minus a published mean +- sd of n runs: +- t_{n-1} sd sqrt(1/m + 1/n)."""
    ours = np.asarray(ours, float)
    return _by_t(ours.mean() - mean, sd**2 * (1 / ours.size + 1 / n), n - 1, "published")


def share(k: ArrayLike, n: ArrayLike, reference: float) -> Estimate:
    """Mean over runs of k_s / n_s (S,), minus a reference share: t_{S-1}, over seeds and images.

    The runs share their images, so the binomial variance is not divided by S. With one run, kind is "checkpoints".
    """
    k, n = np.atleast_1d(k).astype(float), np.atleast_1d(n).astype(float)
    if not n.all():
        return Estimate(nan, nan, nan, nan, note="no image to count")
    value = (k / n).mean() - reference
    low, high = wilson(k, n)
    if k.size == 1:
        p = stats.binomtest(int(k[0]), int(n[0]), reference).pvalue
        return Estimate(value, low[0] - reference, high[0] - reference, p, "checkpoints", note="one seed")
    images = (((high - low) / 2 / stats.norm.isf((1 - LEVEL) / 2)) ** 2).mean()
    return _by_t(value, (k / n).var(ddof=1) / k.size + images, k.size - 1)


def _correlated(value: float, low: float, high: float, p: float, n_classes: int, note: str = "") -> Estimate:
    """A correlation over n_classes with what would be detected, by Fisher's z."""
    detectable = np.tanh(stats.norm.isf([(1 - LEVEL) / 2, 1 - POWER]).sum() / np.sqrt(max(n_classes - 3, 1)))
    return Estimate(float(value), float(low), float(high), float(p), "correlation", float(detectable), note=note)


def _orders(y: NDArray, groups: Sequence[ArrayLike], draws: int, seed: int) -> list[NDArray]:
    """Class values (1 + draws, K), observed first: bool per image is resampled, all groups alike; (K,) is fixed."""
    arrays, present = [np.atleast_2d(group) for group in groups], np.unique(y)
    for group in arrays:
        if group.dtype != bool and not present[-1] < group.shape[-1] < y.size:
            raise ClaimError(f"an order is bool per image ({y.size}) or one number per class, not {group.shape}")
    sampled = [checked(y, group)[1] for group in arrays if group.dtype == bool]
    counts, sizes = resample(y, np.vstack(sampled), draws, seed)
    acc = iter(np.split(counts.sum(-1) / sizes.sum(-1), np.cumsum([len(s) for s in sampled])[:-1], axis=1))
    return [next(acc).mean(1) if g.dtype == bool else np.tile(g[0, present], (1 + draws, 1)) for g in arrays]


def rank_correlation(
    y: ArrayLike, a: ArrayLike, b: ArrayLike, beat: ArrayLike | None = None, draws: int = 2000, seed: int = 0
) -> Estimate:
    """Spearman's rho of the class orders a and b: permutation p over classes, bootstrap interval over images.

    a is (N,) or (S, N) bool (class accuracies, mean over runs); so are b and `beat`, or they are (K,) numbers. With
    `beat`, usually clean correctness, the value is rho(a, b) - rho(a, beat), and p is the bootstrap's.
    """
    (y,) = checked(y)
    orders = _orders(y, [a, b] if beat is None else [a, b, beat], draws, seed)
    if any(np.ptp(order[0]) == 0 for order in orders):
        return Estimate(nan, nan, nan, nan, "correlation", note="all classes tie: no order")
    rho = spearman(orders[0], orders[1])
    note = f"rho {rho[0]:+.3f}"
    if beat is None:
        p = permutation_p(orders[0][0], orders[1][0], seed)
    else:
        baseline = spearman(orders[0], orders[2])
        rho, note = rho - baseline, f"{note}, baseline {baseline[0]:+.3f}"
        p = min(1.0, 2 * (1 + min((rho[1:] <= 0).sum(), (rho[1:] >= 0).sum())) / (1 + draws))
    low, high = np.nanquantile(rho, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # images add noise to a noisy order, so the bootstrap lies below rho: the interval is widened to hold it
    return _correlated(rho[0], min(low, rho[0]), max(high, rho[0]), p, orders[0].shape[1], note)


def pearson(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Pearson's r of (K,) and (K,) with Fisher's interval."""
    r = stats.pearsonr(np.asarray(x, float), np.asarray(y, float))
    low, high = r.confidence_interval(LEVEL)
    return _correlated(r.statistic, low, high, r.pvalue, np.size(x))


def claims_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row per claim, Holm applied: what the paper says, its number, ours with its interval, the verdict."""
    nothing = Estimate(nan, nan, nan, nan, kind="")
    return pd.DataFrame(
        asdict(v.claim) | asdict(v.estimate or nothing) | {"p_holm": v.p_holm, "verdict": v.verdict}
        for v in settle(verdicts)
    )


def markdown(table: pd.DataFrame) -> str:
    """The table "paper / ours / verdict" from `claims_table`; fractions of POINTS are written in points."""
    lines = ["| the paper says | its number | ours | verdict | setting |", "|---|---|---|---|---|"]
    for row in table.itertuples():
        cells = (f"{row.statement} ({row.paper}, {row.where})", row.number or "-", ours(row), row.verdict, row.setting)
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def ours(row: Any) -> str:
    """A row's estimate in words: "+16.1 [10.1, 22.1] points, detectable 7.5" (the last where it is undecided)."""
    if row.verdict == "not run":
        return "-"
    scale, unit, form = (100, " points", ".1f") if row.functional in POINTS else (1, "", ".3f")
    text = f"{scale * row.value:+{form}} [{scale * row.low:{form}}, {scale * row.high:{form}}]{unit}"
    blind = row.verdict == "undecided" and not isnan(row.detectable)
    return f"{text}, detectable {scale * row.detectable:{form}}" if blind else text


def write(verdicts: Sequence[Verdict], path: str | Path) -> None:
    """The claims table as JSON records (nan is null), replaced in one step: a reader never sees half a file."""
    write_text(Path(path), claims_table(verdicts).to_json(orient="records", indent=1, double_precision=15))


def read(path: str | Path) -> pd.DataFrame:
    """The table that `write` wrote; raises ClaimError in one line where it is missing or damaged."""
    try:
        return pd.DataFrame(json.loads(Path(path).read_text())).astype(dict.fromkeys(NUMBERS, float))
    except (OSError, ValueError, KeyError) as error:
        raise ClaimError(f"no claims table in {path} ({error}): run its notebook again") from None
