"""Speed recipes: the robust accuracy that a paper prints, as fast as the hardware allows.

`crat train --recipe fast`: CIFAR-10, PreActResNet-18, PGD-10 AT, to what Wei et al. 2023 (CFA,
Table 1, "AT", best epoch) print after 200 epochs of a piecewise rate: AutoAttack 46.7 on average,
20.1 for the worst class. Here 30 epochs of one cycle at batch 512, bfloat16, channels last,
compiled, with the EMA of every update.

Not measured yet, neither the robust accuracy nor the wall time. Aim: both numbers of the table in
under 4 minutes on one H200, by these commands at seeds 0, 1 and 2:

    crat train --recipe fast --seed 0
    crat evaluate RUN --attacks AA
"""

from __future__ import annotations

from crat.config import RunConfig, profile
from crat.names import one_of

RECIPES: dict[str, RunConfig] = {
    "fast": profile("paper").but(
        epochs=30,
        schedule="one_cycle",
        batch_size=512,
        lr=0.3,  # the 0.1 of batch 128, by somewhat less than the linear rule: the peak is short
        average="ema_update",
        average_decay=0.995,  # 200 updates, two epochs
        eps_warmup=1,
        dtype="bfloat16",
    )
}


def recipe(name: str) -> RunConfig:
    """The base run of a recipe. Raises ConfigError with the known names."""
    return RECIPES[one_of("recipe", name, RECIPES)]
