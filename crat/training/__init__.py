"""Training: from a config to a trained run."""

from crat.training.run import Run
from crat.training.trainer import TrainingError, train

__all__ = ["Run", "TrainingError", "named", "run", "train"]
