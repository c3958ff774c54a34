"""The batch: `reproduce` makes the figures, here or on a cluster; `site` builds the pages."""

__all__ = ["reproduce", "site"]
