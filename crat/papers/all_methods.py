"""Notebook 06: every method at one protocol, and the papers' claims on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crat.analysis.claims import Claim
from crat.config import Selection, profile
from crat.defenses import DEFENSES, known_name, preset
from crat.names import one_of
from crat.papers.common import (
    BASELINE,
    EMA,
    EXPLORATORY,
    FEW_SEEDS,
    LOOKS,
    MAIN_SEEDS,
    NONE,
    USUAL,
    Runs,
    base_of,
    beside,
    evidence_profile,
    on,
    seeded,
    shown_live,
    sweep,
)
from crat.training.run import Run, fine_tuned

TRIED: dict[str, dict[str, Any]] = {
    "AT": preset("pgd_at"),
    "AT+EMA": preset("pgd_at") | EMA,
    "CFA (AT)": preset("cfa"),
    "CFA (AT)+EMA": preset("cfa") | EMA,  # with the common average in the place of its own
    "TRADES": preset("trades"),
    "TRADES+EMA": preset("trades") | EMA,
    "CFA (TRADES)": preset("cfa", base="trades"),
    "SPAT+EMA": preset("spat") | EMA,
    "Adv+ +EMA": preset("label_augmentation") | EMA,
    "WAT+EMA": preset("wat") | EMA,
    "FRL+EMA": preset("frl") | EMA,
    "MART+EMA": preset("mart") | EMA,
    "FAT+EMA": preset("fat") | EMA,
    "AWP+EMA": preset("pgd_at") | EMA | {"awp": 0.01},
    "ALP+EMA": preset("alp") | EMA,
    "HE+EMA": preset("he") | EMA,
    "AT+LS+EMA": preset("label_smoothing", clean_share=0.0) | EMA,
    "BAT+EMA": preset("bat") | EMA,
    "CFOL+EMA": preset("cfol") | EMA,
    "DAFA+EMA": preset("dafa") | EMA,
    "FAAL+EMA": preset("faal") | EMA,
    "FAIR-TAT+EMA": preset("fair_tat") | EMA,
    "HAM+EMA": preset("ham") | EMA,
    "CSR+EMA": preset("csr") | EMA,
    "ABSLD+EMA": preset("absld") | EMA,
    "Fair-ARD+EMA": preset("fair_ard") | EMA,
}
# the methods since 2023 without the common average, to see what it does for them
SINCE_2023 = ("AT+LS", "FAIR-TAT", "HAM", "CSR", "ABSLD", "Fair-ARD")
UNAVERAGED = {name: TRIED[f"{name}+EMA"] | NONE for name in SINCE_2023}
# CSR as its authors use it: two epochs from a network of TRADES; and two more epochs of TRADES
TWO_EPOCHS: dict[str, Any] = {"epochs": 2, "lr": 0.001, "schedule": "constant", "eps_warmup": 0}
TUNED = {
    "CSR, two epochs": preset("csr") | EMA | TWO_EPOCHS,
    "TRADES, two epochs": preset("trades") | EMA | TWO_EPOCHS,
}
# those that are trained on CIFAR-10, too, where that is not the profile's own
ON_CIFAR10 = {name: TRIED[name] for name in ("AT+EMA", "TRADES+EMA", "CFA (AT)+EMA", "WAT+EMA")}
# runs of it that AutoAttack judged
STRONG = ("AT-s0", "SPAT+EMA-s0", "Adv+ +EMA-s0")
# judged by AutoAttack on a sample of the images, for an estimate of each class: every method but
# those whose first network was not kept
NOT_KEPT = ("TRADES", "CFA (TRADES)", "FRL+EMA")
ESTIMATED = tuple(f"{method}-s0" for method in TRIED if method not in NOT_KEPT)
RADII = (0.25, 1.0)  # rho of CODAT's ball of class distributions


def plan(profile_name: str, seed: int = 0, selection: Selection = USUAL) -> Runs:
    """A live training with a class-wise policy, every method at one protocol, CODAT's sweep."""
    live = shown_live(profile_name, selection).but(**preset("cfa", base="trades")).but(seed=seed)
    shown = evidence_profile(profile_name)
    swept = {f"codat {key}": run for key, run in codat_sweep(shown, selection).items()}
    runs = {"live": live} | evidence_runs(shown, selection) | swept
    runs |= _repeated(UNAVERAGED, shown, selection) | tuned_runs(shown, selection)
    return runs | beside("cifar10", ON_CIFAR10, shown, selection)


def evidence_runs(profile_name: str, selection: Selection = USUAL) -> Runs:
    """The runs "AT-s0" ... "Fair-ARD+EMA-s2"; a reader's methods have the common average."""
    further = {f"{known_name(method)}+EMA": preset(method) | EMA for method in selection.further}
    return _repeated(TRIED | further, profile_name, selection)


def tuned_runs(profile_name: str, selection: Selection = USUAL) -> Runs:
    """The runs "CSR, two epochs-s0" ...; all start from the first run of TRADES."""
    base, seeds = base_of(profile_name, selection), selection.repeated(MAIN_SEEDS)
    start = base.but(**TRIED["TRADES+EMA"], seed=seeds[0])
    runs: Runs = {}
    for method, changes in TUNED.items():
        runs |= seeded(method, fine_tuned(base.but(**changes), start), seeds)
    return runs


def _repeated(
    methods: Mapping[str, Mapping[str, Any]], profile_name: str, selection: Selection
) -> Runs:
    """The runs of each method and seed.

    All that learn from a teacher have the same one, the first run of the baseline.
    """
    base, seeds = base_of(profile_name, selection), selection.repeated(MAIN_SEEDS)
    teacher = base.but(**TRIED[BASELINE], seed=seeds[0])
    runs: Runs = {}
    for method, changes in methods.items():
        config = base.but(**changes)
        if DEFENSES[config.train.defense].taught:
            config = config.but(teacher=Run.of(teacher).name)
        runs |= seeded(method, config, seeds)
    return runs


def board_runs(profile_name: str, dataset: str = "") -> Runs:
    """The runs of a leaderboard by method and seed, as in `evidence_runs`.

    dataset: the profile's own ("") or, where that is another, cifar10.
    Raises ConfigError.
    """
    own = profile(profile_name).data.name
    named = one_of("leaderboard's data set", dataset or own, (own, "cifar10"))
    if named == own:
        return evidence_runs(profile_name)
    runs = beside(named, ON_CIFAR10, profile_name)
    return {key.removeprefix(f"{named}: "): run for key, run in runs.items()}


def codat_sweep(profile_name: str, selection: Selection = USUAL) -> Runs:
    """The sweeps' runs "rho 0.25-s0", "rho 1-s0", "rho 1-s1" ... and, for rho = 0, "AT-s0" ..."""
    base, several = sweep(profile_name, selection), selection.repeated(FEW_SEEDS)
    runs = seeded("AT", base, several)
    for r in RADII:
        seeds = several if r == max(RADII) else several[:1]  # a claim is on the largest one
        runs |= seeded(f"rho {r:g}", base.but(**preset("codat", rho=r) | EMA), seeds)
    return runs


FAMILY = "06"
DAFA = "Lee et al. 2024 (DAFA), result figure"  # where the numbers of two methods were read
REVIEW = "a review, WRN from scratch"  # the paper's table was not seen
ALL_EMA = "(all with EMA)"

# Each of these papers says that its method is better than a baseline, in one respect:
# key -> (paper, where, method, baseline, functional, under what, the paper's numbers).
# CFA's rows are in notebook 04, SPAT's in 03, Adv+'s in 05, Tian et al.'s in 01.
PURPOSES: dict[str, tuple[str, str, str, str, str, str, str]] = {
    "wat": ("Li and Liu 2023 (WAT)", DAFA, "WAT", "TRADES", "worst", "PGD", "21.3 to 28.6"),
    "frl": ("Xu et al. 2021 (FRL)", DAFA, "FRL", "TRADES", "worst", "PGD", "21.3 to 25.8"),
    "dafa": ("Lee et al. 2024 (DAFA)", DAFA, "DAFA", "TRADES", "worst", "PGD", "21.3 to 30.5"),
    "faal": ("Zhang et al. 2024 (FAAL)", "its purpose", "FAAL", "AT", "worst", "PGD", ""),
    "bat": ("Sun et al. 2023 (BAT)", "its purpose", "BAT", "AT", "worst", "PGD", ""),
    "cfol": ("Pethick et al. 2023 (CFOL)", "its purpose", "CFOL", "AT", "worst", "PGD", ""),
    "mart": ("Wang et al. 2020 (MART)", "its purpose", "MART", "AT", "average", "PGD", ""),
    "awp": ("Wu et al. 2020 (AWP)", "its purpose", "AWP", "AT", "average", "PGD", ""),
    "he": ("Pang et al. 2020 (HE)", "its purpose", "HE", "AT", "average", "PGD", ""),
    "alp": ("Kannan et al. 2018 (ALP)", "its purpose", "ALP", "AT", "average", "PGD", ""),
    "fat": ("Zhang et al. 2020 (FAT)", "its purpose", "FAT", "AT", "average", "clean", ""),
    # declared before a run of this size; short runs of one seed had been seen
    "csr": ("Jin et al. 2025 (CSR)", REVIEW, "CSR", "TRADES", "worst", "PGD", "AA 20.7 to 34.9"),
    "fair_tat": (
        "Medi et al. 2025 (FAIR-TAT)",
        "its purpose",
        "FAIR-TAT",
        "AT",
        "worst",
        "PGD",
        "",
    ),
    "ham": ("Lin et al. 2025 (HAM)", "its purpose", "HAM", "AT", "worst", "PGD", ""),
    # declared before its runs; the benchmark prints no AT with its average and hard labels
    "at_ls": ("Pan and Yao 2026 (AT+LS)", "a control of ours", "AT+LS", "AT", "average", "PGD", ""),
    "absld": ("Zhao et al. 2024 (ABSLD)", "its purpose", "ABSLD", "AT", "worst", "PGD", ""),
    "fair_ard": ("Yue et al. 2023 (Fair-ARD)", "its purpose", "Fair-ARD", "AT", "worst", "PGD", ""),
}
EIGHT = ("wat", "frl")  # trained with eight seeds
OURS = ("at_ls",)  # a benchmark's setting; it does not say what the smoothing is worth
SAYS = {
    ("average", "PGD"): "is more robust than {} on average",
    ("average", "clean"): "is more accurate than {} on clean images",
    ("worst", "PGD"): "is more robust than {} in the worst class",
}


def _purpose(key: str, dataset: str = "") -> Claim:
    """The claim of a method's paper."""
    paper, where, method, baseline, functional, under, numbers = PURPOSES[key]
    said = f"{method} {SAYS[functional, under].format(baseline)} {ALL_EMA}{on(dataset)}"
    looks = LOOKS if key in EIGHT and not dataset else 1
    return Claim(
        paper,
        where,
        said,
        functional,
        "greater",
        FAMILY,
        number=numbers,
        looks=looks,
        dataset=dataset,
        **EXPLORATORY if key in OURS else {},
    )


def _averaged(functional: str, what: str, smallest: float) -> Claim:
    return Claim(
        "a question of ours",
        "is the average theirs, too?",
        f"an average over updates lifts {what} the methods since 2023 (mean of six)",
        functional,
        family=FAMILY,
        smallest_difference=smallest,
        **EXPLORATORY,
    )


CLAIMS = {key: _purpose(key) for key in PURPOSES} | {
    "codat": Claim(
        "Zhi et al. 2025 (CODAT)",
        "abstract",
        "training on the worst distribution of classes lifts the worst class "
        "(sweep scale: rho 1, with EMA)",
        "worst",
        family=FAMILY,
    ),
    "cifar10: wat": _purpose("wat", "cifar10"),
    # declared before its runs; the paper compares with the network before
    "csr tuned": Claim(
        "Jin et al. 2025 (CSR)",
        "a review, WRN, two epochs",
        "two epochs of CSR lift the worst class of a network of TRADES further than two more "
        "epochs of TRADES (one start for all seeds, with EMA)",
        "worst",
        family=FAMILY,
        number="AA 25.8 to 37.6",
    ),
    # declared before the runs without an average
    "average worst": _averaged("worst", "the worst class of", 0.02),
    "average": _averaged("average", "the robust accuracy of", 0.01),
}
