"""Transfer: craft on one model, judge on another."""

from __future__ import annotations

from torch import Tensor, nn

from crat.attacks.door import Attack, check_model
from crat.attacks.frozen import frozen
from crat.attacks.logits import finite_logits
from crat.attacks.noise import Source
from crat.attacks.threat import Budget


def transfer(
    attack: Attack,
    crafted_on: nn.Module,
    target_model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Budget | None = None,
    generator: Source = None,
) -> Tensor:
    """`target_model`'s float32 logits (N, K) on the images that `attack` crafts on `crafted_on`.

    x: (N, C, H, W) in [0, 1].
    y: (N,).
    eps: a number or (N,), instead of the attack's own.
    Whole sets go through `attacked_batches`, with the same `crafted_on`.

    Raises AttackError (crat.attacks.door), also where the target model gives logits that are not
    finite.
    """
    x_adv = attack(crafted_on, x, y, eps=eps, generator=generator)
    check_model(target_model)
    with frozen(target_model):
        return finite_logits(target_model, x_adv)
