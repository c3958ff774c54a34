"""The values that the prose of notebook 10 may name, as `prose_evidence` has for the others."""

import numpy as np
from prose_evidence import csv, printed, table


def reached(method, epoch):
    """Clean, average, worst, crossfit and CW's average of a method, each with its sd."""
    return printed("10", rf"{method} {epoch} \d")


def bought(bar, functional):
    rows = csv("10", "bought")
    return 100 * rows[(rows.bar == bar) & (rows.functional == functional)].value.mean()


def broken_by_cw():
    """Points of the average that CW takes beyond PGD, a row of the table each."""
    rows = printed("10", r"\S+( AT)? (best|last) \d").reshape(-1, 10)
    return [(rows[:, 2] - rows[:, 8]).min(), (rows[:, 2] - rows[:, 8]).max()]


def class_of(name, *methods):
    return [table("10", "classes", "method").loc[name, method] for method in methods]


UNFALLEN = ("FGSM", "N-FGSM", "GradAlign")
EVIDENCE = [
    ("stand together", lambda: [reached(m, "best")[2] for m in ("AT", "FGSM-PGI", "FGSM-RS")]),
    ("worst class, mostly", lambda: [reached(m, "best")[4] for m in ("AT", "FGSM-PGI")]),
    ("last epoch keeps", lambda: [reached("FGSM", "last")[2]]),
    ("do not fall", lambda: [reached(m, "best")[2] for m in ("N-FGSM", "GradAlign")]),
    ("Free AT has", lambda: [reached("Free AT", "best")[2]]),
    ("CW breaks", broken_by_cw),
    ("sneaker", lambda: [-np.diff(class_of("Sneaker", "AT", "FGSM, last epoch"))[0]]),
    ("give the pullover", lambda: [max(class_of("Pullover", *UNFALLEN))]),
    ("give the pullover", lambda: class_of("Pullover", "AT")),
    ("give the pullover", lambda: class_of("Coat", "AT", *UNFALLEN)),
    (
        "Steps buy",
        lambda: [
            bought(f"ten steps{end}", "average") - bought(f"one step{end}", "average")
            for end in ("", "+EMA")
        ],
    ),
    (
        "Steps buy",
        lambda: [
            bought(f"{steps}{end}", "worst")
            for steps in ("one step", "ten steps")
            for end in ("", "+EMA")
        ],
    ),
    (
        "Time buys",
        lambda: [
            bought("one step, longer+EMA", "worst"),
            bought("one step, longer+EMA", "average"),
            bought("ten steps+EMA", "average"),
        ],
    ),
]
# parameters, a paper's number, and time, which is each machine's own
NO_RESULT = [
    "three times the epochs",
    "radius, 0.2",
    "usual 0.1",
    "batch four times",
    "never reached 20 %",
    "steps of 0.025",
    "loses 20 points",
    "five times as long",
    "four times the rate",
    "a class of 20 %",
]
