"""crat: class-wise robustness in adversarial training, a notebook-first companion to the papers."""

__version__ = "0.1.0"
