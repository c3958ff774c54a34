"""The values that the prose of notebooks 01, 04 and 06 may name of MNIST and CIFAR-10."""

from prose_evidence import claim, csv, printed, table


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
    (
        "breaks? 4|CIFAR-10 it is 4",
        lambda: claim("01", "Temperature-PGD breaks", ", on CIFAR-10")[:1],
    ),
    ("at our scale", lambda: claim("01", "apart under attack", ", on CIFAR-10")[:1]),
]


def cifar10_cells(under):
    """Average and worst class of AT+EMA and of CFA (AT)+EMA, notebook 04."""
    found = []
    for method in (r"AT\+EMA", r"CFA \(AT\)\+EMA"):
        line = printed("04", f"cifar10: {method}")[1:]  # without the name's number
        found.append(line[4 * ("clean", "PGD-20").index(under) :][[0, 2]])
    return found


def clean_gains():
    """What CFA adds to AT+EMA there on clean images, on average and in the worst class."""
    theirs, ours = cifar10_cells("clean")
    return ours - theirs


WEI = [
    (
        "its own, CFA's worst|points below AT\\+EMA",
        lambda: [
            claim("04", "the common average", f"AT+EMA {how}")[0]
            for how in ("on average", "in the worst class")
        ],
    ),
    ("the cat", lambda: [cells[1] for cells in cifar10_cells("PGD-20")]),
    ("clean images, 3", clean_gains),
    ("clean ones are right", lambda: cifar10_cells("clean")[0][1:]),
    (
        "with the same average over updates|the cat",
        lambda: [
            claim("04", f"AT+EMA {how}", ", on CIFAR-10")[0]
            for how in ("on average", "in the worst class")
        ],
    ),
]


def on_cifar10(place):
    """A column of notebook 06's table of CIFAR-10, by method: clean, PGD-20, union, worst ..."""
    methods = ("AT", "TRADES", "WAT")
    return {m: printed("06", rf"cifar10: {m}\+EMA")[1 + 2 * place] for m in methods}


ALL = [
    ("of the cats", lambda: [*on_cifar10(3).values()]),
    (
        "the frog falls",
        lambda: [
            *table("06", "classes_cifar10_small", "method").loc["frog", ["AT+EMA", "WAT+EMA"]],
            *(on_cifar10(1)[m] for m in ("AT", "WAT")),
        ],
    ),
    ("our small network", lambda: claim("06", "WAT", ", on CIFAR-10")[:1]),
]
