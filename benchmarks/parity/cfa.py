"""CFA's AT, TRADES and FAT with class-wise margins against PKU-ML/CFA: attack.py, and train.py's update rule."""

from __future__ import annotations

from pathlib import Path

import torch
from harness import CLASSES, EPS, STEP, STEPS, authors, batch, buffers, given_noise, gradient, tiny
from torch import Tensor

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.cfa import CFA

CODE = "PKU-ML/CFA@071f3334a59d144cedbe65b18019c9757bece6f2"
BETA, TAU, LAMBDA = 6.0, 2, 0.5
BASES = ("pgd_at", "trades", "fat")


def theirs(folder: Path) -> dict[str, Tensor]:
    found = {}
    with authors(folder):
        import utils

        utils.normalize_cifar = lambda x: x  # ours is a layer of the model
        import attack

        losses = {"pgd_at": attack.cw_pgd_loss, "trades": attack.cw_trades_loss, "fat": attack.cw_fat_loss}
        for base in BASES:
            model, eps, beta = tiny(), torch.ones(CLASSES) * EPS, torch.ones(CLASSES) * BETA / (1 + BETA)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for epoch in range(2):
                robust, n = torch.zeros(CLASSES), torch.zeros(CLASSES)
                for i in range(3):
                    x, y = batch(i)
                    regulariser = TAU if base == "fat" else beta
                    loss, output = losses[base](model, x, y, eps, regulariser, STEP, STEPS)
                    if epoch == 1 and i == 0:
                        found[f"{base}/loss"], found[f"{base}/gradient"] = loss, gradient(model, loss)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    model(x)
                    robust += torch.zeros(CLASSES).index_add(0, y, (output.max(1)[1] == y).double())
                    n += y.bincount(minlength=CLASSES)
                # train.py: the code divides by N / 10; by the class's own count it is the paper's t_k
                t = robust / n.clamp_min(1)
                eps = (torch.ones(CLASSES) * LAMBDA + t) * EPS
                for k in range(CLASSES):
                    beta[k] = (LAMBDA + t[k]) * BETA / (1 + (LAMBDA + t[k]) * BETA)
            found |= {f"{base}/state/eps": eps, f"{base}/buffers": buffers(model)}
            if base == "trades":
                found["trades/state/beta"] = beta / (1 - beta)
    return found


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    for base in BASES:
        model = tiny(dtype)
        start, mode = CFA.crafting(base=base)
        attack = PGD(EPS, STEP, STEPS, start=start, batch_norm="moving" if mode == "train" else mode)
        cfa = CFA(attack, base, LAMBDA, LAMBDA, BETA, TAU, begin=1, released_passes=True)
        cfa.prepare(Task(torch.ones(CLASSES)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for epoch in range(2):
            total = None
            for i in range(3):
                x, y = batch(i, dtype)
                with given_noise(dtype):
                    x_adv = cfa.craft(model, x, y, generator=torch.Generator())
                loss, stats = cfa.loss(model, x, x_adv, y)
                if epoch == 1 and i == 0:
                    found[f"{base}/loss"], found[f"{base}/gradient"] = loss.detach(), gradient(model, loss)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cfa.after_step(model, x, y)
                total = stats if total is None else total + stats
            cfa.epoch_end(total, None)
        found |= {f"{base}/{'state/' + name}": value for name, value in cfa.class_values().items()}
        found[f"{base}/buffers"] = buffers(model)
    return found
