"""Notebook 07: what the abstract of Benz et al. 2021 says of universal perturbations and of
training against them.
"""

from crat.analysis.claims import Claim


def _claim(
    statement: str, functional: str, where: str = "abstract", smallest: float = 0.01
) -> Claim:
    paper = "Benz et al. 2021"
    return Claim(paper, where, statement, functional, "greater", "07", smallest_difference=smallest)


EQUAL, HELPS = (
    "abstract, read as: the source of unbalanced robustness",
    "abstract, read as: a defence",
)
CLASS_WISE, ONE = "training against one perturbation a class", "training against one for all"

CLAIMS = {
    "unequal": _claim(
        "of the images that a single perturbation fools, more than their share lie in the three "
        "classes that it fools "
        "most on other images (undefended network)",
        "share",
        smallest=0.05,
    ),
    "spread": _claim(
        "under a single perturbation the classes lie further apart than on clean images "
        "(undefended network, sd)",
        "spread",
        EQUAL,
        0.005,
    ),
    "clean": _claim(f"{CLASS_WISE} is more accurate on clean images than {ONE}", "average"),
    "robust": _claim(f"{CLASS_WISE} is more robust to a single perturbation than {ONE}", "average"),
    "worst": _claim(
        f"{CLASS_WISE} leaves a better worst class under a single perturbation than {ONE}",
        "worst",
        EQUAL,
        0.02,
    ),
    "class-wise attack": _claim(
        f"{CLASS_WISE} is more robust to one perturbation a class than {ONE}",
        "average",
        "abstract, read as: each kind of perturbation",
    ),
    "defence": _claim(
        f"{ONE} is more robust to a single perturbation than standard training", "average", HELPS
    ),
}
