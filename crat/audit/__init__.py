"""The robustness audit of a model from outside crat."""

from crat.audit.model import Audit, audit, audit_model, main
from crat.audit.plan import Plan
from crat.outcomes.tables import class_latex, class_summary, class_table, estimate_table

__all__ = [
    "Audit",
    "Plan",
    "audit",
    "audit_model",
    "class_latex",
    "class_summary",
    "class_table",
    "estimate_table",
    "foreign",
    "main",
]
