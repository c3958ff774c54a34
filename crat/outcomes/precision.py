"""The cost of an attack that searches in bfloat16: how often it changes a verdict."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from torch import Tensor, nn

from crat.attacks.apgd import APGD, apgd_t
from crat.attacks.autoattack import AutoAttack
from crat.attacks.fab import FAB
from crat.attacks.gradient import FGSM, MIFGSM, PGD, Attack, cw
from crat.attacks.judge import attacked_logits
from crat.attacks.square import Square

SLOW = ("APGD-T", "FAB-T", "Square", "AutoAttack")


def precision_attacks(eps: float) -> dict[str, Attack | AutoAttack]:
    """The attacks of `precision_table`, L-inf.

    20 steps of eps / 4 for PGD and CW, 20 of eps / 20 for MI-FGSM.
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

    def right(attack: Attack | AutoAttack, n: int, dtype: str, seed: int = 0) -> Tensor:
        settings = {"dtype": dtype, "seed": seed, "batch_size": batch_size}
        return attacked_logits(model, x[:n], y[:n], attack, **settings).argmax(1) == y[:n]

    rows = []
    for name, attack in (attacks or precision_attacks(eps)).items():
        n = min(slow_images, len(x)) if name in SLOW else len(x)
        exact = right(attack, n, "float32")
        rough = right(attack, n, "bfloat16")
        again = right(attack, n, "float32", seed=1)
        row = {
            "robust_acc_float32": exact,
            "robust_acc_bfloat16": rough,
            "differ": exact != rough,
            "seed": exact != again,
        }
        shares = {column: round(share.double().mean().item(), 4) for column, share in row.items()}
        rows.append({"attack": name, "images": n, **shares})
    return pd.DataFrame(rows)
