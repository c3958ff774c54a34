"""Notebook 03: Hou et al. 2023 (SPAT), its abstract and Figure 1, each with its control."""

from __future__ import annotations

from typing import Any

from crat.analysis.claims import Claim
from crat.config import RunConfig, Selection
from crat.defenses import preset
from crat.papers.common import (
    EMA,
    EXPLORATORY,
    FEW_SEEDS,
    LOOKS,
    MAIN_SEEDS,
    USUAL,
    Runs,
    base_of,
    evidence_profile,
    seeded,
    shown_live,
    sweep,
)

# The two terms, each with what it replaces; all on the cosine head. "CE + KL" is TRADES on that
# head: the control
TERMS: dict[str, dict[str, Any]] = {
    "CE + KL": {"form": "plain", "squares": False},
    # L_hcp without its squares
    "CE + n KL": {"form": "plain", "squares": False, "beta": 1.2},
    "L_sp + KL": {"squares": False},
    "CE + L_hcp": {"form": "plain"},
    "L_sp + L_hcp": {},
    "L_sp alone": {"beta": 0.0},
}
REPEATED = ("CE + KL", "L_sp + L_hcp")  # these over all seeds, the others once
FORMS = ("detached", "clamped", "circle")  # of the self-paced weights, beside the released one
# one setting at a time, beside s = 8, m = 0.2, n = 0.2, beta = 6
SWEPT = {"scale": (4.0, 16.0), "m": (0.0, 0.5), "n": (0.0, 1.0), "beta": (1.0, 12.0)}
# the methods on the usual head
LINEAR = {"undefended": "standard", "AT": "pgd_at", "TRADES": "trades"}
MAIN: dict[str, dict[str, Any]] = {
    "undefended": preset("standard"),
    "AT without EMA": preset("pgd_at"),
    "AT": preset("pgd_at") | EMA,
    "TRADES": preset("trades") | EMA,
    "SPAT": preset("spat") | EMA,
}


def plan(profile_name: str, seed: int = 0, selection: Selection = USUAL) -> Runs:
    """A short live training, the compared methods of notebook 06, an ablation, sweeps."""
    evidence = evidence_runs(evidence_profile(profile_name), selection)
    return {"live": live(profile_name, seed, selection)} | evidence


def live(profile_name: str, seed: int, selection: Selection) -> RunConfig:
    """The live training of SPAT; in the larger profiles one of the compared runs."""
    average = {} if profile_name == "quick" else EMA
    return shown_live(profile_name, selection).but(**preset("spat") | average).but(seed=seed)


def evidence_runs(profile_name: str, selection: Selection = USUAL) -> Runs:
    """The sweeps' runs "AT-s0", "form detached", "scale 4" ...; the profile's "main SPAT-s0" ..."""
    base, main = sweep(profile_name, selection), base_of(profile_name, selection)
    runs = {f"{name}-s0": base.but(**preset(method)) for name, method in LINEAR.items()}
    for name, options in TERMS.items():
        seeds = selection.repeated(FEW_SEEDS) if name in REPEATED else (0,)
        runs |= seeded(name, base.but(**preset("spat", **options)), seeds)
    runs |= {f"form {form}": base.but(**preset("spat", form=form)) for form in FORMS}
    for name, values in SWEPT.items():
        for value in values:
            changed: dict[str, Any] = {name: value}
            if name == "scale":  # a setting of the network, not of the method
                runs[f"{name} {value:g}"] = base.but(**preset("spat")).but(**changed)
            else:
                runs[f"{name} {value:g}"] = base.but(**preset("spat", **changed))
    for name, changes in MAIN.items():
        runs |= seeded(f"main {name}", main.but(**changes), selection.repeated(MAIN_SEEDS))
    return runs


PAPER, FAMILY = "Hou et al. 2023 (SPAT)", "03"
ABSTRACT, FIGURE = "abstract", "Figure 1"
FIGURE_1 = "dogs predicted cat: over 40 % vanilla, 30.6 % SPAT"
ONCE: dict[str, Any] = {"looks": 1} | EXPLORATORY
ENDS = "an untargeted attack ends in the image's hardest wrong class"


def _claim(
    where: str,
    statement: str,
    functional: str,
    smallest: float,
    direction: str = "greater",
    number: str = "",
    **more: Any,
) -> Claim:
    return Claim(
        PAPER,
        where,
        statement,
        functional,
        direction,
        FAMILY,
        number=number,
        smallest_difference=smallest,
        **{"looks": LOOKS} | more,
    )


def _fewer(than: str, number: str = "") -> Claim:
    statement = (
        f"fewer images of the hardest class end in its hard class under SPAT than under {than}"
    )
    return _claim(FIGURE, statement, "average", 0.01, "less", number)


CLAIMS = {
    "ends undefended": _claim(
        ABSTRACT, f"{ENDS} (undefended: share in the clean runner-up - chance)", "share", 0.1
    ),
    "ends at": _claim(
        ABSTRACT, f"{ENDS} (AT: share in the clean runner-up - chance)", "share", 0.1
    ),
    "ends spat": _claim(
        ABSTRACT, f"{ENDS} (SPAT: share in the clean runner-up - chance)", "share", 0.1
    ),
    "control errors": _claim(
        ABSTRACT,
        "the attack seeks an image's hardest class (AT, runner-up under another seed: broken "
        "images - errors on clean ones)",
        "share",
        0.05,
        **EXPLORATORY,
    ),
    "control class": _claim(
        ABSTRACT,
        "the hard class is the image's own (AT: share in its runner-up - share in its class's "
        "confuser)",
        "share",
        0.05,
        **EXPLORATORY,
    ),
    "pair undefended": _fewer("standard training", FIGURE_1),
    "pair at": _fewer("AT", FIGURE_1),
    "pairs at": _claim(
        FIGURE,
        "fewer images end in their class's hard class under SPAT than under AT (mean over classes)",
        "average",
        0.01,
        "less",
        **EXPLORATORY,
    ),
    "average at": _claim(
        ABSTRACT, "SPAT is more robust than AT on average (PGD and CW)", "average", 0.01
    ),
    "average trades": _claim(
        ABSTRACT, "SPAT is more robust than TRADES on average (PGD and CW)", "average", 0.01
    ),
    "worst at": _claim(
        ABSTRACT, "SPAT is more robust than AT in the worst class (PGD and CW)", "worst", 0.02
    ),
    "worst trades": _claim(
        ABSTRACT, "SPAT is more robust than TRADES in the worst class (PGD and CW)", "worst", 0.02
    ),
    "average control": _claim(
        ABSTRACT,
        "self-pacing makes more robust: SPAT over TRADES on the same cosine head, average",
        "average",
        0.01,
        **ONCE,
    ),
    "worst control": _claim(
        ABSTRACT,
        "self-pacing makes more robust: SPAT over TRADES on the same cosine head, worst class",
        "worst",
        0.02,
        **ONCE,
    ),
    # at three times the length: at twelve epochs the cosines do not reach the region where the
    # self-paced weights differ from one
    "long average": _claim(
        ABSTRACT,
        "self-pacing makes more robust at 36 epochs: SPAT over TRADES on the same cosine head, "
        "average",
        "average",
        0.01,
        **ONCE,
    ),
    "long average at": _claim(
        ABSTRACT, "SPAT is more robust than AT on average at 36 epochs", "average", 0.01, **ONCE
    ),
    "released": _claim(
        "released code (ours)",
        "its test on unscaled cosines overstates robustness (under T = 8 - under T = 1)",
        "average",
        0.01,
        **ONCE,
    ),
}
