"""Training: from a config to a trained run."""

from crat.training.run import Run
from crat.training.start import MissingStart
from crat.training.trainer import TrainingError, train

__all__ = ["MissingStart", "Run", "TrainingError", "named", "run", "train"]
