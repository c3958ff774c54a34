"""The robustness audit of a model from outside crat."""

from crat.audit.model import audit, main
from crat.audit.plan import Plan
from crat.audit.report import class_latex, class_summary, class_table, estimate_table

__all__ = [
    "Plan",
    "audit",
    "class_latex",
    "class_summary",
    "class_table",
    "estimate_table",
    "foreign",
    "main",
]
