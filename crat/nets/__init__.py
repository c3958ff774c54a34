"""The networks: `build("resnet18", n_classes=10)`, its weights saved and loaded, and the heads that papers exchange."""

from crat.nets.bodies import BODIES
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
    "Normalize",
    "build",
    "class_weight_norms",
    "load_checkpoint",
    "load_weights",
    "plain",
    "save_weights",
]
