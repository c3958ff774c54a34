"""Notebook 08: adversarial training on a long tail.

No table of the three methods' papers was at hand. The claimed directions are those of a table in
notes on TAET, a later paper (CIFAR-10-LT at ratio 10, ResNet-18), and of a warning in RoBal's
repository. Accuracies are balanced: every class counts the same.
"""

from __future__ import annotations

from typing import Any

from crat.analysis.claims import Claim
from crat.config import DATASETS, RunConfig, Selection
from crat.data.images import long_tail
from crat.defenses import preset
from crat.papers.common import (
    EMA,
    EXPLORATORY,
    FEW_SEEDS,
    NONE,
    SMALL,
    USUAL,
    Runs,
    base_of,
    evidence_profile,
    seeded,
    sweep,
)
from crat.training.run import Run

# images of the largest class over those of the smallest; the authors' code writes it as 0.02
RATIO = 50.0
# of a live training: the largest class has as many images as in the evidence
TAIL: dict[str, Any] = {"train_per_class": 700, "epochs": 4, "dtype": "auto"}
DRAWN = "drawn alike"
COMPARED: dict[str, dict[str, Any]] = {
    "AT": preset("pgd_at"),
    "TRADES": preset("trades"),
    "AT-BSL": preset("at_bsl"),
    "RoBal": preset("robal"),
    "REAT": preset("reat"),
    "CFA": preset("cfa"),
    # AT that draws all classes alike: a method of its own, and the teacher of the next
    DRAWN: preset("cfol", gamma=1.0, eta=0.0),
}
STUDENT = "self-distillation"
PLAIN = f"{STUDENT}, not averaged"


def tailed(profile_name: str, selection: Selection) -> RunConfig:
    """The sweeps' base on a long tail: a quarter of the images, more and smaller steps.

    The gpu profile trains CIFAR-10-LT for all its epochs, for a quarter of the images makes few
    updates, the paper profile in the paper's own setting.
    """
    if profile_name == "gpu":
        return base_of("gpu", selection).but(**EMA, imbalance_ratio=RATIO, batch_size=64)
    base = sweep(profile_name, selection).but(imbalance_ratio=RATIO)
    return base if profile_name == "paper" else base.but(epochs=15, batch_size=64)


def even(base: RunConfig) -> RunConfig:
    """The run on as many images in all as its long tail has, the same number of each class.

    The tail of 700, 453 ... 14 images becomes 196 of each class.
    """
    spec = DATASETS[base.data.name]
    most = base.data.train_per_class or spec.smallest_class - base.data.valid_per_class
    images = sum(long_tail(most, spec.n_classes, base.data.imbalance_ratio))
    return base.but(imbalance_ratio=1.0, train_per_class=round(images / spec.n_classes))


def plan(profile_name: str, seed: int = 0, selection: Selection = USUAL) -> Runs:
    """A live training on a long tail; the methods made for it beside AT and TRADES."""
    evidence = evidence_runs(evidence_profile(profile_name), selection)
    return {"live": live(profile_name, seed, selection)} | evidence


def live(profile_name: str, seed: int, selection: Selection) -> RunConfig:
    """The live AT-BSL on the evidence's images: a smaller net, fewer epochs, no average.

    In the profiles gpu and paper it is a run of the profile, without an average.
    """
    base = tailed(evidence_profile(profile_name), selection)
    base = base.but(**preset("at_bsl") | {"average": "none"}).but(seed=seed)
    return base if profile_name in ("gpu", "paper") else base.but(**SMALL | TAIL)


def evidence_runs(profile_name: str, selection: Selection = USUAL) -> Runs:
    """The runs "AT-s0" ...; "balanced AT-s0" has as many images in all, the same of each class.

    A student of self-distillation learns from the run of its seed that draws all classes alike.
    """
    base = tailed(profile_name, selection)
    runs: Runs = {}
    for name, changes in COMPARED.items():
        runs |= seeded(name, base.but(**changes | EMA), selection.repeated(FEW_SEEDS))
    for s in selection.repeated(FEW_SEEDS):
        teacher = Run.of(runs[f"{DRAWN}-s{s}"]).name
        student = base.but(**preset("self_distillation") | EMA, teacher=teacher)
        runs[f"{STUDENT}-s{s}"] = student.but(seed=s)
        runs[f"{PLAIN}-s{s}"] = student.but(**NONE).but(seed=s)
    # as many images without a tail: the loss by their number, apart from that by the tail
    return runs | seeded("balanced AT", even(base).but(**EMA), selection.repeated(FEW_SEEDS))


TABLE = "a table of TAET's, as third-party notes give it"


def _claim(
    paper: str,
    where: str,
    statement: str,
    number: str = "",
    direction: str = "greater",
    **more: Any,
) -> Claim:
    return Claim(paper, where, statement, "average", direction, "08", number=number, **more)


BSL = "Yue et al. 2024 (AT-BSL)"
ROBAL = "Wu et al. 2021 (RoBal)"
REAT = "Li et al. 2023 (REAT)"
CHO = "Cho et al. 2025 (self-distillation)"
PURPOSE = "its purpose, read as: the rare third of the classes"

CLAIMS = {
    "AT-BSL clean": _claim(
        BSL, TABLE, "AT-BSL is more accurate than AT on clean images", "72.74 against 69.00"
    ),
    "AT-BSL robust": _claim(
        BSL, TABLE, "AT-BSL is more robust than AT under PGD-20", "26.86 against 25.69"
    ),
    "RoBal clean": _claim(
        ROBAL, TABLE, "RoBal is more accurate than AT on clean images", "73.18 against 69.00"
    ),
    "RoBal robust": _claim(
        ROBAL, TABLE, "RoBal is more robust than AT under PGD-20", "27.12 against 25.69"
    ),
    "REAT clean": _claim(
        REAT, TABLE, "REAT is more accurate than AT on clean images", "74.56 against 69.00"
    ),
    "REAT robust": _claim(
        REAT,
        TABLE,
        "REAT is less robust than AT under PGD-20",
        "24.02 against 25.69",
        direction="less",
    ),
    "scale": _claim(
        ROBAL,
        "README",
        "PGD on the unscaled cosines leaves more of RoBal's images right than PGD on the "
        "scaled ones",
    ),
    "tail": _claim(
        BSL, PURPOSE, "AT-BSL is more robust than AT under PGD-20 in the tail", **EXPLORATORY
    ),
    "bias": _claim(
        "crat (a control)",
        "not a paper's: is a shift of the K biases enough?",
        "AT-BSL is more robust than AT whose logits are shifted by the log counts at inference",
        **EXPLORATORY,
    ),
    # declared before its runs
    "student": _claim(CHO, "abstract", "self-distillation is more robust than AT-BSL under PGD-20"),
    "student tail": _claim(
        CHO,
        "abstract, read as: the rare third of the classes",
        "self-distillation is more robust than AT-BSL under PGD-20 in the tail",
    ),
    "student teacher": _claim(
        "crat (a control)",
        "not a paper's: is it more than its teacher?",
        "self-distillation is more robust than its teacher, AT that draws all classes alike, under "
        "PGD-20",
        **EXPLORATORY,
    ),
    "CFA tail": _claim(
        "crat (a question)",
        "not a paper's: is it class-wise training on a tail, too?",
        "CFA is more robust than AT under PGD-20 in the tail (common average)",
        **EXPLORATORY,
    ),
}
