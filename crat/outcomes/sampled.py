"""AutoAttack on a sample of the images: the outcomes from which a class's accuracy is estimated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from crat.analysis import two_phase
from crat.analysis.two_phase import Counts, Design, Sample
from crat.outcomes.batteries import SAMPLED
from crat.outcomes.cache import Outcomes


@dataclass(frozen=True)
class Sampled:
    """The outcomes under phase one's attacks, and under AutoAttack on a sample of its survivors.

    all_images: the outcomes of phase one, N images.
    phase_one: the names of its attacks, all of which an image must survive.
    design: by which the sample was chosen.
    sample: the places of the attacked images.
    attacked: the outcomes under SAMPLED of these images only, in the order of the sample; None
    where no image survived phase one.
    """

    all_images: Outcomes
    phase_one: tuple[str, ...]
    design: Design
    sample: Sample
    attacked: Outcomes | None

    @classmethod
    def of(
        cls,
        all_images: Outcomes,
        phase_one: Sequence[str],
        design: Design,
        attack: Callable[[np.ndarray], Outcomes],
    ) -> Sampled:
        """The sample that a design chooses, attacked.

        attack: the outcomes under SAMPLED of the images at the places (n,).
        """
        margins = np.min([all_images.margins[name] for name in phase_one], axis=0)
        survived = _survived(all_images, phase_one)
        sample = two_phase.choose(all_images.y, survived, margins, design)
        attacked = attack(sample.places) if len(sample.places) else None
        return cls(all_images, tuple(phase_one), design, sample, attacked)

    @cached_property
    def counts(self) -> Counts:
        """The counts of the classes that have images."""
        found = self.all_images
        survived = _survived(found, self.phase_one)
        withstood = self.attacked.robust(SAMPLED) if self.attacked else np.zeros(0, bool)
        return two_phase.counts(found.y, survived, self.sample, withstood)

    @property
    def classes(self) -> list[str]:
        """The names of the classes that have images."""
        return [self.all_images.classes[k] for k in np.unique(self.all_images.y)]

    @property
    def table(self) -> pd.DataFrame:
        """The estimates by class (`two_phase.class_estimates`)."""
        return two_phase.class_estimates(self.counts, self.classes)

    @property
    def totals(self) -> dict[str, Any]:
        """The estimates over the classes (`two_phase.totals`)."""
        return two_phase.totals(self.counts)

    @property
    def warning(self) -> str:
        """A line on the breaks in the random part; "" where there are none."""
        return two_phase.warning(self.counts, self._left_by, self.classes)

    @property
    def description(self) -> str:
        """A line on the images that AutoAttack met."""
        hard = int(self.sample.hard.sum())
        drawn = len(self.sample.places) - hard
        met = f"{SAMPLED}: AutoAttack on {hard + drawn} of {len(self.all_images.y)} images, "
        if not hard:
            return f"{met}drawn at random of those that {self._left_by} left"
        return (
            f"{met}{hard} with the smallest margin of those that {self._left_by} left and {drawn} "
            "at random of the rest"
        )

    @property
    def _left_by(self) -> str:
        """The attacks of phase one in words."""
        *others, last = self.phase_one
        return f"{', '.join(others)} and {last}" if others else last


def _survived(found: Outcomes, phase_one: Sequence[str]) -> np.ndarray:
    return np.logical_and.reduce([found.robust(name) for name in phase_one])
