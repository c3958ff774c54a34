"""Speed recipes: the robust accuracy that a paper prints, as fast as the hardware allows.

`crat train --recipe fast`: CIFAR-10, PreActResNet-18, PGD-10 AT, to what Wei et al. 2023 (CFA,
Table 1, "AT", best epoch) print after 200 epochs of a piecewise rate: AutoAttack 46.7 on average,
20.1 for the worst class. Aim: both numbers in 4 minutes on an H100, by these commands at seeds 0,
1 and 2:

    crat train --recipe fast --seed 0
    crat evaluate RUN --attacks AA

The settings below have never been run, so neither their accuracy nor their time is known.

One run of an earlier form was measured on one H100 (26 November 2026, torch 2.11, seed 0): AT with
hard labels, 14 epochs of one cycle at batch 512 and rate 0.3, EMA with decay 0.995. It took 138 s,
the evaluation not counted, and kept 41.4 % on average and 4.9 % of the worst class under AutoAttack
(the first 1,000 test images), 47.4 and 15.8 under PGD-20 (all 10,000). Its 1,344 updates were too
few: the loss was still falling by 0.05 an epoch. Hence batches of 128, which make 11,490 updates in
30 epochs, and two changes of AT that cost no time: an average of the weights, and smoothed labels.
"""

from __future__ import annotations

from crat.config import RunConfig, profile
from crat.names import one_of

RECIPES: dict[str, RunConfig] = {
    "fast": profile("gpu").but(
        # AT with smoothed labels: it attacks as AT does, the hard label, and trains on attacked
        # images only
        defense="label_smoothing",
        options={"clean_share": 0.0},
        # the highest rate of Wong et al. 2020's cycle (ICLR; locuslab/fast_adversarial@1d94c4e,
        # train_pgd.py) for this network, batch and weight decay
        lr=0.2,
        average="ema_update",
        average_decay=0.999,  # 1,000 updates, less than three epochs
        eps_warmup=1,
    )
}


def recipe(name: str) -> RunConfig:
    """The base run of a recipe. Raises ConfigError with the known names."""
    return RECIPES[one_of("recipe", name, RECIPES)]
