"""Notebook 08: what is said of adversarial training on a long tail.

Of the three methods' papers no table was seen. The directions are those of a table that notes on
TAET, a later paper, give (CIFAR-10-LT at ratio 10, ResNet-18), and of a warning in RoBal's own
repository. Accuracies are balanced: every class counts the same.
"""

from crat.analysis.claims import Claim

TABLE = "a table of TAET's, as third-party notes give it"


def _claim(
    paper: str, where: str, statement: str, number: str = "", direction: str = "greater"
) -> Claim:
    return Claim(paper, where, statement, "average", direction, "08", number=number)


BSL, ROBAL, REAT = "Yue et al. 2024 (AT-BSL)", "Wu et al. 2021 (RoBal)", "Li et al. 2023 (REAT)"
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
        "PGD on the unscaled cosines leaves more of RoBal's images right than PGD on the scaled "
        "ones",
    ),
    "tail": _claim(BSL, PURPOSE, "AT-BSL is more robust than AT under PGD-20 in the tail"),
    "bias": _claim(
        "crat (a control)",
        "not a paper's: is a shift of the K biases enough?",
        "AT-BSL is more robust than AT whose logits are shifted by the log counts at inference",
    ),
}
