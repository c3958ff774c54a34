"""CFA's AT, TRADES and FAT with class-wise margins against PKU-ML/CFA: its attack.py and train.py.

Two thirds of the labels are what the network predicts at first, so that t_k, eps_k and beta_k
differ between classes.
"""

from __future__ import annotations

import ast
import types
from pathlib import Path

import torch
from harness import CLASSES, STEPS, authors, batch, buffers, given_noise, gradient, tiny
from torch import Tensor

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.cfa import CFA

CODE = "PKU-ML/CFA@071f3334a59d144cedbe65b18019c9757bece6f2"
BETA = 6.0
TAU = 2
LAMBDA = 0.5
EPS, STEP = 1 / 255, 0.25 / 255  # small enough for some classes to withstand
BASES = ("pgd_at", "trades", "fat")


def labelled(number: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x, y = batch(number)
    predicted = tiny()(x).argmax(1)  # in train mode, as the attack sees it
    return x.to(dtype), torch.where(torch.arange(len(y)) % 3 == 0, y, predicted)


def update_rule(folder: Path):
    """The statements of train.py that set class_eps and class_beta from robust accuracy."""
    tree = ast.parse((folder / "train.py").read_text())
    rules = [
        n for n in ast.walk(tree) if isinstance(n, ast.If) and "args.begin" in ast.unparse(n.test)
    ]
    code = compile(ast.Module([s for rule in rules for s in rule.body], []), "train.py", "exec")

    def rule(t: Tensor) -> tuple[Tensor, Tensor]:
        args = types.SimpleNamespace(lambda_1=LAMBDA, lambda_2=LAMBDA)
        found = dict(
            torch=torch, args=args, eps=EPS, beta=BETA, device="cpu", class_beta=torch.ones(CLASSES)
        )
        exec(code, found | {"cw_tensor": torch.stack([t, t])[None]}, found)
        return found["class_eps"], found["class_beta"]

    return rule


def theirs(folder: Path) -> dict[str, Tensor]:
    found, rule = {}, update_rule(folder)
    with authors(folder):
        import utils

        utils.normalize_cifar = lambda x: x  # ours is a layer of the model
        import attack

        losses = {
            "pgd_at": attack.cw_pgd_loss,
            "trades": attack.cw_trades_loss,
            "fat": attack.cw_fat_loss,
        }
        for base in BASES:
            model = tiny()
            eps = torch.ones(CLASSES) * EPS
            beta = torch.ones(CLASSES) * BETA / (1 + BETA)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for epoch in range(2):
                robust, n = torch.zeros(CLASSES), torch.zeros(CLASSES)
                for i in range(3):
                    x, y = labelled(i)
                    regulariser = TAU if base == "fat" else beta
                    loss, output = losses[base](model, x, y, eps, regulariser, STEP, STEPS)
                    if epoch == 1 and i == 0:
                        found[f"{base}/loss"], found[f"{base}/gradient"] = (
                            loss,
                            gradient(model, loss),
                        )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    model(x)
                    robust += torch.zeros(CLASSES).index_add(0, y, (output.max(1)[1] == y).double())
                    n += y.bincount(minlength=CLASSES)
                t = robust / n.clamp_min(
                    1
                )  # the code divides by N / 10; by the class's own count it is the paper's
                seen = n > 0  # and lets the margin of a class that no batch showed fall to lambda_1
                new_eps, new_beta = rule(t)
                eps, beta = torch.where(seen, new_eps, eps), torch.where(seen, new_beta, beta)
            assert eps.unique().numel() > 2, "all classes alike: nothing class-wise was compared"
            found |= {f"{base}/state/eps": eps, f"{base}/buffers": buffers(model)}
            if base == "trades":
                found["trades/state/beta"] = beta / (1 - beta)
    return found


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    for base in BASES:
        model = tiny(dtype)
        start, mode = CFA.crafting(base=base)
        attack = PGD(
            EPS, STEP, STEPS, start=start, batch_norm="moving" if mode == "train" else mode
        )
        cfa = CFA(attack, base, LAMBDA, LAMBDA, BETA, TAU, begin=1, released_passes=True)
        cfa.prepare(Task(torch.ones(CLASSES)))
        cfa.state["eps"] = torch.full((CLASSES,), EPS, dtype=dtype)  # float32 alone is 6e-9 of eps
        if base == "trades":
            cfa.state["beta"] = torch.full((CLASSES,), BETA, dtype=dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for epoch in range(2):
            total = None
            for i in range(3):
                x, y = labelled(i, dtype)
                with given_noise(dtype):
                    x_adv = cfa.craft(model, x, y, generator=torch.Generator())
                loss, stats = cfa.loss(model, x, x_adv, y)
                if epoch == 1 and i == 0:
                    found[f"{base}/loss"], found[f"{base}/gradient"] = (
                        loss.detach(),
                        gradient(model, loss),
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cfa.after_step(model, x, y)
                total = stats if total is None else total + stats
            cfa.epoch_end(total, None)
        found |= {f"{base}/state/{name}": value for name, value in cfa.class_values().items()}
        found[f"{base}/buffers"] = buffers(model)
    return found
