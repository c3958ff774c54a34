"""The images: `data.load(DataConfig("cifar10"))`, `data.Batches(...)`, `data.fetch("cifar10")`.

The names of this face are looked up when they are used, so that a config, which asks the registry
only, imports neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crat.data.augment import resolve_augment
    from crat.data.files import DataError, data_home
    from crat.data.folder import imagenet_loader
    from crat.data.images import Batches, Dataset, imagenet_validation, load, long_tail
    from crat.data.registry import DATASETS
    from crat.data.sources import fetch, found, listing, not_here

__all__ = [
    "DATASETS",
    "Batches",
    "DataError",
    "Dataset",
    "data_home",
    "fetch",
    "found",
    "imagenet_loader",
    "imagenet_validation",
    "listing",
    "load",
    "long_tail",
    "not_here",
    "resolve_augment",
]
_PLACES = {
    "augment": ("resolve_augment",),
    "files": ("DataError", "data_home"),
    "folder": ("imagenet_loader",),
    "images": ("Batches", "Dataset", "imagenet_validation", "load", "long_tail"),
    "registry": ("DATASETS",),
    "sources": ("fetch", "found", "listing", "not_here"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"crat.data has no {name!r}")
    return getattr(import_module(f"crat.data.{_MODULES[name]}"), name)
