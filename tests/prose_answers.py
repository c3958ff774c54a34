"""Values that the prose of the notebooks names and no figure draws, from published runs' answers.

All is read from results/, nothing is trained or attacked. Accuracies are in percent.
"""

import functools
import re

import numpy as np
from prose_evidence import claim, printed, table, training

from crat.corruptions import corruption_battery
from crat.papers.evidence import Evidence


@functools.cache
def undefended():
    """What the undefended network of notebook 03's sweep has right under PGD and CW."""
    evidence = Evidence.of("03", "laptop")
    judged = evidence.judge(evidence.battery, ["undefended-s0"])
    return 100 * judged.each("undefended", "average", *evidence.battery).item()


@functools.cache
def brightened():
    """Errors at the largest brightening, then answers "bag" of the attacked at severity 4 and 5."""
    evidence = Evidence.of("05", "laptop")
    attacked = ["Adv", "Adv+", "half clean", "smoothing"]
    keys = [f"{m}-s{seed}" for m in (*attacked, "base") for seed in evidence.seeds]
    bright = {name: corruption_battery()[name] for name in ("brightness-4", "brightness-5")}
    judged = evidence.judge(bright, keys, first=400)
    bag = judged.classes.index("Bag")

    def share(hit, method):
        return 100 * np.mean([hit(judged.seen[key]) for key in judged.keys(method)])

    errors = [share(lambda o: o.predictions["brightness-5"] != o.y, m) for m in (*attacked, "base")]
    bags = [share(lambda o, n=n: o.predictions[n] == bag, m) for n in bright for m in attacked]
    return [*errors, *bags]


@functools.cache
def biased():
    """AT of the sweep, seed 0: worst class without a bias, then worst class and average with it."""
    evidence = Evidence.of("01", "laptop")
    attack = dict([next(iter(evidence.battery.items()))])
    bias = evidence.bias("AT-s0", max_drop=0.02)
    plain, lifted = (evidence.judge(attack, ["AT-s0"], bias=b) for b in (None, bias))
    values = [plain.each("AT", "worst"), lifted.each("AT", "worst"), lifted.each("AT")]
    return 100 * np.concatenate(values)


# rows of notebook 05 on fine-tuned networks
TUNED = (
    ("fine-tuned Adv+ is more robust than fine-tuned Adv (PGD-20)",),
    ("fine-tuned Adv+ spreads", "clean"),
    ("fine-tuned Adv+ spreads", "PGD-40"),
)


def scratch(method, under):
    """The accuracy under an attack of a network trained from the start."""
    column = {"clean": 0, "PGD-20": 2}[under]
    return 100 - printed("05", rf"main {re.escape(method)} [1-9][\d.]* ± ")[column]


def tuned(method, *columns):
    """Numbers of the table of fine-tuned networks: mean and sd, clean, PGD-20, each with worst."""
    return printed("05", rf"tuned {re.escape(method)} 3 ")[1:][list(columns)]


def tuned_gains(functional):
    """What fine-tuned Adv+ has more than Adv, clean and under PGD-20."""
    columns = (0, 4) if functional == "average" else (2, 6)
    return tuned("Adv+", *columns) - tuned("Adv", *columns)


def tuned_classes():
    """What fine-tuned Adv+ has more than Adv under corruptions, by class."""
    rows = table("05", "corruptions_by_class", "method")
    return rows["tuned Adv+"] - rows["tuned Adv"]


# the rows on two trainings against universal perturbations
CLASS_WISE = (
    ("to a single perturbation than training against one for all",),
    ("better worst class",),
    ("to one perturbation a class than",),
)


def parted():
    """By how much the two trainings differ at most, apart from shirt, coat and pullover."""
    rows = table("07", "trainings", "method").drop(["Shirt", "Coat", "Pullover"])
    return [(rows["class-wise universal AT"] - rows["universal AT"]).abs().max().round(1)]


def tuned_shirts():
    """What each network keeps of the shirts under corruptions."""
    return table("05", "corruptions_by_class", "method").loc["Shirt"]


def tuned_rows():
    return [claim("05", *words)[0] for words in TUNED]


def class_wise_rows():
    return [claim("07", *words)[0] for words in CLASS_WISE]


def universal_worst():
    """The worst class after training against one for all, clean and under the perturbation."""
    return [training("universal AT", under, 2) for under in ("clean", "one for all")]
