"""Estimates of the time of a run, from the cards of finished runs of its kind.

    seconds = images x epochs x (seconds an image and epoch of a run of the same kind)

A kind is the shape of the images, the network, the method, its steps, its precision and the size of
its batches, by which a GPU's seconds differ several times.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from statistics import median
from typing import Any

from crat.config import ConfigError, RunConfig
from crat.data.images import long_tail
from crat.data.registry import DATASETS
from crat.store import Store, StoreError, read_json


class Rates:
    """Seconds an image and epoch, by kind and device, of the finished runs of a store."""

    def __init__(self, place: Store, device: str):
        self.device = device
        seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for card in _cards(place):
            # of another version, or on images that are not here
            with contextlib.suppress(KeyError, TypeError, ConfigError):
                config = RunConfig.from_dict(card["config"])
                n = images(config) * card["epochs_done"]
                if n and card["finished"]:
                    seconds[_kind(config)][card["device"]].append(card["train_seconds"] / n)
        self.seconds = seconds

    def of(self, config: RunConfig, epochs: int) -> tuple[float, str] | None:
        """Seconds of so many epochs and the device that took them; None where no such run is known.

        The device is this one where its times are known. config: resolved (`Run.config`).
        """
        by_device = self.seconds.get(_kind(config))
        if not by_device:
            return None
        device = self.device if self.device in by_device else min(by_device)
        return median(by_device[device]) * images(config) * epochs, device


def images(config: RunConfig) -> int:
    """The number of training images of an epoch."""
    data = config.data
    spec = DATASETS[data.name]
    most = max(1, spec.train_images // spec.n_classes - data.valid_per_class)
    n_max = most if data.train_per_class is None else min(most, data.train_per_class)
    return sum(long_tail(n_max, len(data.kept_classes()), data.imbalance_ratio))


def lacking(config: RunConfig) -> str:
    """A line on the images of a run that are not here; "" where they are."""
    from crat.data import DataError, found, not_here

    try:
        return "" if found(config.data.name) else not_here(config.data.name)
    except DataError as error:
        return str(error)


def _cards(place: Store) -> Iterable[dict[str, Any]]:
    """The cards of all runs of a store, published or not."""
    folders = [*place.root.glob("*")]
    if place.published:
        folders += place.published.glob("*/*")
    for folder in sorted(folders):
        with contextlib.suppress(StoreError):
            yield read_json(folder / "card.json")


def _kind(config: RunConfig) -> str:
    train = config.train
    shape = DATASETS[config.data.name].image_shape
    method = [train.defense, train.steps, train.awp > 0, train.dtype, train.batch_size]
    return json.dumps([shape, asdict(config.model), *method])
