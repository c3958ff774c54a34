"""What searching in bfloat16 costs an attack, measured: whose verdict it changes, and how often."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from torch import Tensor, nn

from crat.attacks import APGD, FAB, FGSM, MIFGSM, PGD, Attack, AutoAttack, Square, cw
from crat.attacks.apgd import apgd_t
from crat.attacks.judge import attacked_logits

SLOW = ("APGD-T", "FAB-T", "Square", "AutoAttack")


def precision_attacks(eps: float) -> dict[str, Attack | AutoAttack]:
    """The attacks of `precision_table`, L-inf; steps of PGD, CW eps / 4 and of MI-FGSM eps / 20,
    20 of them.
    """
    pgd = PGD(eps, eps / 4, 20)
    return {
        "FGSM": FGSM(eps),
        "PGD-20": pgd,
        "CW-20": cw(pgd),
        "MI-FGSM": MIFGSM(eps, steps=20),
        "APGD-CE": APGD(eps),
        "APGD-DLR": APGD(eps, loss="dlr"),
        "APGD-T": apgd_t(eps),
        "FAB-T": FAB(eps),
        "Square": Square(eps),
        "AutoAttack": AutoAttack(eps),
    }


def precision_table(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    attacks: Mapping[str, Attack | AutoAttack] | None = None,
    slow_images: int = 200,
    batch_size: int = 500,
) -> pd.DataFrame:
    """Columns attack, images, robust_acc_float32, robust_acc_bfloat16, differ, seed.

    Robust accuracies are the shares of images that are right under attack, in float32; differ, the
    share of images that one search broke and the other did not; seed, the same between two float32
    searches at seeds 0 and 1, to compare. x (N, C, H, W) uint8 or [0, 1], y (N,); the attacks named
    in SLOW see the first `slow_images` only.
    """
    rows = []
    for name, attack in (attacks or precision_attacks(eps)).items():
        n = min(slow_images, len(x)) if name in SLOW else len(x)

        def right(
            dtype: str, seed: int = 0, n: int = n, attack: Attack | AutoAttack = attack
        ) -> Tensor:
            logits = attacked_logits(
                model, x[:n], y[:n], attack, dtype=dtype, seed=seed, batch_size=batch_size
            )
            return logits.argmax(1) == y[:n]

        exact, rough, again = right("float32"), right("bfloat16"), right("float32", seed=1)
        shares = (exact, rough, exact != rough, exact != again)
        rows.append((name, n, *(round(share.double().mean().item(), 4) for share in shares)))
    columns = ["attack", "images", "robust_acc_float32", "robust_acc_bfloat16", "differ", "seed"]
    return pd.DataFrame(rows, columns=columns)
