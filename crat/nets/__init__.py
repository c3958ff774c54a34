"""The networks: `build("resnet18", n_classes=10)`, exchanged heads, weights saved and loaded."""

from crat.nets.bodies import BODIES
from crat.nets.folding import Folded
from crat.nets.models import (
    CheckpointError,
    Classifier,
    CosineHead,
    Normalize,
    build,
    class_weight_norms,
    load_checkpoint,
    load_weights,
    plain,
    save_weights,
)

__all__ = [
    "BODIES",
    "CheckpointError",
    "Classifier",
    "CosineHead",
    "Folded",
    "Normalize",
    "bodies",
    "build",
    "chain",
    "class_weight_norms",
    "folding",
    "load_checkpoint",
    "load_weights",
    "models",
    "plain",
    "save_weights",
]
