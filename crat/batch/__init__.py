"""What makes figures: `crat reproduce` (here or on a cluster), and its report as pages."""

__all__ = ["reproduce", "site"]
