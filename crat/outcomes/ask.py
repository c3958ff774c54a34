"""Outcomes by config, whose missing runs are trained; and AutoAttack on a sample of the images."""

from __future__ import annotations

from typing import Any

import numpy as np

from crat.analysis.two_phase import Design
from crat.config import RunConfig
from crat.outcomes.batteries import (
    SAMPLED,
    Battery,
    hunting_battery,
    strong_battery,
    usual_battery,
)
from crat.outcomes.cache import Outcomes
from crat.outcomes.evaluation import MissingWeights, evaluate
from crat.outcomes.sampled import Sampled
from crat.store.files import Store
from crat.training.run import Run
from crat.training.trainer import train


def outcomes(
    config: RunConfig,
    battery: Battery,
    *,
    progress: str | None = None,
    store: Store | None = None,
    **settings,
) -> Outcomes:
    """The outcomes of a config's run, which is trained and attacked where outcomes are missing.

    Stored outcomes, here or under results/, are read; those from the store are announced in a line
    with their date, unless progress is "none".
    progress: as in `crat.training.train`. settings: as in `evaluate`.
    store: the place of the runs (None: the usual one).
    """
    run = Run.of(config, settings.get("device"), store)
    if progress == "none":
        settings = {"tell": None} | settings
    try:
        return evaluate(run, battery, **settings)
    except MissingWeights:
        which = settings.get("which", "best")
        for needed in filter(None, (run, settings.get("crafted_on"))):
            if needed.has_network(which):
                continue
            train(needed.config, device=settings.get("device"), progress=progress, store=store)
        return evaluate(run, battery, **settings)


def sampled_autoattack(
    run: Run, *, design: Design | None = None, hunter: bool = False, **settings: Any
) -> Sampled:
    """A trained run under the usual battery, and under AutoAttack on a sample of its survivors.

    Outcomes are stored, read and continued as by `evaluate`. The places of the sample's images are
    part of the key, and the seed and shares of the design decide these places.
    design: (None: the usual `Design`). settings: of `evaluate`.
    hunter: whether the sample is of what a hunter leaves, too (`hunting_battery`). The published
    estimates are without.
    Raises as `evaluate`.
    """
    dataset = run.config.data.name
    first = (hunting_battery if hunter else usual_battery)(dataset)
    all_images = evaluate(run, first, **settings)
    return Sampled.of(
        all_images, list(first), design or Design(), lambda images: on_sample(run, images, settings)
    )


def on_sample(run: Run, images: np.ndarray, settings: dict[str, Any]) -> Outcomes:
    """The outcomes under SAMPLED of some images of a run; settings: of `evaluate`."""
    attack = strong_battery(run.config.data.name)["AA"]
    return evaluate(run, {SAMPLED: attack}, images=images.tolist(), **settings)
