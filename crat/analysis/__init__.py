"""Class-wise numbers and how they are compared: functions of labels and predictions."""

__all__ = [
    "calibration",
    "claims",
    "comparisons",
    "imagenet_errors",
    "curves",
    "longtail",
    "mce",
    "metrics",
    "toy",
    "variation",
]
