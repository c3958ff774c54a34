"""The outcomes of a network on each image, clean and under attack: computed once and stored."""

from crat.outcomes.ask import on_sample, outcomes, sampled_autoattack
from crat.outcomes.batteries import (
    HUNTER,
    SAMPLED,
    TEMPERATURES,
    Battery,
    hunting_battery,
    protocol_pgd,
    standard_battery,
    strong_battery,
    temperature_battery,
    usual_battery,
)
from crat.outcomes.cache import OutcomeCache, Outcomes, Subject
from crat.outcomes.evaluation import MissingWeights, Question, evaluate
from crat.outcomes.publishing import publish, publish_weights
from crat.outcomes.sampled import Sampled

__all__ = [
    "HUNTER",
    "SAMPLED",
    "TEMPERATURES",
    "Battery",
    "MissingWeights",
    "OutcomeCache",
    "Outcomes",
    "Question",
    "Sampled",
    "Subject",
    "evaluate",
    "evaluation",
    "hunting_battery",
    "margins",
    "on_sample",
    "outcomes",
    "precision",
    "protocol_pgd",
    "publish",
    "publish_weights",
    "sampled",
    "sampled_autoattack",
    "standard_battery",
    "strong_battery",
    "tables",
    "temperature_battery",
    "usual_battery",
]
