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
    """The attacks of `precision_table` in L-inf.

    PGD and CW take 20 steps of eps / 4, MI-FGSM takes 20 of eps / 20.
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
    """A table of robust accuracies by float32 and bfloat16 searches, and of how often they differ.

    Columns: attack; images; robust_acc_float32 and robust_acc_bfloat16, the shares of images that
    are correct under attack, judged in float32; differ, the share of images that one search broke
    and the other did not; seed, the same share between float32 searches at seeds 0 and 1.
    x: (N, C, H, W) uint8 or [0, 1]. y: (N,).
    slow_images: the number of first images for the attacks in SLOW.
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
        shares = {name: round(share.cpu().double().mean().item(), 4) for name, share in row.items()}
        rows.append({"attack": name, "images": n, **shares})
    return pd.DataFrame(rows)
