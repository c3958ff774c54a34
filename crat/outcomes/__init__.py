"""The outcomes of a network on each image, clean and under attack: computed once and stored."""

from crat.outcomes.ask import outcomes
from crat.outcomes.batteries import (
    TEMPERATURES,
    Battery,
    protocol_pgd,
    standard_battery,
    strong_battery,
    temperature_battery,
    usual_battery,
)
from crat.outcomes.cache import OutcomeCache, Outcomes, Subject
from crat.outcomes.evaluation import MissingWeights, Question, evaluate
from crat.outcomes.publishing import publish, publish_weights

__all__ = [
    "TEMPERATURES",
    "Battery",
    "MissingWeights",
    "OutcomeCache",
    "Outcomes",
    "Question",
    "Subject",
    "evaluate",
    "evaluation",
    "margins",
    "outcomes",
    "precision",
    "protocol_pgd",
    "publish",
    "publish_weights",
    "standard_battery",
    "strong_battery",
    "temperature_battery",
    "usual_battery",
]
