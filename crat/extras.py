"""The extras: what attacks, training and tables do without, and which `pip install` brings it."""

from __future__ import annotations

import importlib.util

# module: the extra of pyproject.toml that brings it
EXTRAS = {
    "distributed": "dask",
    "matplotlib": "plots",
    "myst_nb": "site",
    "papermill": "notebooks",
    "psutil": "notebooks",
    "seaborn": "plots",
    "shtab": "completion",
    "sphinx": "site",
    "sphinx_book_theme": "site",
    "yaml": "notebooks",
}


class MissingExtra(ImportError):
    """A package of an extra that is not installed: one line that says what to install."""


def missing(*modules: str) -> list[str]:
    """Those of the modules that are not installed."""
    return [module for module in modules if importlib.util.find_spec(module) is None]


def needs(what: str, *modules: str) -> None:
    """Raises MissingExtra where one of the modules that `what` needs is not installed."""
    if lacking := missing(*modules):
        extras = sorted({EXTRAS[module] for module in lacking})
        listed = ", ".join(lacking)
        raise MissingExtra(f"{what} needs {listed}: pip install 'crat[{','.join(extras)}]'")
