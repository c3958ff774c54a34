"""Methods that train on another's adversarial images, with weights or a loss of their own."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from crat.attacks.noise import Source
from crat.defenses.base import Defense, Task, checked

# name -> method; crat.defenses fills it, so that no policy imports its base
METHODS: dict[str, type[Defense]] = {}


class Policy(Defense):
    """A method with a base that crafts for it and reads class-wise eps and beta in its state.

    base: the name of the base, a field of the subclass or a constant of it.
    bases: the names that are allowed.
    """

    base: str
    inner: Defense
    bases: ClassVar[tuple[str, ...]]

    def prepare(self, task: Task) -> None:
        """Makes the base. Raises ConfigError on an unknown one."""
        name = type(self).__name__.lower()
        checked(
            f"base of {name}",
            self.base,
            lambda b: b in self.bases,
            f"one of {', '.join(self.bases)}",
        )
        self.inner = METHODS[self.crafts_as()](self.attack, **self.settings_of_base())
        self.inner.state = self.state

    def crafts_as(self) -> str:
        """The name of the method that crafts."""
        return self.base

    def settings_of_base(self) -> dict[str, Any]:
        """The options that the base is made with."""
        return {}

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: float = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """The adversarial images of the base."""
        return self.inner.craft(model, x, y, scale=scale, generator=generator)
