"""FAT against zjfheart/Friendly-Adversarial-Training: earlystop.py and FAT.py.

earlystop.py runs with and without noise, FAT.py for one step.

The authors' batch is sorted by when each sample stopped; here it is put back. Their noise of a step
is drawn for the samples that go on, so both sides are given noise that is the same for all samples
of a batch.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import torch
from harness import (
    BATCH,
    CLASSES,
    EPS,
    STEP,
    authors,
    batch,
    buffers,
    gradient,
    normal_noise,
    tiny,
    uniform_noise,
)
from torch import Tensor, nn

from crat.attacks import PGD
from crat.defenses import Task
from crat.defenses.fat import FAT

CODE = "zjfheart/Friendly-Adversarial-Training@80a064074891775146bca8c4d8a6b99c1499285a"
STEPS = 7
CASES = {
    "tau 0": (0, 0.0),
    "tau 1": (1, 0.0),
    "tau 2, noise": (2, 0.01),
    "never stops": (STEPS, 0.0),
}
NOISE = normal_noise()[:1]


def noise_for_all(
    shape: tuple[int, ...], x: Tensor | None = None, generator: object = None
) -> Tensor:
    """(B, 3, 32, 32): the first image's normal noise, for every image."""
    return NOISE.to(torch.float64 if x is None else x.dtype).expand(shape)


def parts(case: str, model: nn.Module, x_adv: Tensor, loss: Tensor) -> dict[str, Tensor]:
    found = {
        "x_adv": x_adv,
        "loss": loss,
        "gradient": gradient(model, loss),
        "buffers": buffers(model),
    }
    return {f"{case}/{name}": value for name, value in found.items()}


def theirs(folder: Path) -> dict[str, Tensor]:
    found = {}
    with (
        authors(
            folder, models={"nn": nn, "F": nn.functional}
        ),  # what earlystop.py takes from its models
        mock.patch.object(
            np.random,
            "uniform",
            lambda low, high, _: (low + (high - low) * uniform_noise()).numpy(),
        ),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        from earlystop import earlystop

        for case, (tau, omega) in CASES.items():
            model, (x, y) = tiny(), batch()
            with mock.patch.object(torch, "randn", noise_for_all):
                sorted_adv, target, natural, _ = earlystop(
                    model, x, y, STEP, EPS, STEPS, tau, "uniform_randominit", "cent", omega=omega
                )
            model.train()
            loss = nn.CrossEntropyLoss(reduction="mean")(model(sorted_adv), target)
            order = [int((natural == image).flatten(1).all(1).nonzero()) for image in x]
            found |= parts(case, model, sorted_adv[order], loss)
    return found


def ours(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    for case, (tau, omega) in CASES.items():
        model, (x, y) = tiny(dtype), batch(0, dtype)
        method = FAT(PGD(EPS, STEP, STEPS, start=FAT.start, batch_norm=FAT.batch_norm), tau, omega)
        method.prepare(Task(torch.ones(CLASSES)))
        start = (x + EPS * (2 * uniform_noise(dtype) - 1)).clamp(0, 1)
        with (
            mock.patch("crat.defenses.fat.uniform_start", lambda *_, start=start: start),
            mock.patch("crat.defenses.fat.normal", noise_for_all),
        ):
            x_adv = method.craft(model, x, y, generator=torch.Generator())
        assert len(x_adv) == BATCH
        found |= parts(case, model, x_adv, method.loss(model, x, x_adv, y)[0])
    return found
