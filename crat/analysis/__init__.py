"""Class-wise numbers, their intervals and comparisons, from labels and predictions."""

__all__ = [
    "brackets",
    "calibration",
    "claims",
    "comparisons",
    "curves",
    "imagenet_errors",
    "indicators",
    "longtail",
    "mce",
    "metrics",
    "toy",
    "two_phase",
    "variation",
]
