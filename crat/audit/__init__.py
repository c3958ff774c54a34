"""A robustness audit of a model that is not ours."""

from crat.audit.model import DRAWN, Plan, audit, broken_by, class_table, main, report

__all__ = ["DRAWN", "Plan", "audit", "broken_by", "class_table", "main", "report"]
