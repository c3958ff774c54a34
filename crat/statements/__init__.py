"""What the papers say, declared before a number is seen: a module a notebook, each with its CLAIMS
by key.

A notebook joins each of them to its estimate (`crat.analysis.claims.decide`); a test feeds each of
them effects that are known.
"""

from __future__ import annotations

import importlib
import pkgutil

from crat.analysis.claims import Claim


def all_claims() -> dict[str, Claim]:
    """Every claim of the package, by "module: key"."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {
        f"{name}: {key}": claim
        for name, module in modules.items()
        for key, claim in module.CLAIMS.items()
    }
