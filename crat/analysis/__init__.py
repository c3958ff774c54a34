"""Class-wise numbers, their intervals and comparisons, from labels and predictions."""

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
