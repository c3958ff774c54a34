"""Names as people write them: `CIFAR-10` is cifar10, `AutoAttack` is AA, `pgd` the only PGD.

An unknown name is a ConfigError that says which are known, and which may be meant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches

# other names of the field, plain -> plain; those of a data set are in its row (`other_names`)
ALIASES = {
    "autoattack": "aa",
    "standardautoattack": "aa",
    "aastandard": "aa",
    "autoattackplus": "aaplus",
    "autoattackrand": "aarand",
    "squareattack": "square",
    "fastgradientsign": "fgsm",
    "wideresnet3410": "wrn3410",
    "prn18": "preactresnet18",
    "at": "pgdat",
    "adversarialtraining": "pgdat",
    "fp32": "float32",
    "bf16": "bfloat16",
    "linfinity": "linf",
}


class ConfigError(ValueError):
    """An unusable setting: one line that says what is wrong and what is allowed."""


def plain(name: str) -> str:
    """A name without case, spaces and punctuation: "CIFAR-10" and "cifar_10" are both "cifar10"."""
    return re.sub(r"[\W_]", "", name.lower())


def unnumbered(name: str) -> str:
    """A plain name without the number at its end: that of "PGD-20" is "pgd"."""
    return plain(name).rstrip("0123456789")


def _aliases(allowed: Collection[str]) -> dict[str, str]:
    """The aliases, plain other name -> plain name, with the `other_names` from a table's rows."""
    rows = allowed.items() if isinstance(allowed, Mapping) else ()
    brought = {
        plain(other): plain(name) for name, row in rows for other in getattr(row, "other_names", ())
    }
    return ALIASES | brought


def known_as(name: str, allowed: Collection[str]) -> str | None:
    """The allowed name that is meant; None where there is none, or more than one.

    A name is meant as it stands, in another spelling, by another name of the field, or without its
    number ("PGD" for "PGD-20").
    """
    if not isinstance(name, str):
        return None
    if name in allowed:
        return name
    meant = _aliases(allowed).get(plain(name), plain(name))
    for spelling in (plain, unnumbered):
        found = [other for other in allowed if meant and spelling(other) == meant]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def did_you_mean(name: str, allowed: Collection[str]) -> str:
    """ "; did you mean a or b?", or "" where none of the allowed names is near."""
    by_spelling = {plain(other): other for other in allowed}
    by_any_name = {unnumbered(other): other for other in allowed} | by_spelling
    aliases = _aliases(allowed)
    by_any_name |= {a: by_spelling[p] for a, p in aliases.items() if p in by_spelling}
    meant = plain(str(name))
    near = []
    if len(meant) > 2:
        near = [s for s in by_spelling if s.startswith(meant) or meant.startswith(s)][:3]
    near = near or get_close_matches(meant, by_any_name, 3)
    names = dict.fromkeys(by_any_name[spelling] for spelling in near)
    return f"; did you mean {' or '.join(names)}?" if names else ""


def unknown(what: str, name: str, allowed: Collection[str]) -> str:
    """The error line of an unknown name, with the known names and those that may be meant."""
    return f"unknown {what} {name!r}; known: {', '.join(allowed)}{did_you_mean(name, allowed)}"


def one_of(what: str, value: str, allowed: Collection[str]) -> str:
    """The allowed name that is meant (`known_as`); raises ConfigError with the nearest names."""
    name = known_as(value, allowed)
    if name is None:
        raise ConfigError(unknown(what, value, allowed))
    return name
