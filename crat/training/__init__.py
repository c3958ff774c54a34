"""Training: from a config to a trained run."""

from crat.training.run import Run
from crat.training.start import MissingStart, keep_file
from crat.training.trainer import TrainingError, train

__all__ = ["MissingStart", "Run", "TrainingError", "keep_file", "named", "run", "train"]
