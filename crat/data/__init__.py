"""The images: `data.load(DataConfig("cifar10"))`, `data.Batches(...)`, `data.fetch("cifar10")`.

Its names are looked up at their use, so that a config, which reads the registry only, imports
neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crat.data import imagenet_labels, own, superclasses
    from crat.data.augment import resolve_augment
    from crat.data.files import DataError, data_home
    from crat.data.folder import decoded
    from crat.data.images import Batches, Dataset, imagenet_validation, load, long_tail
    from crat.data.registry import DATASETS, DatasetSpec, Protocol
    from crat.data.sources import fetch, found, listing, not_here
    from crat.data.streamed import Streamed

__all__ = [
    "DATASETS",
    "Batches",
    "DataError",
    "Dataset",
    "DatasetSpec",
    "Protocol",
    "Streamed",
    "augment",
    "data_home",
    "decoded",
    "fetch",
    "files",
    "found",
    "imagenet_labels",
    "imagenet_validation",
    "images",
    "listing",
    "load",
    "long_tail",
    "not_here",
    "own",
    "registry",
    "resolve_augment",
    "sources",
    "streamed",
    "superclasses",
]
_PLACES = {
    "augment": ("resolve_augment",),
    "files": ("DataError", "data_home"),
    "folder": ("decoded",),
    "images": ("Batches", "Dataset", "imagenet_validation", "load", "long_tail"),
    "registry": ("DATASETS", "DatasetSpec", "Protocol"),
    "sources": ("fetch", "found", "listing", "not_here"),
    "streamed": ("Streamed",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"crat.data.{_MODULES[name]}"), name)
    if name in __all__:  # a module of its own
        return import_module(f"crat.data.{name}")
    raise AttributeError(f"crat.data has no {name!r}")
