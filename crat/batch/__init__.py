"""What makes figures: `crat reproduce` (runs and notebooks, here or on a cluster), and its report as pages."""

__all__ = ["reproduce", "site"]
