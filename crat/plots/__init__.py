"""Figures from tables, each saved with its CSV."""

from crat.plots.base import *  # noqa: F403
