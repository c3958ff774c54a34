"""CSR against Alexkael/CONFUSIONAL-SPECTRAL-REGULARIZATION: its loss and its weights of errors.

trades_fair.py is imported. train_fair.py trains as soon as it is imported, so the statements that
count errors and weigh them are taken out of its `train`, and count given logits: the code attacks
the training set once more for them, crat counts what it trained on. Each class has as many images
there, for the code counts images where crat has shares of a class. The step is the second epoch's.
"""

from __future__ import annotations

import ast
from pathlib import Path
from unittest import mock

import torch
from harness import (
    BATCH,
    CLASSES,
    EPS,
    STEP,
    STEPS,
    authors,
    batch,
    buffers,
    given_noise,
    gradient,
    tiny,
)
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses import ClassStats, Task
from crat.defenses.csr import CSR as Ours

CODE = "Alexkael/CONFUSIONAL-SPECTRAL-REGULARIZATION@92856c794ff1c799d8648e6a604d6070ffc55072"
BETA = 6.0
BATCHES = 10  # of 12 images: 12 of each class


def labelled(number: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images and labels of which no class has more than another over all batches."""
    x, _ = batch(number)
    return x.to(dtype), (torch.arange(BATCH) + BATCH * number) % CLASSES


def answers(dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Logits and labels whose errors are counted."""
    model = tiny(dtype).eval()
    with torch.no_grad():
        return [
            (model(x) + 0.5 * torch.eye(CLASSES, dtype=dtype)[y], y)
            for x, y in (labelled(i, dtype) for i in range(BATCHES))
        ]


class Seen(nn.Module):
    """Keeps the images of the second pass in train mode: x_adv, which the loss does not return."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.x = model, []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.x.append(x.detach().clone())
        return self.model(x)


def weights(folder: Path) -> Tensor:
    """gm of `train`: all statements before the epoch's steps, on given logits."""
    file = folder / "CIFAR10_TRADES_fairness" / "train_fair.py"
    functions = [n for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef)]
    body = next(f for f in functions if f.name == "train").body
    last = max(i for i, n in enumerate(body) if ast.unparse(n).startswith("gm = "))
    given = answers()

    class Given(nn.Module):
        def forward(self, number: Tensor) -> Tensor:
            return given[int(number)][0].clone()

    names = {
        "torch": torch,
        "copy": __import__("copy"),
        "Variable": torch.autograd.Variable,
        "device": "cpu",
        "gamma_true": True,
        "model": Given(),
        "train_loader": [(torch.tensor(float(i)), y) for i, (_, y) in enumerate(given)],
        "_pgd_whitebox": lambda model, x, y: x,
    }
    exec(compile(ast.Module(body[: last + 1], []), str(file), "exec"), names)
    assert names["cmt"].sum() > 0
    return names["gm"]


def theirs(folder: Path) -> dict[str, Tensor]:
    real = torch.Tensor.to

    def to(self: Tensor, *given, **more) -> Tensor:
        return self if given == ("cuda",) else real(self, *given, **more)

    with authors(folder / "CIFAR10_TRADES_fairness"), mock.patch.object(torch.Tensor, "to", to):
        from trades_fair import trades_loss

        gm = weights(folder)
        model, (x, y) = tiny(), labelled(0)
        seen = Seen(model).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = trades_loss(seen, x, y, gm, optimizer, STEP, EPS, STEPS, BETA)
        return {
            "x_adv": next(image for image in seen.x if not image.equal(x)),
            "loss": loss,
            "gradient": gradient(model, loss),
            "buffers": buffers(model),
            "state/pair_weight": gm.T,
        }


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    csr = Ours(
        PGD(EPS, STEP, STEPS, start=Ours.start, batch_norm=Ours.batch_norm),
        BETA,
        released_passes=True,
    )
    csr.prepare(Task(torch.ones(CLASSES)))
    csr.state["counts"] = csr.state["counts"].to(dtype)
    for logits, y in answers(dtype):
        csr.batch_counts = csr.counted(logits, y)
        csr.after_step(tiny(dtype), torch.empty(0), y)
    csr.epoch_end(ClassStats.zeros(CLASSES, torch.zeros(())), None)
    model, (x, y) = tiny(dtype), labelled(0, dtype)
    with given_noise(dtype):
        x_adv = csr.craft(model, x, y, generator=torch.Generator())
    loss, _ = csr.loss(model, x, x_adv, y)
    return {
        "x_adv": x_adv,
        "loss": loss.detach(),
        "gradient": gradient(model, loss),
        "buffers": buffers(model),
        "state/pair_weight": csr.state["pair_weight"],
    }
