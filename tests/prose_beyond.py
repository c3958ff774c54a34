"""The values that the prose of notebook 09 may name, and the brackets of notebook 02."""

import numpy as np
import prose_evidence as results
from prose_evidence import claim, csv, printed, table


def ends_in_the_shirt():
    """Shares of all errors, in percent, that each method shown has in the shirt."""
    return table("09", "ends_in", "method", value="share_of_errors").loc["Shirt"]


def named():
    """Runs in which each sign names the weakest class, and all its runs."""
    signs = ("clean accuracy", "few false positives", "attack-free score")
    return np.concatenate([printed("09", rf"{sign} \d+ \d+$") for sign in signs])


def later(what):
    """Average, its deviation, the worst class and its deviation of what has later seeds."""
    return printed("09", rf"later {what} \{{'average'")[:4]


def a_bias_of_at():
    """Worst classes of AT, AT+EMA and AT with a bias, the bias's lead, and what it costs."""
    at, average, biased = map(later, ("AT", r"AT\+EMA", "AT with a bias"))
    worst = [row[2] for row in (at, average, biased)]
    return [*worst, claim("09", "a bias lifts the worst class further")[0], average[0] - biased[0]]


def bracket(eps, digit):
    """The certified and the attacked accuracy of a digit, and the images that an attack breaks."""
    rows = csv("02", "brackets").set_index(["eps", "class"])
    low, high, n = rows.loc[(eps, digit), ["certified_acc", "robust_acc", "n"]]
    return np.array([100 * low, 100 * high, (1 - high) * n])


def proven_gap():
    """At 0.15: what is certified of the zeros, the broken nines, and the points between the two."""
    zeros, nines = bracket(0.15, 0), bracket(0.15, 9)
    return [zeros[0], nines[2], zeros[0] - nines[1]]


EVIDENCE = [
    ("steep line|fit spends|added to the logits", results.bias_line),
    ("of twenty-one", results.above_the_line),
    (
        "has the same average",
        lambda: [
            printed("09", r"CFA \(AT\)\+EMA .* -\d+\.\d$")[-1],
            *claim("09", "both with the common average"),
        ],
    ),
    (
        "WAT lies above",
        lambda: [printed("09", r"WAT\+EMA .* \d\d\.\d \d\.\d$")[-1], *claim("09", "WAT moves")],
    ),
    ("On these seeds|bias of plain AT lifts", a_bias_of_at),
    ("The seeds of plain AT", lambda: [later("AT")[3], later("AT with a bias")[3]]),
    ("FAAL and DAFA", lambda: printed("09", r"(FAAL|DAFA)\+EMA .* \d\d\.\d \d\.\d$")),
    ("one seed WAT", results.wat_of_seed_0),
    ("stand within", results.averaged_seeds),
    (
        "spread",
        lambda: [
            results.made_of("AT, plain, best", "average").std(),
            results.made_of("AT, plain, last", "worst").std(),
        ],
    ),
    ("other falls", lambda: results.see_saw("AT and TRADES")),
    (
        "gated average",
        lambda: np.add(results.in_steps("CFA (AT)")[:2], results.in_steps("CFA (TRADES)")[:2]),
    ),
    ("neither way", lambda: [results.in_steps("WAT+EMA")[2], results.in_steps("FRL+EMA")[2]]),
    ("AT alone", lambda: results.in_steps("AT")[:2]),
    (
        "below a bias",
        lambda: [claim("09", "CFA moves", f"on {base}")[0] for base in ("AT", "TRADES")],
    ),
    ("go together", lambda: claim("09", "quarter of the protocol")[:1] / 100),
    ("correlation is", lambda: claim("09", "as the weakest class rises")[:1] / 100),
    ("of all errors", ends_in_the_shirt),
    ("names it in|is the weakest in", named),
    ("Ten lengths", lambda: printed("09", "0 K norms|1 K biases|K norms|K biases")),
]
NO_RESULT = [
    "PGD-20 at 0.1",
    "A drop of two points",
    "five points allowed",
    "one and a half times the protocol",
    "CFA three times",
    "(+0.45, but",  # with CSR's runs, before the eight methods after them
    "until 0.15",
    "worst at 0.2",
    "probability 0.8",
    "a cat is right in 20 %",
]
