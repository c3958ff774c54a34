"""A robustness audit of a model that is not ours."""
