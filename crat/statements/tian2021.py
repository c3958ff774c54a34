"""Notebook 01: Tian et al. 2021, its abstract, and that of its predecessor (ICLR 2021
submission).
"""

from crat.analysis.claims import Claim

FAMILY = "01"
KDD, ICLR, RHO = "KDD abstract", "ICLR 2021 submission, abstract", "rank correlation"
INSIDE = "attacks end in similar classes (share of errors inside {} superclasses, minus chance)"
CONTROL = "... more than errors on clean images do (ours: share in the {}, under attack - on clean images)"
METHODS = ("PGD-AT", "TRADES")
LIFTS = {"training": "AT with a growing weight", "inference": "AT with a bias"}


def _claim(where: str, statement: str, functional: str, direction: str, smallest: float) -> Claim:
    return Claim(
        "Tian et al. 2021",
        where,
        statement,
        functional,
        direction,
        FAMILY,
        smallest_difference=smallest,
    )


def removal(hard: str, confuser: str) -> Claim:
    """The class removal test of one hard class and the class that its attacked images are turned
    into.
    """
    statement = (
        f"without {confuser}, {hard} attacked into it keeps its class (share - another seed's)"
    )
    return _claim(ICLR, statement, "share", "greater", 0.05)


CLAIMS = {
    "gap": _claim(
        KDD,
        "the classes lie further apart under attack than on clean images (AT: gap under PGD - "
        "clean gap)",
        "gap",
        "greater",
        0.05,
    ),
    "attacks": _claim(
        KDD,
        "the imbalance is consistent among attacks (order under PGD and transfer)",
        RHO,
        "greater",
        0.3,
    ),
    # said of two attacks and of two defences
    "more than clean": _claim(
        KDD,
        "... more than clean accuracy foretells (ours: rho minus rho with clean)",
        RHO,
        "greater",
        0.05,
    ),
    "defences": _claim(
        KDD,
        "the imbalance is consistent among defences (order of AT and TRADES)",
        RHO,
        "greater",
        0.3,
    ),
}
for _m in METHODS:
    _hazard = f"stronger attacks gain on vulnerable classes ({_m}: hazard, R_k)"
    _rate, _spread = (
        f"Temperature-PGD breaks more than PGD ({_m}: robust accuracy)",
        f"({_m}: sd over classes)",
    )
    CLAIMS |= {
        f"hazard {_m}": _claim(KDD, _hazard, RHO, "less", 0.3),
        f"T-PGD {_m}": _claim(KDD, _rate, "average", "less", 0.01),
        f"disparity {_m}": _claim(
            KDD, f"... and enlarges the disparity {_spread}", "spread", "greater", 0.005
        ),
    }
CLAIMS |= {
    "few classes": _claim(
        ICLR,
        "attacks end in few classes (share of errors in two, minus chance)",
        "share",
        "greater",
        0.1,
    ),
    "without T-shirt/top": removal("Shirt", "T-shirt/top"),
    "without Coat": removal("Pullover", "Coat"),
    "norms": _claim(ICLR, "robust classes have a larger weight norm (AT)", RHO, "greater", 0.3),
    "superclass": _claim(ICLR, INSIDE.format("our"), "share", "greater", 0.1),
    "superclass of CIFAR-100": _claim(ICLR, INSIDE.format("CIFAR-100's"), "share", "greater", 0.1),
    # chance is a weak control: these two, ours, were added after the shares had been seen. What is
    # subtracted, the share of the errors on clean images, is taken as known; its own error is not
    # counted.
    "few classes, control": _claim(ICLR, CONTROL.format("two classes"), "share", "greater", 0.05),
    "superclass, control": _claim(ICLR, CONTROL.format("superclass"), "share", "greater", 0.05),
}
for _change, _ours in LIFTS.items():
    _lift = f"a change in {_change} lifts the most vulnerable class (sweep scale: {_ours})"
    CLAIMS |= {
        f"{_change}, worst": _claim(KDD, _lift, "worst", "greater", 0.02),
        f"{_change}, gap": _claim(
            KDD, f"... and narrows the gap between classes ({_ours})", "gap", "less", 0.05
        ),
    }
