"""Class-wise numbers and how they are compared: functions of labels and predictions."""

__all__ = [
    "calibration",
    "claims",
    "comparisons",
    "curves",
    "imagenet_errors",
    "longtail",
    "mce",
    "metrics",
    "toy",
    "variation",
]
