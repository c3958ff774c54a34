"""Notebook 04: Wei et al. 2023 (CFA), in our words; AutoAttack judges there, PGD here."""

from __future__ import annotations

from typing import Any

from crat.analysis.claims import Claim
from crat.config import RunConfig, Selection, number
from crat.defenses import preset
from crat.papers import all_methods
from crat.papers.common import (
    EMA,
    EPOCH,
    EXPLORATORY,
    FEW_SEEDS,
    GATED,
    LOOKS,
    MAIN_SEEDS,
    NONE,
    USUAL,
    Runs,
    at_length,
    base_of,
    beside,
    evidence_profile,
    on,
    seeded,
    shown_live,
    sweep,
)

# training margins of Figure 2 as shares of the one that judges (the paper: 2 to 16 in steps of 2,
# of 8)
MARGINS = (0.4, 0.7, 1.3, 1.6)
BETAS = (1.0, 3.0, 6.0, 9.0)  # of TRADES (Figure 3: 1 to 8)
LAMBDA_1 = (0.3, 0.4, 0.5, 0.6, 0.7)  # of CCM on AT (Figure 5)
LAMBDA_2 = (0.3, 0.5, 0.7)  # of CCR on TRADES, without CCM
# Tables 2 and 3
ON_AT: dict[str, dict[str, Any]] = {
    "AT": preset("pgd_at") | NONE,
    "AT + EMA": preset("pgd_at") | EPOCH,
    "AT + FAWA": preset("pgd_at") | GATED,
    "AT + CCM": preset("cfa") | NONE,
    "AT + CFA": preset("cfa") | GATED,
}
# the paper's TRADES divides its loss by 1 + beta, as eq. 8 does
ON_TRADES: dict[str, dict[str, Any]] = {
    "TRADES": preset("trades", normalised=True) | NONE,
    "TRADES + EMA": preset("trades", normalised=True) | EPOCH,
    "TRADES + FAWA": preset("trades", normalised=True) | GATED,
    "TRADES + CCM": preset("cfa", base="trades", ccr=False) | NONE,
    "TRADES + CCR": preset("cfa", base="trades", ccm=False) | NONE,
    "TRADES + CCM + CCR": preset("cfa", base="trades") | NONE,
    "TRADES + CFA": preset("cfa", base="trades") | GATED,
}
# The settings between which a claim decides have several seeds, the others of a sweep have one.
DECIDING: tuple[str, ...] = ("sweep AT", "eps 0.4", "eps 1.6", "beta 1", "beta 6")
DECIDING += ("AT", "AT + CCM", "AT + EMA", "AT + FAWA")
DECIDING += ("TRADES", "TRADES + CCR", "TRADES + EMA", "TRADES + FAWA")
BEYOND = ("eps 1.6", "sweep AT")  # a margin beyond the judging one, and that one
BEYOND_SEEDS = 5
MAIN = ("AT", "AT+EMA", "CFA (AT)", "CFA (AT)+EMA", "TRADES", "TRADES+EMA", "CFA (TRADES)")
# how many seeds each of them has: as many as its claims have had looks for
SEEDS = dict.fromkeys(MAIN, 5) | {"AT+EMA": 8, "CFA (AT)+EMA": 8}
# CFA's base value at which the classes' mean margin is eps: on these images t_k is near 0.75
NEUTRAL = 0.25
# AT on so few images of a class, for long and with the paper's steps of the rate: does it overfit?
FEW = {50: {"batch_size": 32}, 100: {"batch_size": 32}, 500: {}}
LONG = {"valid_per_class": 100, "epochs": 60, "schedule": "piecewise"}
# what the last epochs of 200 are compared of; FAWA is a setting of the sweeps
OVERFITTED = ("main AT", "main AT+EMA", "AT + FAWA", "main CFA (AT)")
ELSEWHERE = ("AT+EMA", "CFA (AT)+EMA")  # on CIFAR-10


def plan(profile_name: str, seed: int = 0, selection: Selection = USUAL) -> Runs:
    """A short live training of AT with CCM, the main table, the margins and the ablations."""
    evidence = evidence_runs(evidence_profile(profile_name), selection)
    on_cifar10 = {name: all_methods.ON_CIFAR10[name] for name in ELSEWHERE}
    elsewhere = beside("cifar10", on_cifar10, evidence_profile(profile_name), selection)
    return {"live": live(profile_name, seed, selection)} | evidence | elsewhere


def live(profile_name: str, seed: int, selection: Selection) -> RunConfig:
    """The live training of CFA on AT."""
    return shown_live(profile_name, selection).but(**preset("cfa")).but(seed=seed)


def evidence_runs(profile_name: str, selection: Selection = USUAL) -> Runs:
    """The runs "main CFA (AT)-s0" ..., and of the sweeps "sweep AT-s0", "AT + CCM-s1" ..."""
    main = all_methods.evidence_runs(profile_name, selection)
    first, *_ = usual = selection.repeated(MAIN_SEEDS)
    runs: Runs = {}
    for m in MAIN:
        runs |= seeded(f"main {m}", main[f"{m}-s{first}"], selection.repeated(SEEDS[m]))
    standard = base_of(profile_name, selection).but(defense="standard")  # no margin
    runs |= seeded("main standard", standard, usual)
    if profile_name == "laptop" and not selection.data:
        runs |= at_our_scale(base_of(profile_name, selection), usual)
    for name, config in swept(sweep(profile_name, selection)).items():
        several = selection.repeated(BEYOND_SEEDS if name in BEYOND else FEW_SEEDS)
        repeated = several if name in DECIDING else several[:1]
        runs |= seeded(name, at_length(profile_name, config), repeated)
    return runs


def at_our_scale(base: RunConfig, seeds: tuple[int, ...]) -> Runs:
    """What only the laptop's images ask: a lambda_1 that is neutral there, and AT on few images."""
    neutral = base.but(**preset("cfa", lambda_1=NEUTRAL) | EMA)
    runs = seeded("main CFA (AT)+EMA, mean margin", neutral, seeds)
    plain = base.but(**preset("pgd_at") | NONE | LONG)
    for n, changes in FEW.items():
        runs[f"AT, {n} of a class"] = plain.but(train_per_class=n, **changes)
    return runs


def swept(base: RunConfig) -> Runs:
    """The settings of the sweeps and ablations by name, without their seeds; base: AT+EMA."""
    eps = number(base.resolved().train.eps or 0)
    runs = {"sweep AT": base}
    runs |= {f"eps {share:g}": base.but(eps=round(share * eps, 6)) for share in MARGINS}
    trades = base.but(**preset("trades", normalised=True) | EMA)
    runs |= {f"beta {v:g}": trades.but(beta=v) for v in BETAS}
    runs |= {f"lambda_1 {v:g}": base.but(**preset("cfa", lambda_1=v) | EMA) for v in LAMBDA_1}
    ccr = {v: preset("cfa", base="trades", ccm=False, lambda_2=v) for v in LAMBDA_2}
    runs |= {f"lambda_2 {v:g}": base.but(**changes | EMA) for v, changes in ccr.items()}
    return runs | {name: base.but(**changes) for name, changes in (ON_AT | ON_TRADES).items()}


PAPER, FAMILY = "Wei et al. 2023 (CFA)", "04"


def _claim(
    where: str,
    statement: str,
    functional: str,
    smallest: float,
    number: str = "",
    **more: Any,
) -> Claim:
    return Claim(
        PAPER,
        where,
        statement,
        functional,
        "greater",
        FAMILY,
        number=number,
        smallest_difference=smallest,
        **more,
    )


# the paper's Table 1: (CFA on what, beside what, the paper's numbers)
AA_AVERAGE = {"AT": "AA 46.7 to 50.1", "AT+EMA": "AA 49.6 to 50.1", "TRADES": "AA 48.3 to 50.1"}
AA_AVERAGE |= {"TRADES+EMA": "AA 49.7 to 50.1"}
AA_WORST = {"AT": "AA 20.1 to 24.4", "AT+EMA": "AA 21.3 to 24.4", "TRADES": "AA 21.7 to 26.5"}
AA_WORST |= {"TRADES+EMA": "AA 24.2 to 26.5"}
OURS = "a question of ours"

CLAIMS: dict[str, Claim] = {}
for _on in ("AT", "TRADES"):
    for _than in (_on, f"{_on}+EMA"):
        _table = f"{_than.lower().replace('+', ' ')}"
        CLAIMS |= {
            f"{_table} average": _claim(
                "Table 1",
                f"CFA on {_on} is above {_than} on average",
                "average",
                0.01,
                AA_AVERAGE[_than],
                looks=LOOKS,
            ),
            f"{_table} worst": _claim(
                "Table 1",
                f"CFA on {_on} is above {_than} in the worst class",
                "worst",
                0.02,
                AA_WORST[_than],
                looks=LOOKS,
            ),
        }
CLAIMS |= {
    "jumps": _claim(
        "Figure 4 and its text",
        "from epoch to epoch the worst class moves more than the average oftener than any class "
        "does (share of steps)",
        "share",
        0.1,
        "PGD-10, epochs 108 and 110: worst 23.5, 28.1, average 53.2, 52.6",
        looks=LOOKS,
    ),
    "clean gap": _claim(
        "Theorem 4, Figure 2",
        "a margin in training parts the classes on clean images (gap: AT - standard)",
        "gap",
        0.02,
    ),
    "margin clean": _claim(
        "Theorem 4, Figure 2",
        "a larger margin parts the classes on clean images (gap, 1.6 - 0.4)",
        "gap",
        0.02,
    ),
    "margin robust": _claim(
        "Figure 2 (b)",
        "a margin beyond the judging one parts the classes under attack (gap, 1.6 - 1)",
        "gap",
        0.02,
        looks=LOOKS,
    ),
    "beta": _claim(
        "Figure 3",
        "a larger beta of TRADES parts the classes on clean images (gap, 6 - 1)",
        "gap",
        0.02,
    ),
    "ccm": _claim(
        "Table 2",
        "class-wise margins alone lift AT's worst class",
        "worst",
        0.02,
        "AA 20.1 to 22.8",
    ),
    "ccr": _claim(
        "Table 2",
        "class-wise regularisation alone lifts TRADES' worst class",
        "worst",
        0.02,
        "AA 21.7 to 23.5",
    ),
    "fawa": _claim(
        "Table 3", "FAWA's worst class is above EMA's, on AT", "worst", 0.02, "AA 21.3 to 23.1"
    ),
    "fawa trades": _claim(
        "Table 3", "FAWA's worst class is above EMA's, on TRADES", "worst", 0.02, "AA 24.2 to 25.1"
    ),
}
# the average over updates is not the paper's, which averages once an epoch
for _on in ("AT", "TRADES"):
    for _f, _how, _least in (
        ("average", "on average", 0.01),
        ("worst", "in the worst class", 0.02),
    ):
        CLAIMS[f"ema {_on.lower()} {_f}"] = _claim(
            "beside Table 1, which averages once an epoch",
            f"an average over updates lifts {_on} {_how}",
            _f,
            _least,
            looks=LOOKS,
            **EXPLORATORY,
        )
COMMON = "CFA with the common average (over updates)"
OVERFIT = "where training overfits (the last of 200 epochs)"
CLAIMS |= {
    "common average": _claim(
        OURS, f"{COMMON} is above AT+EMA on average", "average", 0.01, looks=LOOKS, **EXPLORATORY
    ),
    "common worst": _claim(
        OURS,
        f"{COMMON} is above AT+EMA in the worst class",
        "worst",
        0.02,
        looks=LOOKS,
        **EXPLORATORY,
    ),
    "mean margin": _claim(
        OURS,
        f"CFA whose mean margin is eps (lambda_1 {NEUTRAL:g}, common average) is above AT+EMA in "
        "the worst class",
        "worst",
        0.02,
        **EXPLORATORY,
    ),
    "overfit ema": _claim(
        OURS,
        f"{OVERFIT} an average over updates lifts AT on average",
        "average",
        0.01,
        **EXPLORATORY,
    ),
    "overfit fawa": _claim(
        OURS,
        f"{OVERFIT} FAWA's worst class is above that of the average over updates",
        "worst",
        0.02,
        **EXPLORATORY,
    ),
    "overfit cfa": _claim(
        OURS, f"{OVERFIT} CFA is above AT in the worst class", "worst", 0.02, **EXPLORATORY
    ),
    # both with the common average, three seeds
    "cifar10: average": _claim(
        "Table 1",
        f"{COMMON} is above AT+EMA on average{on('cifar10')}",
        "average",
        0.01,
        dataset="cifar10",
    ),
    "cifar10: worst": _claim(
        "Table 1",
        f"{COMMON} is above AT+EMA in the worst class{on('cifar10')}",
        "worst",
        0.02,
        dataset="cifar10",
    ),
}
