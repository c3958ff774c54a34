"""Notebook 01: Tian et al. 2021, on any of its data sets.

The claims are those of the paper's abstract, and of its predecessor's (ICLR 2021 submission).
"""

from __future__ import annotations

from typing import Any

from crat.analysis.claims import Claim
from crat.config import ConfigError, Selection, profile
from crat.data.registry import DATASETS
from crat.defenses import preset
from crat.papers.common import (
    BESIDE,
    EMA,
    EXPLORATORY,
    FEW_SEEDS,
    LATER,
    LOOKS,
    MAIN_SEEDS,
    USUAL,
    Runs,
    base_of,
    beside,
    evidence_profile,
    fitted,
    on,
    seeded,
    shown_live,
    sweep,
)

TRAINED = ("standard", "pgd_at", "trades")
# declared for their flat confidences, which Temperature-PGD is made for; HE's turned out sure
FLAT = ("mart", "he")
# on the data sets beside the profile's own, with the common average
ELSEWHERE = {"AT+EMA": preset("pgd_at") | EMA, "TRADES+EMA": preset("trades") | EMA}
FORMS = ("weight",)  # forms of the lift of the most vulnerable class in training, which is ours


def plan(profile_name: str, seed: int = 0, selection: Selection = USUAL) -> Runs:
    """A live run of the profile, then the evidence.

    The quick profile decides nothing, so its figures are drawn from the laptop profile's published
    runs; on a data set that has none, from runs at its own settings.
    Raises ConfigError on a single seed, for the hazard and the class removal need another training.
    """
    if len(selection.repeated(MAIN_SEEDS)) < 2:
        raise ConfigError("notebook 01 needs two seeds or more, such as 0 1")
    shown = fitted(shown_live(profile_name, selection), profile_name, selection)
    live = shown.but(defense="pgd_at", seed=seed)
    evidence = evidence_profile(profile_name)
    if selection.data not in ("", profile(evidence).data.name):
        evidence = profile_name
    elsewhere: Runs = {}
    for dataset in BESIDE:
        elsewhere |= beside(dataset, ELSEWHERE, evidence, selection)
    return {"live": live} | evidence_runs(evidence, selection) | elsewhere


def evidence_runs(profile_name: str, selection: Selection = USUAL) -> Runs:
    """The runs "pgd_at-s0", "mart-s0", "without-3-s0" (AT without class 3), "lift weight-s0" ..."""
    base = fitted(base_of(profile_name, selection), profile_name, selection)
    short = fitted(sweep(profile_name, selection), profile_name, selection)
    runs: Runs = {}
    for method in TRAINED:
        runs |= seeded(method, base.but(defense=method), selection.repeated(MAIN_SEEDS))
    attackable = base.but(defense="pgd_at")  # a falling temperature
    runs |= seeded("later pgd_at", attackable, selection.seeds or LATER)
    for method in FLAT:
        flat = base.but(**preset(method) | EMA)
        runs |= seeded(method, flat, selection.repeated(MAIN_SEEDS))
    removed = DATASETS[base.data.name].removed_classes
    for k in removed:
        several = selection.repeated(MAIN_SEEDS)
        seeds = several[:1] if k == removed[-1] else several  # the unrelated one decides nothing
        runs |= seeded(f"without-{k}", base.but(defense="pgd_at", drop_classes=(k,)), seeds)
    runs |= seeded("AT", short.but(**preset("pgd_at")), selection.repeated(FEW_SEEDS))
    for form in FORMS:
        lifted = short.but(**preset("tian2021", form=form) | EMA)
        runs |= seeded(f"lift {form}", lifted, selection.repeated(FEW_SEEDS))
    return runs


FAMILY = "01"
KDD = "KDD abstract"
ICLR = "ICLR 2021 submission, abstract"
RHO = "rank correlation"
INSIDE = "attacks end in similar classes (share of errors inside {} superclasses, minus chance)"
CONTROL = (
    "attacks end in the {} more than errors on clean images do "
    "(share under attack - on clean images)"
)
BEYOND = "the order of classes {} is more than clean accuracy foretells (rho minus rho with clean)"
# what the rows on Temperature-PGD judge: the last two have flat confidences, which it is made for
JUDGED = ("PGD-AT", "TRADES", "MART", "HE")
LIFTS = {"training": "AT with a growing weight", "inference": "AT with a bias"}


def _claim(
    where: str, statement: str, functional: str, direction: str, smallest: float, **more: Any
) -> Claim:
    return Claim(
        "Tian et al. 2021",
        where,
        statement,
        functional,
        direction,
        FAMILY,
        smallest_difference=smallest,
        **more,
    )


def removal(hard: str, confuser: str) -> Claim:
    """The class removal test of a hard class and of the class that its images are taken for."""
    statement = (
        f"without {confuser}, {hard} attacked into it keeps its class (share - another seed's)"
    )
    return _claim(ICLR, statement, "share", "greater", 0.05)


def general(dataset: str = "", **more: Any) -> dict[str, Claim]:
    """The claims that every data set decides; the keys begin with the data set's name, if any."""
    more |= {"dataset": dataset}
    begin = f"{dataset}: " if dataset else ""
    return {
        f"{begin}gap": _claim(
            KDD,
            "the classes lie further apart under attack than on clean images "
            f"(AT: gap under PGD - clean gap){on(dataset)}",
            "gap",
            "greater",
            0.05,
            **more,
        ),
        f"{begin}defences": _claim(
            KDD,
            f"the imbalance is consistent among defences (order of AT and TRADES){on(dataset)}",
            RHO,
            "greater",
            0.3,
            **more,
        ),
        f"{begin}few classes": _claim(
            ICLR,
            f"attacks end in few classes (share of errors in two, minus chance){on(dataset)}",
            "share",
            "greater",
            0.1,
            **more,
        ),
    }


def temperature(method: str, dataset: str = "", **more: Any) -> Claim:
    """The claim that Temperature-PGD is the stronger attack on a method's networks."""
    statement = f"Temperature-PGD breaks more than PGD ({method}: robust accuracy){on(dataset)}"
    return _claim(KDD, statement, "average", "less", 0.01, dataset=dataset, **more)


CLAIMS = general(looks=LOOKS) | {
    "attacks": _claim(
        KDD,
        "the imbalance is consistent among attacks (order under PGD and transfer)",
        RHO,
        "greater",
        0.3,
        looks=LOOKS,
    ),
    # ours: said of two attacks and of two defences
    "attacks beyond clean": _claim(
        KDD, BEYOND.format("under two attacks"), RHO, "greater", 0.05, looks=LOOKS, **EXPLORATORY
    ),
    "defences beyond clean": _claim(
        KDD, BEYOND.format("of two defences"), RHO, "greater", 0.05, looks=LOOKS, **EXPLORATORY
    ),
}
for _m in JUDGED:
    CLAIMS[f"T-PGD {_m}"] = temperature(_m, looks=LOOKS if _m in JUDGED[:2] else 1)
for _m in JUDGED[:2]:
    CLAIMS |= {
        f"hazard {_m}": _claim(
            KDD,
            f"stronger attacks gain on vulnerable classes ({_m}: hazard, R_k)",
            RHO,
            "less",
            0.3,
        ),
        f"disparity {_m}": _claim(
            KDD,
            f"Temperature-PGD enlarges the disparity ({_m}: sd over classes)",
            "spread",
            "greater",
            0.005,
            looks=LOOKS,
            **EXPLORATORY,
        ),
    }
CLAIMS |= {
    "falling temperature": _claim(
        "a question of ours",
        "a falling temperature breaks more than a fixed one (PGD-AT: robust accuracy)",
        "average",
        "less",
        0.01,
        **EXPLORATORY,
    ),
    "without T-shirt/top": removal("Shirt", "T-shirt/top"),
    "without Coat": removal("Pullover", "Coat"),
    "norms": _claim(
        ICLR, "robust classes have a larger weight norm (AT)", RHO, "greater", 0.3, looks=LOOKS
    ),
    "superclass": _claim(ICLR, INSIDE.format("our"), "share", "greater", 0.1, looks=LOOKS),
    "superclass of CIFAR-100": _claim(ICLR, INSIDE.format("CIFAR-100's"), "share", "greater", 0.1),
    # chance is a weak control: these two, ours, were added after the shares had been seen. What is
    # subtracted, the share of the errors on clean images, is taken as known; its own error is not
    # counted.
    "few classes, control": _claim(
        ICLR, CONTROL.format("two classes"), "share", "greater", 0.05, looks=LOOKS, **EXPLORATORY
    ),
    "superclass, control": _claim(
        ICLR, CONTROL.format("superclass"), "share", "greater", 0.05, looks=LOOKS, **EXPLORATORY
    ),
}
for _change, _ours in LIFTS.items():
    CLAIMS |= {
        f"{_change}, worst": _claim(
            KDD,
            f"a change in {_change} lifts the most vulnerable class ({_ours})",
            "worst",
            "greater",
            0.02,
        ),
        f"{_change}, gap": _claim(
            KDD,
            f"a change in {_change} narrows the gap between classes ({_ours})",
            "gap",
            "less",
            0.05,
            **EXPLORATORY,
        ),
    }
for _d in BESIDE:
    CLAIMS |= general(_d) | {f"{_d}: T-PGD PGD-AT": temperature("PGD-AT", _d)}
