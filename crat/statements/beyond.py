"""Notebook 09: questions that none of the papers answers. Here "the paper" is what one would expect from the papers."""

from crat.claims import Claim

FAMILY = "09"
BIAS = "CFA moves the worst class further than a bias of AT+EMA that costs two points at most"
RARE = "fair training is more than a shift of the K biases"


def _claim(
    paper: str, where: str, statement: str, functional: str, smallest: float, direction: str = "greater"
) -> Claim:
    return Claim(paper, where, statement, functional, direction, FAMILY, smallest_difference=smallest)


CFA = "Wei et al. 2023 (CFA)"
CLAIMS = {
    "bias cfa at": _claim(CFA, f"abstract, read as: {RARE}", f"{BIAS}, on AT", "worst", 0.02),
    "bias cfa trades": _claim(CFA, f"abstract, read as: {RARE}", f"{BIAS}, on TRADES", "worst", 0.02),
    "averaging": _claim(CFA, "Table 1", "an average over updates lifts AT's worst class", "worst", 0.02),
    "gate": _claim(CFA, "Table 3", "a gated average has a better worst class than a plain one", "worst", 0.02),
    "selection": _claim(
        CFA, "section 5.1", "the epoch chosen by average + worst has a better worst class than the last", "worst", 0.02
    ),
    "see-saw": _claim(
        CFA, "section 3.3, read as: the worst class jumps",
        "from epoch to epoch the hard pair's two classes move in opposite directions more often than not", "share", 0.1,
    ),
    "order": _claim(
        "Tian et al. 2021", "abstract, read as: an order of classes at every radius",
        "the classes' order at a quarter of the protocol's radius is that at twice the radius", "rank correlation", 0.1,
    ),
}  # fmt: skip
