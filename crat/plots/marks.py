"""The marks of methods: each has one colour and one shape, in every figure.

The table is the only place that gives a method its colour. A filled shape says that the weights
were averaged, an open one that they were not. Vermillion is left for the worst class. Where classes
are drawn in colours, each has the one of its place in the data set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

BLUE = "#0072B2"
SKY = "#56B4E9"
GREEN = "#009E73"
ORANGE = "#E69F00"
RED = "#D55E00"
PINK = "#CC79A7"
GREY = "#999999"
BLACK = "#000000"
BROWN = "#8C510A"
PURPLE = "#5D3A9B"
OLIVE = "#8A8B00"
NAVY = "#1B2F6B"
WINE = "#882255"
SAND = "#C8AE50"
TEAL = "#44AA99"
STEEL = "#6699CC"
PLUM = "#AA4499"
MAROON = "#661100"
SLATE = "#4F6367"
CYAN = "#00B7C7"
ROSE = "#F4A6B7"
LIME = "#A6C832"
TAN = "#A67B5B"
MOSS = "#4B5320"

# method -> its colour and matplotlib's name of its shape
MARKS: dict[str, tuple[str, str]] = {
    "standard": (GREY, "o"),
    "AT": (BLUE, "o"),
    "TRADES": (GREEN, "s"),
    "MART": (SKY, "s"),
    "HE": (SLATE, "s"),
    "ALP": (GREY, "s"),
    "FAT": (BLACK, "o"),
    "AWP": (CYAN, "o"),
    "TRADES-AWP": (NAVY, "s"),
    "MART-AWP": (NAVY, "D"),
    "CFA (AT)": (ORANGE, "D"),
    "CFA (TRADES)": (BROWN, "D"),
    "CFA (FAT)": (BLACK, "D"),
    "SPAT": (PINK, "^"),
    "Adv": (OLIVE, "v"),
    "Adv+": (PURPLE, "v"),
    "half clean": (SKY, "v"),
    "LA": (BLACK, "v"),
    "smoothing": (PINK, "v"),
    "WAT": (OLIVE, "P"),
    "FRL": (NAVY, "X"),
    "BAT": (SAND, "X"),
    "DAFA": (ROSE, "P"),
    "FAAL": (LIME, "P"),
    "CFOL": (WINE, "P"),
    "CODAT": (GREEN, "P"),
    "RoBal": (GREEN, "^"),
    "REAT": (ORANGE, "s"),
    "AT-BSL": (PURPLE, "D"),
    "universal AT": (BLUE, "h"),
    "class-wise universal AT": (ORANGE, "h"),
    "AT+LS": (STEEL, "v"),
    "CSR": (TEAL, "*"),
    "FAIR-TAT": (MAROON, "*"),
    "HAM": (PLUM, "*"),
    "ABSLD": (TAN, "*"),
    "Fair-ARD": (MOSS, "*"),
    "Fair-RSLAD": (SAND, "*"),
    "self-distillation": (SKY, "^"),
    "drawn alike": (MAROON, "^"),
    "FGSM": (BLACK, ">"),
    "FGSM-RS": (ORANGE, ">"),
    "N-FGSM": (GREEN, ">"),
    "GradAlign": (PINK, ">"),
    "FGSM-PGI": (BROWN, ">"),
    "Free AT": (PURPLE, "<"),
    "one step": (ORANGE, "p"),
    "ten steps": (BLUE, "p"),
}
# other names of the same methods
ALIASES = {
    "pgd_at": "AT",
    "PGD-AT": "AT",
    "balanced AT": "AT",
    "CFA": "CFA (AT)",
    "trades": "TRADES",
    "mart": "MART",
    "he": "HE",
    "base": "standard",
    "undefended": "standard",
    "AT-AWP": "AWP",
    "FAAL (AT)": "FAAL",
    "FAAL (AT-AWP)": "FAAL",
}
# what a name says besides the method: how its weights were averaged
AVERAGED = re.compile(r" ?\+ ?(EMA|FAWA|CFA)\b")
OWN_AVERAGE = ("CFA",)  # methods that average by themselves
# what stands before or after the method and gives it no colour of its own
BESIDE = re.compile(r"^(fine-tuned: |from the start: |tuned |main |CIFAR-10, )|(,| \+| from) .*$")

SERIES = (BLUE, ORANGE, GREEN, PINK, SKY, BROWN, GREY)  # of what is no method
SHAPES = "osD^vP*X"
# of the classes by their place in the data set; after ten they come again
CLASSES = (BLUE, ORANGE, GREEN, PINK, SKY, BROWN, "#AA4499", OLIVE, "#DDCC77", "#44AA99")


@dataclass(frozen=True)
class Mark:
    """How a method is drawn."""

    colour: str
    shape: str  # of matplotlib
    averaged: bool  # filled where the weights were averaged

    @property
    def points(self) -> dict[str, Any]:
        """The settings of `Axes.scatter`."""
        face = self.colour if self.averaged else "white"
        return {"marker": self.shape, "facecolor": face, "edgecolor": self.colour}

    @property
    def line(self) -> dict[str, Any]:
        """The settings of `Axes.plot` and `Axes.errorbar`, without the line's style."""
        face = self.colour if self.averaged else "white"
        return {"marker": self.shape, "color": self.colour, "markerfacecolor": face}


def mark(name: str) -> Mark:
    """The mark of a method by any of its names, such as "WAT+EMA" or "pgd_at, PGD-20".

    A method outside the table is black, and its name decides its shape.
    """
    method = _method(name)
    averaged = bool(AVERAGED.search(name)) or method.startswith(OWN_AVERAGE)
    other = (BLACK, SHAPES[crc32(method.encode()) % len(SHAPES)])
    colour, shape = MARKS.get(method, other)
    return Mark(colour, shape, averaged)


def known(name: str) -> bool:
    """Whether a name is that of a method in the table."""
    return _method(name) in MARKS


def colours(names: Sequence[str]) -> list[str]:
    """A colour for each name of a legend: by method where any is one, else by place.

    So a method keeps its colour beside a reader's own, which is black.
    """
    if any(map(known, names)):
        return [mark(name).colour for name in names]
    return [SERIES[i % len(SERIES)] for i in range(len(names))]


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """The colour of each class of a data set, by name; classes: all of them, in its order."""
    return {name: CLASSES[i % len(CLASSES)] for i, name in enumerate(classes)}


def _method(name: str) -> str:
    """The method in a name, without its average, its attack and its variant."""
    plain = AVERAGED.sub("", name).strip()
    if plain in MARKS or plain in ALIASES:
        return ALIASES.get(plain, plain)
    bare = plain
    while (shorter := BESIDE.sub("", bare)) != bare:
        bare = shorter
    return ALIASES.get(bare, bare)
