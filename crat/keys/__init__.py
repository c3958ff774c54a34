"""Identity of networks, attacks and methods: their state and all code that it reaches."""

__all__ = ["identity"]
