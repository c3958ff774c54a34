"""Notebook 05: Amerehi and Healy on label augmentation (2025: Adv, Adv+; 2024: LA, no attack).

The papers' numbers are relative changes of errors. The abstract of 2025 prints 53.50 and 5.73 %;
the others of that paper are known from a summary. One claim is a control of ours. The runs of the
profiles gpu and paper are on CIFAR-10; with images and weights of yours they are the paper's
fine-tuning on ImageNet: crat reproduce 05 --profile paper --data imagenet --start-from FILE.
"""

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
    fitted,
    seeded,
    shown_live,
    sweep,
)
from crat.training.run import fine_tuned

# the paper's three, LA of 2024, and two controls on the half-clean batches of Adv+: smooth labels,
# and hard ones
COMPARED: dict[str, dict[str, Any]] = {
    "base": preset("standard"),
    "LA": preset("label_augmentation", adversarial=False),
    "Adv": preset("pgd_at"),
    "Adv+": preset("label_augmentation"),
    "smoothing": preset("label_smoothing"),
    "half clean": preset("label_smoothing", delta=0.0),
}
DELTAS = (0.05, 0.2, 0.4)  # of Adv+, beside 0.1
MAIN = {"Adv": preset("pgd_at"), "Adv+": preset("label_augmentation")}
# The paper fine-tunes a trained network for 10 epochs by a cosine rate; its rate was not found.
FINE_TUNING: dict[str, Any] = {"epochs": 5, "lr": 0.05, "schedule": "cosine", "eps_warmup": 0}
SHARES = (0.0, 0.25)  # of clean images in a batch of Adv+, beside a half


LIVE = ("live",)  # the network itself is used


def plan(profile_name: str, seed: int = 0, selection: Selection = USUAL) -> Runs:
    """A short live training of Adv+, the compared methods, the sweep over delta."""
    evidence = evidence_runs(evidence_profile(profile_name), selection)
    return {"live": live(profile_name, seed, selection)} | evidence


def live(profile_name: str, seed: int, selection: Selection) -> RunConfig:
    """The live training of Adv+: the profile's, in laptop the one that figures/laptop shows."""
    base = fitted(shown_live(profile_name, selection), profile_name, selection)
    if profile_name == "laptop":
        base = base_of("quick", selection).but(train_per_class=300)
    return base.but(**preset("label_augmentation")).but(seed=seed)


def evidence_runs(profile_name: str, selection: Selection = USUAL) -> Runs:
    """The sweeps' runs "base-s0", "delta 0.4" ...; the profile's "main base-s0" ..."""
    base = fitted(sweep(profile_name, selection), profile_name, selection)
    main = fitted(base_of(profile_name, selection), profile_name, selection)
    runs: Runs = {}
    for name, changes in COMPARED.items():
        runs |= seeded(name, base.but(**changes | EMA), selection.repeated(FEW_SEEDS))
    runs |= {
        f"delta {d:g}": base.but(**preset("label_augmentation", delta=d) | EMA) for d in DELTAS
    }
    runs |= seeded("main base", main.but(defense="standard"), selection.repeated(MAIN_SEEDS))
    for name, changes in MAIN.items():
        runs |= seeded(f"main {name}", main.but(**changes | EMA), selection.repeated(MAIN_SEEDS))
    for name, changes in MAIN.items():
        for s in selection.repeated(FEW_SEEDS):
            start = runs[f"main base-s{s}"]
            runs[f"tuned {name}-s{s}"] = _tuned(main.but(**changes).but(seed=s), start)
    for share in SHARES:  # once
        changes = preset("label_augmentation", clean_share=share)
        tuned = _tuned(main.but(**changes), runs["main base-s0"])
        runs[f"tuned Adv+, {share:g} clean"] = tuned
    return runs


def _tuned(config: RunConfig, start: RunConfig) -> RunConfig:
    """The fine-tuning from a run of the plan, unless all runs start from a reader's weights."""
    if config.train.start_from:
        return config.but(**EMA)
    return fine_tuned(config.but(**EMA | FINE_TUNING), start)


LA25 = "Amerehi and Healy 2025"
LA24 = "Amerehi and Healy 2024 (LA)"
CONTROL = "crat (a control)"
SUMMARY, PARTLY = "as a summary gives it", "abstract; the number as a summary gives it"


def _claim(
    paper: str,
    where: str,
    statement: str,
    functional: str,
    number: str = "",
    direction: str = "greater",
    **more: Any,
) -> Claim:
    smallest = {"average": 0.01, "spread": 0.005}[functional]
    return Claim(
        paper,
        where,
        statement,
        functional,
        direction,
        "05",
        number=number,
        smallest_difference=smallest,
        **more,
    )


PLAIN, HALF = "the plain network", "one drawn for each image"
TUNED = "fine-tuned"  # as the paper does: from the weights of the plain network
SCRATCH = "trained from the start"  # ours; the rows on all of the profile's images
OUTPUTS = "not a paper's: is it the extra outputs?"

CLAIMS = {
    "Adv robust": _claim(
        LA25,
        PARTLY,
        f"{TUNED} Adv is more robust than {PLAIN} (PGD-20)",
        "average",
        "error -25.24 %",
    ),
    "Adv clean": _claim(
        LA25,
        PARTLY,
        f"{TUNED} Adv is less accurate than {PLAIN} on clean images",
        "average",
        "error +54.19 %",
        "less",
    ),
    "robust": _claim(
        LA25,
        "abstract",
        f"{TUNED} Adv+ is more robust than {TUNED} Adv (PGD-20)",
        "average",
        "error -53.50 %",
    ),
    "clean": _claim(
        LA25,
        PARTLY,
        f"{TUNED} Adv+ is more accurate than {TUNED} Adv on clean images",
        "average",
        "error +27.93 %, Adv +54.19 %",
    ),
    "spread clean": _claim(
        LA25,
        "abstract",
        f"{TUNED} Adv+ spreads the classes less than {TUNED} Adv (clean, sd)",
        "spread",
        "-5.73 %",
        "less",
    ),
    "spread PGD": _claim(
        LA25,
        SUMMARY,
        f"{TUNED} Adv+ spreads the classes less than {TUNED} Adv (PGD-40, sd)",
        "spread",
        "-2.79 %",
        "less",
    ),
    "Adv corruptions": _claim(
        LA25,
        SUMMARY,
        f"{TUNED} Adv is less robust to corruptions than {PLAIN} ({HALF})",
        "average",
        "error +22.99 %",
        "less",
    ),
    "corruptions": _claim(
        LA25,
        SUMMARY,
        f"{TUNED} Adv+ is more robust to corruptions than {TUNED} Adv ({HALF})",
        "average",
        "error +14.42 %, Adv +22.99 %",
    ),
    "exceptions": _claim(
        LA25,
        SUMMARY,
        f"{TUNED} Adv+ is less robust to JPEG and pixelate than {TUNED} Adv ({HALF})",
        "average",
        direction="less",
    ),
    "LA clean": _claim(
        LA24,
        "abstract",
        f"LA is more accurate than {PLAIN} on clean images",
        "average",
        "error up to -23.29 %",
    ),
    "LA robust": _claim(
        LA24,
        "abstract",
        f"LA is more robust than {PLAIN} (PGD-20)",
        "average",
        "error up to -24.46 %",
    ),
    "LA corruptions": _claim(
        LA24,
        "abstract",
        f"LA is more robust than {PLAIN} to corruptions it does not train on ({HALF})",
        "average",
        "error up to -24.23 %",
    ),
}
for _key, _said, _f, _direction in (
    ("robust", "is more robust than Adv (PGD-20)", "average", "greater"),
    ("clean", "is more accurate than Adv on clean images", "average", "greater"),
    ("spread clean", "spreads the classes less than Adv (clean, sd)", "spread", "less"),
    ("spread PGD", "spreads the classes less than Adv (PGD-20, sd)", "spread", "less"),
):
    CLAIMS[f"scratch {_key}"] = _claim(
        LA25,
        "abstract, in another procedure",
        f"Adv+ {SCRATCH} {_said}",
        _f,
        direction=_direction,
        looks=LOOKS,
        **EXPLORATORY,
    )
for _key, _said in (
    ("half robust", "Adv+ is more robust than AT on the same half-clean batches (PGD-20)"),
    ("half clean", "Adv+ is more accurate on clean images than AT on the same half-clean batches"),
    (
        "control robust",
        "Adv+ is more robust than AT with smoothed labels on the same images (PGD-20)",
    ),
    (
        "control clean",
        "Adv+ is more accurate on clean images than AT with smoothed labels on the same images",
    ),
):
    CLAIMS[_key] = _claim(CONTROL, OUTPUTS, _said, "average", **EXPLORATORY)
