"""RoBal against wutong16/Adversarial_Long-Tail: training, losses, classifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from harness import (
    CLASSES,
    EPS,
    STEP,
    STEPS,
    authors,
    batch,
    buffers,
    given_noise,
    tiny,
    uniform_noise,
)
from reat import Features, classifier
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.robal import RoBal, calibrated
from crat.nets.models import CosineHead

CODE = "wutong16/Adversarial_Long-Tail@ab2f3a792aede2bd2a3e57657c787ec542165be1"
COUNTS = np.array([50, 7, 31, 2, 400, 90, 12, 1, 5, 23])  # in no order
VARIANTS = {
    "N": (0.1, 0.0, 1.2, 1 / 32),
    "R": (0.1, 0.3, 1.5, 1 / 32),
    "R100": (0.3, 0.0, 0.0, 1 / 16),
}
BETA = 6.0
S = 10.0
TAU_P = 1.5


def weights() -> Tensor:
    """Class vectors of different lengths, so that gamma matters."""
    generator = torch.Generator().manual_seed(11)
    drawn = torch.randn(CLASSES, 12, generator=generator, dtype=torch.float64)
    return drawn * torch.linspace(0.02, 0.3, CLASSES, dtype=torch.float64)[:, None]


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """Of what is trained; the authors' classifier keeps two parameters that are not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained, retain_graph=True)])


def like_images(draw: Callable[..., Tensor], noise: Tensor) -> Callable[..., Tensor]:
    """torch.rand, but torch.rand(x.shape), the code's start, is the given noise."""
    return lambda *size, **settings: (
        noise if isinstance(size[0], torch.Size) else draw(*size, **settings)
    )


class Authors(nn.Module):
    """What their Networks is, with our small body."""

    def __init__(self, classify: nn.Module, losses: type, margins: dict[str, float]):
        super().__init__()
        self.num_classes = CLASSES
        self.backbone = Features(tiny())
        self.classifier = classify
        self.loss = losses(COUNTS, CLASSES, {"MultiMargin": margins})
        self.adv_loss, self.nat_loss = losses(COUNTS, CLASSES, None), losses(COUNTS, CLASSES, None)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.backbone(x))


def theirs(folder: Path) -> dict[str, Tensor]:
    found = {}
    patches = (
        mock.patch.object(torch.cuda, "FloatTensor", torch.DoubleTensor),
        mock.patch.object(torch.Tensor, "float", lambda self: self.double()),
        mock.patch.object(torch, "rand", like_images(torch.rand, uniform_noise())),
    )
    with authors(folder), patches[0], patches[1], patches[2]:
        from methods.losses_inclass import Losses
        from methods.train_modes import add_reg_train
        from models.classifiers.basic_classifiers import CosPlus_Classifier, PostProc_Classifier

        for name, (m, tau_m, tau_b, gamma) in VARIANTS.items():
            head = CosPlus_Classifier(CLASSES, 12, scale=1, gamma=gamma)
            head.weight.data, head.moving_ed.data = weights(), torch.zeros(1, 12)
            model = Authors(head, Losses, {"m": m, "s": S, "tau_b": tau_b, "tau_m": tau_m}).train()
            seen: list[Tensor] = []
            model.register_forward_pre_hook(
                lambda _, given, seen=seen: seen.append(given[0].detach())
            )
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
            for i in range(2):
                x, y = batch(i)
                loss = add_reg_train(
                    model,
                    x,
                    y,
                    optimizer,
                    STEP,
                    EPS,
                    STEPS,
                    beta_reg=BETA,
                    reg_opt="trades",
                    num_classes=CLASSES,
                )
                found |= {f"{name}/{i}/x_adv": seen[-1], f"{name}/{i}/loss": loss}
                found[f"{name}/{i}/gradient"] = gradient(model, loss)
                loss.backward()
                optimizer.step()
            found[f"{name}/buffers"] = buffers(model)
            answers = PostProc_Classifier(
                CLASSES, 12, COUNTS, TAU_P, True, classifier="Cos", scale=S, gamma=gamma
            )
            answers.weight.data = head.weight.data
            found[f"{name}/calibrated"] = answers(model.eval().backbone(batch(2)[0]))
    return found


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    for name, (m, tau_m, tau_b, gamma) in VARIANTS.items():
        head = CosineHead(12, CLASSES, S, bias=False)
        head.weight.data = weights()
        model = classifier(dtype, head).train()
        start, mode = RoBal.crafting()
        attack = PGD(EPS, STEP, STEPS, start=start, batch_norm=mode)
        method = RoBal(
            attack, m, tau_m, tau_b, BETA, gamma, released_attack=True, released_passes=True
        )
        method.prepare(Task(torch.tensor(COUNTS)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(2):
            x, y = batch(i, dtype)
            with given_noise(dtype):
                x_adv = method.craft(model, x, y, generator=torch.Generator())
            loss, _ = method.loss(model, x, x_adv, y)
            found |= {f"{name}/{i}/x_adv": x_adv, f"{name}/{i}/loss": loss.detach()}
            found[f"{name}/{i}/gradient"] = gradient(model, loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[f"{name}/buffers"] = buffers(model.body)
        answers = calibrated(model.eval(), torch.tensor(COUNTS), TAU_P, gamma)
        found[f"{name}/calibrated"] = answers(batch(2, dtype)[0]).detach()
    return found
