"""By what a network, an attack or a method is known again: its code with all that it reaches, and
its state.
"""

__all__ = ["identity"]
