"""The values that the prose of notebook 08 may name."""

import re

import numpy as np
from prose_evidence import claim, csv, printed


def fifty_to_one():
    rows = csv("08", "toy")
    return 100 * rows[rows.ratio == rows.ratio[(rows.ratio - 50).abs().idxmin()]].accuracy


def tail_group(method, under, group):
    """A number of the tables of sections 4 and 7 of notebook 08."""
    line = printed("08", rf"{re.escape(method)} {under} .* ± ")[under != "clean" :]
    return line[2 * (["head", "medium", "tail", "all", "worst"].index(group))]


def drawn_alike():
    shown = {"drawn alike": ("medium", "tail", "worst"), "self-distillation": ("head", "worst")}
    shown |= {"AT-BSL": ("worst",), "self-distillation, not averaged": ("worst",)}
    return [tail_group(m, "PGD-20", g) for m, groups in shown.items() for g in groups]


def three(under, group):
    values = [tail_group(method, under, group) for method in ("AT-BSL", "RoBal", "REAT")]
    return [min(values), max(values)]


def lost_to_the_control():
    rows = 100 * csv("08", "errors").set_index(["bar", "part"]).share
    plain, control = rows["tail: AT"], rows["tail: balanced AT"]
    medium = (rows["medium: AT-BSL"] - rows["medium: AT"]).abs()
    return [*(plain - control).abs(), medium["wrong when clean"], medium["boundary error"]]


def tail_errors():
    lines = {
        method: printed("08", rf"{method}, seed \d: .*errors of tail")
        for method in ("AT", "balanced AT")
    }
    larger = {method: line.reshape(3, -1)[:, 2] for method, line in lines.items()}
    return [larger["AT"].mean() / larger["balanced AT"].mean()]


def robal_by_seed():
    rows = printed("08", "RoBal, seed ., right").reshape(3, -1)  # seed, of how many, unscaled ...
    return [*rows[:, 2].tolist(), 2000]


def cw_gap(method):
    return [tail_group(method, "PGD-20", "all") - tail_group(method, "CW-20", "all")]


def robal_lead(under):
    return [tail_group("RoBal", under, "all") - tail_group("AT-BSL", under, "all")]


EVIDENCE = [
    ("cross-entropy's border", fifty_to_one),
    (
        "of the head right|The balanced control|of the tail from",
        lambda: [
            tail_group(m, "PGD-20", g) for m in ("AT", "balanced AT") for g in ("head", "tail")
        ],
    ),
    (
        "three methods|of the tail from",
        lambda: [
            *three("PGD-20", "head"),
            *three("PGD-20", "tail"),
            *three("PGD-20", "all"),
        ],
    ),
    (
        "stand between",
        lambda: [tail_group(m, "PGD-20", "all") for m in ("AT", "balanced AT")],
    ),
    ("below the control|boundary errors", lost_to_the_control),
    ("in a class with more images", tail_errors),
    ("shift is enough", lambda: [tail_group("AT + bias", "clean", "all")]),
    (
        "lifts AT's",
        lambda: [tail_group(m, "PGD-20", "all") for m in ("AT", "AT + bias")],
    ),
    ("lifts AT's|falls short", lambda: [claim("08", "shifted by the log")[0]]),
    (
        "well off",
        lambda: [tail_group("AT + bias", "PGD-20", g) for g in ("head", "tail")],
    ),
    ("warning", robal_by_seed),
    ("forgets the scale", lambda: [claim("08", "unscaled")[0]]),
    (
        "Between PGD",
        lambda: [*cw_gap("RoBal"), *cw_gap("AT-BSL"), *cw_gap("REAT")],
    ),
    ("RoBal's lead", lambda: robal_lead("CW-20")),
    (
        "the whole of RoBal",
        lambda: [*robal_lead("PGD-20"), *np.abs(robal_lead("clean"))],
    ),
    ("lifts the tail less|Its student", drawn_alike),
    ("tail gains", lambda: [claim("08", "AT-BSL is more robust than AT ", "in the tail")[0]]),
    ("as we built it", lambda: [claim("08", "self-distillation", "in the tail")[0]]),
]
