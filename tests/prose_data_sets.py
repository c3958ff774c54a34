"""The values that the prose of notebooks 01, 04 and 06 may name of MNIST and CIFAR-10."""

from prose_evidence import claim, csv, printed


def gaps(network, *places):
    """Best class minus worst, when clean and under PGD, of a network of notebook 01's section 11.

    places: of the two among the line's numbers, those in the network's name included.
    """
    return printed("01", network)[list(places)]


def cat():
    """The cat's clean accuracy under AT+EMA, in percent."""
    rows = csv("01", "data_sets").set_index(["panel", "class"])
    return [100 * rows.clean_acc["CIFAR-10, AT+EMA", "cat"]]


TIAN = [
    ("parts them|alike on", lambda: gaps(r"MNIST, AT\+EMA", 2, 6)),
    ("under attack: there", lambda: gaps(r"CIFAR-10, AT\+EMA", 3, 7)),
    ("network at the paper", lambda: gaps("CIFAR-10, PreActResNet-18", 3, 5)),
    ("Of clean cats", cat),
    (
        "validation names more",
        lambda: [claim("01", "few classes", f", on {d}")[0] for d in ("MNIST", "CIFAR-10")],
    ),
    ("breaks? 4|on CIFAR-10 4", lambda: claim("01", "Temperature-PGD breaks", ", on CIFAR-10")[:1]),
    ("at our scale", lambda: claim("01", "apart under attack", ", on CIFAR-10")[:1]),
]
