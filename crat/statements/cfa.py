"""Notebook 04: what Wei et al. 2023 (CFA) say, in our words; AA there, the protocol's PGD here."""

from crat.analysis.claims import Claim

PAPER, FAMILY = "Wei et al. 2023 (CFA)", "04"


def _claim(where: str, statement: str, functional: str, smallest: float, number: str = "") -> Claim:
    return Claim(
        PAPER,
        where,
        statement,
        functional,
        "greater",
        FAMILY,
        number=number,
        smallest_difference=smallest,
    )


CLAIMS = {
    "at average": _claim(
        "Table 1", "CFA on AT is above AT on average", "average", 0.01, "AA 46.7 to 50.1"
    ),
    "at worst": _claim(
        "Table 1", "CFA on AT is above AT in the worst class", "worst", 0.02, "AA 20.1 to 24.4"
    ),
    "at ema worst": _claim(
        "Table 1", "CFA on AT is above AT+EMA in the worst class", "worst", 0.02, "AA 21.3 to 24.4"
    ),
    "trades average": _claim(
        "Table 1", "CFA on TRADES is above it on average", "average", 0.01, "AA 48.3 to 50.1"
    ),
    "trades worst": _claim(
        "Table 1", "CFA on TRADES is above it in the worst class", "worst", 0.02, "AA 21.7 to 26.5"
    ),
    "trades ema worst": _claim(
        "Table 1",
        "CFA on TRADES is above TRADES+EMA in the worst class",
        "worst",
        0.02,
        "AA 24.2 to 26.5",
    ),
    "jumps": _claim(
        "Figure 4 and its text",
        "from epoch to epoch the worst class moves more than the average oftener than any class "
        "does (share of steps)",
        "share",
        0.1,
        "PGD-10, epochs 108 and 110: worst 23.5, 28.1, average 53.2, 52.6",
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
