"""Values that the prose of the notebooks names and no figure draws, from published runs' answers.

All is read from results/, nothing is trained or attacked. Accuracies are in percent.
"""

import functools

import numpy as np

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
