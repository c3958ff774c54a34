"""Notebook 10: fast adversarial training, class by class.

No class-wise number of a single-step method was found in print, so most claims are questions of
ours. The papers' claims are those of their repositories' first pages; their tables were not read.

Declared on 27 November 2026 before the plan's own runs were trained. Seen before: short trainings
of FGSM that looked for a setting in which it falls, the last of them the plan's own FGSM of seed 0;
seed 0 of the fast methods in an earlier setting (twice the batch, four times the rate), in which
none fell and Free AT diverged; and notebook 09's runs of AT, which are "ten steps" here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from crat.analysis.claims import Claim
from crat.attacks.gradient import PGD, cw
from crat.config import DATASETS, RunConfig, Selection, number
from crat.defenses import preset
from crat.outcomes.batteries import Battery, protocol_pgd
from crat.papers.common import (
    EMA,
    EXPLORATORY,
    FEW_SEEDS,
    LOOKS,
    NONE,
    USUAL,
    Runs,
    base_of,
    evidence_profile,
    seeded,
    shown_live,
    sweep,
)

# (a) a radius at which single steps fall: twice the protocol's, and no average
TIMES = 2.0
FALLING: dict[str, dict[str, Any]] = {
    "FGSM": preset("fgsm"),
    "FGSM-RS": preset("fgsm_rs"),
    "N-FGSM": preset("n_fgsm"),
    # the code's scripts have 0.2 for 8/255 on CIFAR-10 and 2.0 for twice that
    "GradAlign": preset("grad_align", weight=2.0),
    "FGSM-PGI": preset("fgsm_pgi"),
    "Free AT": preset("free_at", replays=4),
    "AT": preset("pgd_at"),
}
# short epochs, so that the history shows which class falls first
SHORT: dict[str, Any] = {
    "train_per_class": 300,
    "valid_per_class": 50,
    "width": 8,
    "batch_size": 32,
    "lr": 0.05,
    "epochs": 16,
    "eps_warmup": 0,
}
# Free AT's share of the others' rate: 0.04 of 0.2 in fast_adversarial's scripts
FREE_RATE = 0.2
# a class (or the average) falls at the first epoch from which on it stays below this share of its
# highest validation accuracy under attack; a curve that never reached STOOD is not counted
FALLEN, STOOD = 0.5, 0.2

# (b) the protocol's own radius: one step or ten, with and without an average over updates
STEPS: dict[str, dict[str, Any]] = {
    "one step": preset("fgsm_rs"),
    "ten steps": preset("pgd_at"),
}
LONGER = 3  # times the epochs of one step, which still take less time than ten steps


def plan(profile_name: str, seed: int = 0, selection: Selection = USUAL) -> Runs:
    """A live FGSM, the fast methods at a radius at which they fall, and AT by its steps."""
    evidence = evidence_runs(evidence_profile(profile_name), selection)
    return {"live": live(seed, selection)} | evidence


def live(seed: int, selection: Selection) -> RunConfig:
    """The live FGSM, small in every profile, at a radius at which it falls."""
    base = shown_live("quick", selection).but(defense="fgsm", steps=1, epochs=12)
    return twice(base).but(eps_warmup=0, valid_per_class=20, seed=seed)


def twice(base: RunConfig) -> RunConfig:
    """The run at TIMES the radius and the step size of its data set's protocol."""
    protocol = DATASETS[base.data.name].protocol
    return base.but(eps=TIMES * number(protocol.eps), step_size=TIMES * number(protocol.step_size))


def wide_battery(dataset: str) -> Battery:
    """PGD and CW at TIMES the radius and the test step of a data set's protocol, by name."""
    pgd: PGD = protocol_pgd(dataset)
    pgd = replace(pgd, eps=TIMES * pgd.eps, step_size=TIMES * pgd.step_size)
    return {f"PGD-{pgd.steps}": pgd, f"CW-{pgd.steps}": cw(pgd)}


def evidence_runs(profile_name: str, selection: Selection = USUAL) -> Runs:
    """The runs "FGSM-s0" ... at the wide radius; "one step-s0", "one step+EMA-s0" ... at its own.

    Free AT has half the epochs: its four updates a batch cost two steps of FGSM.
    """
    seeds = selection.repeated(FEW_SEEDS)
    runs: Runs = {}
    base = sweep(profile_name, selection)
    wide = twice(base).but(**NONE)
    if profile_name == "laptop":
        wide = wide.but(**SHORT)
    for name, changes in FALLING.items():
        run = wide.but(**changes)
        if name == "Free AT":
            run = run.but(lr=FREE_RATE * run.train.lr)
            if profile_name == "laptop":
                run = run.but(epochs=run.train.epochs // 2)
        runs |= seeded(name, run, seeds)
    for name, changes in STEPS.items():
        runs |= seeded(name, base.but(**changes | NONE), seeds)
        runs |= seeded(f"{name}+EMA", base.but(**changes | EMA), seeds)
    longer = LONGER * base.train.epochs
    if profile_name != "laptop":
        longer = base_of(profile_name, selection).train.epochs
    return runs | seeded(
        "one step, longer+EMA", base.but(**STEPS["one step"] | EMA, epochs=longer), seeds
    )


def _claim(
    paper: str,
    where: str,
    statement: str,
    functional: str,
    direction: str = "greater",
    smallest: float = 0.0,
    **more: Any,
) -> Claim:
    if smallest:
        more["smallest_difference"] = smallest
    return Claim(paper, where, statement, functional, direction, "10", looks=LOOKS, **more)


WONG = "Wong et al. 2020 (FGSM-RS)"
ALIGN = "Andriushchenko and Flammarion 2020 (GradAlign)"
FREE = "Shafahi et al. 2019 (Free AT)"
OURS = "a question of ours"
WIDE = f"at {TIMES:g} times the protocol's radius"
FIRST = "which class falls first?"
BOUGHT = "is a worst class bought by steps or by the average?"

CLAIMS = {
    "rs": _claim(
        WONG,
        "README, table",
        f"FGSM-RS is more robust than AT, best epochs, {WIDE}",
        "average",
        number="46.06 against 45.80",
    ),
    "free": _claim(
        FREE,
        "README, table",
        f"Free AT is more robust than AT, best epochs, {WIDE}",
        "average",
        number="46.33 against 45.53",
    ),
    "falls": _claim(
        ALIGN,
        "abstract",
        f"FGSM loses its robustness: its last epoch is less robust than AT's, {WIDE}",
        "average",
        "less",
    ),
    "rs falls": _claim(
        ALIGN,
        "abstract",
        "a random start does not prevent it: FGSM-RS's last epoch is less robust than AT's, "
        f"{WIDE}",
        "average",
        "less",
    ),
    "grad align": _claim(
        ALIGN,
        "abstract",
        f"GradAlign's last epoch is more robust than FGSM's, {WIDE}",
        "average",
    ),
    "n-fgsm worst": _claim(
        OURS,
        "does noise spare the worst class?",
        f"N-FGSM has a lower worst class than AT, best epochs, {WIDE}",
        "worst",
        "less",
        **EXPLORATORY,
    ),
    "n-fgsm spread": _claim(
        OURS,
        "are single steps less fair?",
        f"N-FGSM's classes lie further apart than AT's, best epochs, {WIDE} (sd)",
        "spread",
        smallest=0.005,
        **EXPLORATORY,
    ),
    "order": _claim(
        OURS,
        "is the class order that of AT?",
        f"N-FGSM's class order goes with AT's, best epochs, {WIDE} (rho above 0)",
        "rank correlation",
        smallest=0.3,
        **EXPLORATORY,
    ),
    "order fallen": _claim(
        OURS,
        "is the class order that of AT?",
        f"the class order of the fallen FGSM, last epoch, goes with AT's, {WIDE} (rho above 0)",
        "rank correlation",
        smallest=0.3,
        **EXPLORATORY,
    ),
    "first": _claim(
        OURS,
        FIRST,
        "of the classes that fall with FGSM, more than half fall in an earlier epoch than the "
        "average over classes",
        "share",
        smallest=0.1,
        **EXPLORATORY,
    ),
    "weak first": _claim(
        OURS,
        FIRST,
        "the weaker a class is under AT, the earlier it falls with FGSM (rho of AT's robust "
        "accuracy and the epoch of the fall above 0)",
        "rank correlation",
        smallest=0.3,
        **EXPLORATORY,
    ),
    "steps": _claim(
        OURS,
        BOUGHT,
        "ten steps leave a better worst class than one, without an average",
        "worst",
        **EXPLORATORY,
    ),
    "steps averaged": _claim(
        OURS,
        BOUGHT,
        "ten steps leave a better worst class than one, both with an average over updates",
        "worst",
        **EXPLORATORY,
    ),
    "average": _claim(
        OURS,
        BOUGHT,
        "an average over updates leaves one step a better worst class",
        "worst",
        **EXPLORATORY,
    ),
    "time": _claim(
        OURS,
        "at equal time?",
        "one step with three times the epochs leaves a better worst class than ten steps, both "
        "with an average over updates",
        "worst",
        **EXPLORATORY,
    ),
    "time average": _claim(
        OURS,
        "at equal time?",
        "one step with three times the epochs is more robust than ten steps, both with an average "
        "over updates",
        "average",
        **EXPLORATORY,
    ),
}
