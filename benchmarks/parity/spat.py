"""SPAT against puerrrr/Self-Paced-Adversarial-Training: attack, loss and three training steps.

The head is the forward pass of their WideResNet, whose body is replaced by the harness's.
"""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from unittest import mock

import harness
import torch
from harness import (
    CLASSES,
    EPS,
    STEP,
    STEPS,
    Tiny,
    authors,
    batch,
    buffers,
    given_noise,
    gradient,
    tiny,
)
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses.base import Task
from crat.defenses.spat import SPAT
from crat.nets.models import Classifier, CosineHead, Normalize

CODE = "puerrrr/Self-Paced-Adversarial-Training@e72bf4b321439ef8894b995f52e46b4f86dfe9d0"
BETA = 6.0
M = 0.2
N = 0.3
SCALE = 8.0
FEATURES = 12
# the start is x + 0.02 N: at x + 0.001 N the outputs are so close that float32 rounds signs away
FAR = 20


class Body(nn.Module):
    """The harness's network up to its features."""

    def __init__(self, whole: Tiny):
        super().__init__()
        self.conv, self.bn = whole.conv, whole.bn

    def forward(self, x: Tensor) -> Tensor:
        return Tiny.features(self, x)


class Spread(Body):
    """The same as maps of 8 x 8 equal numbers, which their forward pass averages."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, None, None].expand(-1, -1, 8, 8)


def farther():
    """Within, the noise is FAR times as large."""
    noise = harness.normal_noise
    return mock.patch.object(harness, "normal_noise", lambda *given: FAR * noise(*given))


def train(model: nn.Module, parts: nn.ModuleList, step) -> dict[str, Tensor]:
    """Three steps of SGD with momentum and decay: the last loss and gradient, buffers and weights.

    step: (x, y) -> the loss and the adversarial images of a batch.
    """
    optimizer, found = (
        torch.optim.SGD(parts.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4),
        {},
    )
    for i in range(3):
        loss, x_adv = step(*batch(i, next(parts.parameters()).dtype))
        found = {"x_adv": x_adv, "loss": loss.detach(), "gradient": gradient(parts, loss)}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight, bias = parts[1].weight, parts[1].bias
    return found | {
        "buffers": buffers(parts[0]),
        "state/weight": nn.functional.normalize(weight),
        "state/bias": bias,
    }


def theirs(folder: Path) -> dict[str, Tensor]:
    with farther(), authors(folder):
        import wrn

        spec = spec_from_file_location(
            "their_spat", folder / "spat.py"
        )  # this file is called spat, too
        spec.loader.exec_module(spat := module_from_spec(spec))
        whole = tiny()
        model = wrn.WideResNet(depth=10, num_classes=CLASSES, widen_factor=1)
        model.conv1 = Spread(whole)
        model.fc = whole.head
        model.nChannels = FEATURES
        model.block1 = model.block2 = model.block3 = model.bn1 = model.relu = nn.Identity()
        seen, cleared = [], torch.optim.SGD(model.parameters())
        model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))

        def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            settings = {"beta": BETA, "m": M, "n": N, "s": SCALE}
            return spat.spat_loss(model, x, y, cleared, STEP, EPS, STEPS, **settings), seen[-1]

        return train(model, nn.ModuleList([model.conv1, model.fc]), step)


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    whole, head = tiny(dtype), CosineHead(FEATURES, CLASSES, SCALE, bias=True)
    head.weight, head.bias = whole.head.weight, whole.head.bias
    model = (
        Classifier("tiny", Normalize((0.0,), (1.0,), 3), Body(whole), head, CLASSES)
        .to(dtype)
        .train()
    )
    spat = SPAT(
        PGD(EPS, STEP, STEPS, start=SPAT.start, batch_norm=SPAT.batch_norm),
        BETA,
        M,
        N,
        overwrites=True,
    )
    spat.prepare(Task(torch.ones(CLASSES)))

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with farther(), given_noise(dtype):
            x_adv = spat.craft(model, x, y, generator=torch.Generator())
        return spat.loss(model, x, x_adv, y)[0], x_adv

    return train(model, nn.ModuleList([model.body, head]), step)
