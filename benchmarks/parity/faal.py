"""FAAL on AT, TRADES and MART against TrustAI/FAAL: the loop of ft_prn.py.

ft_prn.py trains when it is imported, so its loop's body is taken out of the file and run on a
batch. FAAL.py hands the inner problem to ECOS through cvxpy (which only recording needs), whose
answer is not exact: the authors' code builds the problem and ECOS solves it; then SciPy solves
Lagrange's condition, one equation, and must agree with ECOS to 1e-5. One batch: in a second one, a
few signs of the KL's gradient already flip by float32's rounding. Weights stay float64.
"""

from __future__ import annotations

import ast
import copy
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from harness import CLASSES, EPS, STEP, STEPS, authors, batch, buffers, given_noise, gradient, tiny
from scipy.optimize import brentq
from torch import Tensor

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.faal import FAAL

CODE = "TrustAI/FAAL@b20ee9dbe60c5ab700eaab3d41faa10e5295d39a"
RADIUS = 0.5
LOSSES = {"pgd_at": "AT", "trades": "TRADES", "mart": "MART"}


def loop_body(folder: Path) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """ft_prn.py's margin function, and its statements on a batch up to the optimizer's step."""
    tree = ast.parse((folder / "ft_prn.py").read_text())
    margin = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "cw"]
    loops = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.For) and "train_loader" in ast.unparse(node.iter)
    ]
    body = loops[0].body
    last = next(i for i, node in enumerate(body) if ast.unparse(node) == "loss.backward()")
    return margin, body[:last]


def sharpened(solve):
    """cvxpy's Problem.solve, its answer p replaced by the root of Lagrange's condition."""

    def solved(self, *args, **settings):
        value = solve(self, *args, abstol=1e-10, reltol=1e-10, feastol=1e-10, **settings)
        p = self.variables()[0]
        zero, unit = np.zeros(p.size), np.eye(p.size)

        def objective(at):
            p.value = at
            return self.objective.value

        found, a = p.value, np.array([objective(unit[k]) - objective(zero) for k in range(p.size)])
        d = a.max() - a

        def excess(log_s):
            s = np.exp(log_s)
            return np.log(s + d).mean() + np.log((1 / (s + d)).mean()) - RADIUS

        s = np.exp(brentq(excess, -50, 50, xtol=1e-15, rtol=1e-14))
        exact = 1 / (s + d) / (1 / (s + d)).sum()
        assert np.abs(found - exact).max() < 1e-5, (found, exact)
        p.value = exact
        return value

    return solved


def theirs(folder: Path) -> dict[str, Tensor]:
    import cvxpy

    found, move = {}, torch.Tensor.to
    margin, body = loop_body(folder)
    patches = (
        mock.patch.object(cvxpy.Problem, "solve", sharpened(cvxpy.Problem.solve)),
        mock.patch.object(torch.Tensor, "float", lambda self: self),
        mock.patch.object(
            torch.Tensor, "to", lambda x, *to, **how: x if to == ("cuda",) else move(x, *to, **how)
        ),
    )
    with authors(folder, torchattacks=None, mosek=None), patches[0], patches[1], patches[2]:
        names: dict = {}
        exec("from FAAL import *; from utils import *; import torch; import torch.nn as nn", names)
        exec(compile(ast.Module(margin, []), "ft_prn.py", "exec"), names)
        step = compile(ast.Module(body, []), "ft_prn.py", "exec")
        for base, loss_name in LOSSES.items():
            model = tiny()
            names |= {
                "model": model,
                "opt": torch.optim.SGD(model.parameters(), lr=0.1),
                "epsilon": EPS,
                "alpha": STEP,
                "mu": 0.0,
                "std": 1.0,
                "scale": RADIUS,
                "args": SimpleNamespace(loss=loss_name, steps=STEPS, distance="kl"),
                "criterion": torch.nn.CrossEntropyLoss(reduction="none"),
            }
            names["X"], names["y"] = batch()
            exec(step, names)
            loss = names["loss"]
            kept = {
                "x_adv": names["X_adv"],
                "p": names["weights"],
                "loss": loss,
                "gradient": gradient(model, loss),
            }
            found |= {f"{base}/{item}": value for item, value in kept.items()} | {
                f"{base}/buffers": buffers(model)
            }
    return found


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    for base in LOSSES:
        model = tiny(dtype)
        start, mode = FAAL.crafting(base=base)
        faal = FAAL(
            PGD(EPS, STEP, STEPS, start=start, batch_norm=mode),
            base,
            RADIUS,
            warmup=0,
            released_passes=True,
        )
        faal.prepare(Task(torch.ones(CLASSES)))
        x, y = batch(0, dtype)
        with given_noise(dtype):
            x_adv = faal.craft(model, x, y, generator=torch.Generator())
        with torch.no_grad():
            p = faal.distribution(copy.deepcopy(model)(x_adv), y)
        loss, _ = faal.loss(model, x, x_adv, y)
        kept = {"x_adv": x_adv, "p": p, "loss": loss.detach(), "gradient": gradient(model, loss)}
        found |= {f"{base}/{item}": value for item, value in kept.items()} | {
            f"{base}/buffers": buffers(model)
        }
    return found
