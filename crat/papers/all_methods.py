"""Notebook 06: every method at one protocol, and the papers' claims on them."""

from __future__ import annotations

from typing import Any

from crat.analysis.claims import Claim
from crat.config import Selection
from crat.defenses import preset
from crat.papers.common import (
    EMA,
    USUAL,
    Runs,
    base_of,
    evidence_profile,
    seeded,
    shown_live,
    sweep,
)

TRIED: dict[str, dict[str, Any]] = {
    "AT": preset("pgd_at"),
    "AT+EMA": preset("pgd_at") | EMA,
    "CFA (AT)": preset("cfa"),
    "TRADES": preset("trades"),
    "TRADES+EMA": preset("trades") | EMA,
    "CFA (TRADES)": preset("cfa", base="trades"),
    "SPAT+EMA": preset("spat") | EMA,
    "Adv+ +EMA": preset("label_augmentation") | EMA,
    "WAT+EMA": preset("wat") | EMA,
    "FRL+EMA": preset("frl") | EMA,
}
# runs of it that AutoAttack judged
STRONG = ("AT-s0", "SPAT+EMA-s0", "Adv+ +EMA-s0")
RADII = (0.25, 1.0)  # rho of CODAT's ball of class distributions


def plan(profile_name: str, seed: int = 0, selection: Selection = USUAL) -> Runs:
    """A live training with a class-wise policy, every method at one protocol, CODAT's sweep."""
    live = shown_live(profile_name, selection).but(**preset("cfa", base="trades")).but(seed=seed)
    shown = evidence_profile(profile_name)
    swept = {f"codat {key}": run for key, run in codat_sweep(shown, selection).items()}
    return {"live": live} | evidence_runs(shown, selection) | swept


def evidence_runs(profile_name: str, selection: Selection = USUAL) -> Runs:
    """The runs "AT-s0" ... "CFA (TRADES)-s2"."""
    base = base_of(profile_name, selection)
    runs: Runs = {}
    for method, changes in TRIED.items():
        runs |= seeded(method, base.but(**changes), selection.seeds)
    return runs


def codat_sweep(profile_name: str, selection: Selection = USUAL) -> Runs:
    """The sweeps' runs "rho 0.25-s0" ... and, for rho = 0, "AT-s0"."""
    base = sweep(profile_name, selection)
    changed = {f"rho {r:g}-s0": base.but(**preset("codat", rho=r) | EMA) for r in RADII}
    return {"AT-s0": base} | changed


FAMILY = "06"
CFA = "Wei et al. 2023 (CFA)"
SPAT = "Hou et al. 2023 (SPAT)"
LA = "Amerehi and Healy 2025"
CODAT = "Zhi et al. 2025 (CODAT)"
DAFA = "Lee et al. 2024 (DAFA), result figure"  # where the numbers of these two were read
SMALLEST = {"average": 0.01, "worst": 0.02, "spread": 0.005}
CFA_PAIRS = (
    ("CFA (AT)", "AT"),
    ("CFA (AT)", "AT+EMA"),
    ("CFA (TRADES)", "TRADES"),
    ("CFA (TRADES)", "TRADES+EMA"),
)
ADV = ("Adv+ +EMA", "AT+EMA")


def _claim(
    paper: str,
    where: str,
    statement: str,
    functional: str,
    direction: str = "greater",
    number: str = "",
) -> Claim:
    smallest = SMALLEST[functional]
    return Claim(
        paper,
        where,
        statement,
        functional,
        direction,
        FAMILY,
        number=number,
        smallest_difference=smallest,
    )


# (method, the one it is compared with, functional, under what) -> the claim; in the order of the
# notebook's table
COMPARED: dict[tuple[str, str, str, str], Claim] = {}
for _a, _b in CFA_PAIRS:
    for _f, _how in (("average", "on average"), ("worst", "in the worst class")):
        COMPARED[_a, _b, _f, "PGD"] = _claim(
            CFA, "abstract, Table 1", f"{_a} is more robust than {_b} {_how}", _f
        )
for _f in ("average", "worst"):
    for _b in ("AT", "TRADES"):
        COMPARED[f"{_b}+EMA", _b, _f, "PGD"] = _claim(
            CFA, "Table 1", f"{_b}+EMA above {_b} ({_f})", _f
        )
for _b in ("AT", "TRADES"):
    _said = f"SPAT is more robust than {_b} on average (all with EMA)"
    COMPARED["SPAT+EMA", f"{_b}+EMA", "average", "PGD"] = _claim(SPAT, "abstract", _said, "average")
COMPARED |= {
    (*ADV, "average", "PGD"): _claim(
        LA, "abstract", "Adv+ is more robust than Adv (with EMA)", "average"
    ),
    (*ADV, "average", "clean"): _claim(
        LA, "abstract", "Adv+ is more accurate than Adv on clean images", "average"
    ),
}
for _under in ("clean", "PGD"):
    _said = f"Adv+ spreads the classes less than Adv ({_under}, sd)"
    COMPARED[*ADV, "spread", _under] = _claim(LA, "abstract", _said, "spread", "less")
# declared when one seed of each had been seen; the verdict is on three
for _paper, _a, _said in (
    ("Li and Liu 2023 (WAT)", "WAT", "21.3 to 28.6"),
    ("Xu et al. 2021 (FRL)", "FRL", "21.3 to 25.8"),
):
    _pair = (f"{_a}+EMA", "TRADES+EMA")
    _lifts = f"{_a} is more robust than TRADES in the worst class (all with EMA)"
    COMPARED[*_pair, "worst", "PGD"] = _claim(_paper, DAFA, _lifts, "worst", number=_said)

_BIAS = "a change at inference lifts the most vulnerable class (AT+EMA: a bias)"
_WORST = (
    "training on the worst distribution of classes lifts the worst class "
    "(sweep scale: rho 1, with EMA)"
)
CLAIMS = {", ".join(key): claim for key, claim in COMPARED.items()} | {
    "bias": _claim("Tian et al. 2021", "abstract", _BIAS, "worst"),
    "codat": _claim(CODAT, "abstract", _WORST, "worst"),
}
