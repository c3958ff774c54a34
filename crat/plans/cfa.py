"""Runs of notebook 04 (Wei et al. 2023, CFA)."""

from __future__ import annotations

from typing import Any

from crat.config import RunConfig, number, profile
from crat.defenses import preset
from crat.plans.all_methods import all_methods_evidence
from crat.plans.common import EMA, SEEDS, Runs, evidence, shown_live, sweep

# training margins of Figure 2 as shares of the one that judges (the paper: 2 to 16 in steps of 2,
# of 8)
MARGINS = (0.4, 0.7, 1.3, 1.6)
BETAS = (1.0, 3.0, 6.0, 9.0)  # of TRADES (Figure 3: 1 to 8)
LAMBDA_1 = (0.3, 0.4, 0.5, 0.6, 0.7)  # of CCM on AT (Figure 5)
LAMBDA_2 = (0.3, 0.5, 0.7)  # of CCR on TRADES, without CCM
# Tables 2 and 3. An average of 200 epochs at 0.85 forgets in 6; one of 6 epochs needs a decay that
# keeps two or three
EPOCH, GATED = ({"average": kind, "average_decay": 0.5} for kind in ("ema_epoch", "fawa"))
NONE: dict[str, Any] = {"average": "none", "average_decay": None}
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
MAIN = ("AT", "AT+EMA", "CFA (AT)", "TRADES", "TRADES+EMA", "CFA (TRADES)")


def cfa(profile_name: str, seed: int = 0) -> Runs:
    """Notebook 04: a short live training of AT with CCM, then the main table, the margins and
    the ablations.
    """
    return {"live": live(profile_name, seed)} | cfa_evidence(evidence(profile_name))


def live(profile_name: str, seed: int) -> RunConfig:
    """CFA on AT, trained in the notebook."""
    return shown_live(profile_name).but(**preset("cfa")).but(seed=seed)


def cfa_evidence(profile_name: str) -> Runs:
    """Keys "main CFA (AT)-s0"; of the sweeps "AT-s0", "eps 0.4-s0", "beta 1", "lambda_1 0.3",
    "AT + CCM" ...
    """
    base, every = sweep(profile_name), all_methods_evidence(profile_name)
    runs = {f"main {m}-s{s}": every[f"{m}-s{s}"] for m in MAIN for s in SEEDS}
    # no margin
    runs |= {
        f"main standard-s{s}": profile(profile_name).but(defense="standard", seed=s) for s in SEEDS
    }
    runs["AT-s0"] = base
    eps = number(base.resolved().train.eps or 0)
    runs |= {f"eps {share:g}-s0": base.but(eps=round(share * eps, 6)) for share in MARGINS}
    runs |= {
        f"beta {v:g}": base.but(**preset("trades", normalised=True) | EMA).but(beta=v)
        for v in BETAS
    }
    runs |= {f"lambda_1 {v:g}": base.but(**preset("cfa", lambda_1=v) | EMA) for v in LAMBDA_1}
    ccr = {v: preset("cfa", base="trades", ccm=False, lambda_2=v) for v in LAMBDA_2}
    runs |= {f"lambda_2 {v:g}": base.but(**changes | EMA) for v, changes in ccr.items()}
    return runs | {name: base.but(**changes) for name, changes in (ON_AT | ON_TRADES).items()}
