"""Notebook 03: what the abstract and Figure 1 of SPAT say, each with the control that it needs."""

from crat.analysis.claims import Claim

PAPER, FAMILY = "Hou et al. 2023 (SPAT)", "03"
ABSTRACT, FIGURE = "abstract", "Figure 1"
FIGURE_1 = "dogs predicted cat: over 40 % vanilla, 30.6 % SPAT"
ENDS = "an untargeted attack ends in the image's hardest wrong class"


def _claim(
    where: str,
    statement: str,
    functional: str,
    smallest: float,
    direction: str = "greater",
    number: str = "",
) -> Claim:
    return Claim(
        PAPER,
        where,
        statement,
        functional,
        direction,
        FAMILY,
        number=number,
        smallest_difference=smallest,
    )


def _fewer(than: str, number: str = "") -> Claim:
    statement = (
        f"fewer images of the hardest class end in its hard class under SPAT than under {than}"
    )
    return _claim(FIGURE, statement, "average", 0.01, "less", number)


CLAIMS = {
    "ends undefended": _claim(
        ABSTRACT, f"{ENDS} (undefended: share in the clean runner-up - chance)", "share", 0.1
    ),
    "ends at": _claim(
        ABSTRACT, f"{ENDS} (AT: share in the clean runner-up - chance)", "share", 0.1
    ),
    "ends spat": _claim(
        ABSTRACT, f"{ENDS} (SPAT: share in the clean runner-up - chance)", "share", 0.1
    ),
    "control errors": _claim(
        ABSTRACT,
        "... which the attack seeks (AT, runner-up under another seed: broken images - errors on "
        "clean ones)",
        "share",
        0.05,
    ),
    "control class": _claim(
        ABSTRACT,
        "the hard class is the image's own (AT: share in its runner-up - share in its class's "
        "confuser)",
        "share",
        0.05,
    ),
    "pair undefended": _fewer("standard training", FIGURE_1),
    "pair at": _fewer("AT", FIGURE_1),
    "pairs at": _claim(
        FIGURE,
        "fewer images end in their class's hard class under SPAT than under AT (mean over classes)",
        "average",
        0.01,
        "less",
    ),
    "average at": _claim(
        ABSTRACT, "SPAT is more robust than AT on average (PGD and CW)", "average", 0.01
    ),
    "average trades": _claim(
        ABSTRACT, "SPAT is more robust than TRADES on average (PGD and CW)", "average", 0.01
    ),
    "worst at": _claim(
        ABSTRACT, "SPAT is more robust than AT in the worst class (PGD and CW)", "worst", 0.02
    ),
    "worst trades": _claim(
        ABSTRACT, "SPAT is more robust than TRADES in the worst class (PGD and CW)", "worst", 0.02
    ),
    "average control": _claim(
        ABSTRACT,
        "self-pacing makes more robust: SPAT over TRADES on the same cosine head, average",
        "average",
        0.01,
    ),
    "worst control": _claim(
        ABSTRACT,
        "self-pacing makes more robust: SPAT over TRADES on the same cosine head, worst class",
        "worst",
        0.02,
    ),
    "released": _claim(
        "released code (ours)",
        "its test on unscaled cosines overstates robustness (under T = 8 - under T = 1)",
        "average",
        0.01,
    ),
}
