"""The bracket of each class of a small network: CROWN from below, AutoAttack from above.

    crat train --data mnist --model small_cnn --width 4 --defense pgd_at --eps 0.1 \\
        --step-size 0.025 --steps 7 --epochs 8 --train-per-class 2000 --valid-per-class 100 \\
        --schedule one_cycle --eps-warmup 2 --trace-per-class 0 --dtype float32
    python benchmarks/bounds.py RUN --images 300 --eps 0.1 0.15 --out results/mnist_brackets.csv

The table has the columns of `crat.analysis.brackets.bracket`, and before them the run and the
radius, behind them the share that interval arithmetic certifies and the seconds an image took
(of the processor). Written anew after each radius.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
import torch

from crat import data
from crat.analysis.brackets import bracket
from crat.analysis.metrics import class_accuracy
from crat.attacks import CROWN, AutoAttack, PerImage, interval_margins
from crat.attacks.door import as_images
from crat.audit.foreign import find_model, run_named
from crat.data.images import classes_in_turn


def measured(
    model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, classes: tuple, eps: float
) -> pd.DataFrame:
    """The bracket at one radius, with the intervals' share and the seconds an image."""
    began = time.process_time()
    certified = CROWN(eps)(model, x, y).amin(1) > 0
    bounded = time.process_time()
    draws = PerImage(0, torch.arange(len(x)))
    broken = AutoAttack(eps)(model, x, y, generator=draws).broken_by >= 0
    attacked = time.process_time()
    narrow = interval_margins(eps, model, x, y).amin(1) > 0
    table = bracket(y.numpy(), certified.numpy(), ~broken.numpy(), classes)
    shares = class_accuracy(y.numpy(), narrow.numpy(), len(classes))
    table["interval_acc"] = [shares[classes.index(name)] for name in table["class"]]
    table["crown_seconds"] = (bounded - began) / len(x)
    table["attack_seconds"] = (attacked - bounded) / len(x)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="by its name")
    parser.add_argument("--images", type=int, default=100, help="spread over the classes")
    parser.add_argument("--eps", nargs="+", type=float, default=[0.05, 0.1, 0.15, 0.2])
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    run = run_named(asked.run)
    images = data.load(run.config.data.name)
    model, _ = find_model(asked.run, None, images, torch.device("cpu"))
    chosen = classes_in_turn(images.y_test)[: asked.images]
    x, y = as_images(images.x_test[chosen]), images.y_test[chosen]
    tables = []
    for eps in asked.eps:
        table = measured(model.eval(), x, y, tuple(images.classes), eps)
        table.insert(0, "eps", eps)
        table.insert(0, "run", run.name)
        tables.append(table)
        pd.concat(tables).to_csv(asked.out, index=False, float_format="%.6g", lineterminator="\n")
        print(f"eps {eps}: {table[['certified_acc', 'robust_acc']].mean().to_dict()}", flush=True)


if __name__ == "__main__":
    main()
