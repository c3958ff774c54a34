"""Outcomes by config: what is missing is trained and attacked."""

from __future__ import annotations

from crat.config import RunConfig
from crat.outcomes.batteries import Battery
from crat.outcomes.cache import Outcomes
from crat.outcomes.evaluation import MissingWeights, evaluate
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
