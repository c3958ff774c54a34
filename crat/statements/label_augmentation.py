"""Notebook 05: what the abstracts say of label augmentation with an attack (2025) and without
(2024); a control.

The numbers are relative changes of errors. The abstract of 2025 prints 53.50 and 5.73 %; the others
of that paper are known from a summary.
"""

from crat.analysis.claims import Claim

LA25, LA24, CONTROL = "Amerehi and Healy 2025", "Amerehi and Healy 2024 (LA)", "crat (a control)"
SUMMARY, PARTLY = "as a summary gives it", "abstract; the number as a summary gives it"


def _claim(
    paper: str,
    where: str,
    statement: str,
    functional: str,
    number: str = "",
    direction: str = "greater",
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
    )


PLAIN, HALF = "the plain network", "one drawn for each image"
CLAIMS = {
    "Adv robust": _claim(
        LA25, PARTLY, f"Adv is more robust than {PLAIN} (PGD-20)", "average", "error -25.24 %"
    ),
    "Adv clean": _claim(
        LA25,
        PARTLY,
        f"Adv is less accurate than {PLAIN} on clean images",
        "average",
        "error +54.19 %",
        "less",
    ),
    "robust": _claim(
        LA25, "abstract", "Adv+ is more robust than Adv (PGD-20)", "average", "error -53.50 %"
    ),
    "clean": _claim(
        LA25,
        PARTLY,
        "Adv+ is more accurate than Adv on clean images",
        "average",
        "error +27.93 %, Adv +54.19 %",
    ),
    "spread clean": _claim(
        LA25,
        "abstract",
        "Adv+ spreads the classes less than Adv (clean, sd)",
        "spread",
        "-5.73 %",
        "less",
    ),
    "spread PGD": _claim(
        LA25,
        SUMMARY,
        "Adv+ spreads the classes less than Adv (PGD-20, sd; there PGD-40)",
        "spread",
        "-2.79 %",
        "less",
    ),
    "Adv corruptions": _claim(
        LA25,
        SUMMARY,
        f"Adv is less robust to corruptions than {PLAIN} ({HALF})",
        "average",
        "error +22.99 %",
        direction="less",
    ),
    "corruptions": _claim(
        LA25,
        SUMMARY,
        f"Adv+ is more robust to corruptions than Adv ({HALF})",
        "average",
        "error +14.42 %, Adv +22.99 %",
    ),
    "exceptions": _claim(
        LA25,
        SUMMARY,
        f"... but less robust to JPEG and pixelate ({HALF})",
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
    "half robust": _claim(
        CONTROL,
        "not a paper's: is it the extra outputs?",
        "Adv+ is more robust than AT on the same half-clean batches (PGD-20)",
        "average",
    ),
    "half clean": _claim(
        CONTROL,
        "not a paper's: is it the extra outputs?",
        "Adv+ is more accurate on clean images than AT on the same half-clean batches",
        "average",
    ),
    "control robust": _claim(
        CONTROL,
        "not a paper's: is it the extra outputs?",
        "Adv+ is more robust than AT with smoothed labels on the same images (PGD-20)",
        "average",
    ),
    "control clean": _claim(
        CONTROL,
        "not a paper's: is it the extra outputs?",
        "Adv+ is more accurate on clean images than AT with smoothed labels on the same images",
        "average",
    ),
}
