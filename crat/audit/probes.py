"""Probes: the logits and gradients around some images, by which a model is recognised.

A model's code and weights may not decide its outputs: a forward pass may depend on something that
no key can hold (a file, the environment, state in C) and differ away from the clean images only; a
backward pass may differ alone (a straight-through gradient). So both passes are probed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crat import store
from crat.attacks import frozen
from crat.attacks.door import as_images
from crat.attacks.logits import forward_backward
from crat.attacks.noise import PerImage
from crat.attacks.objectives import Margin
from crat.attacks.threat import over_images, size
from crat.data import Streamed

PROBED = 8  # images
STEPS = (0.0, 0.25, -0.25, 0.5, -0.5, 1.0, -1.0)  # of eps, along one direction an image
SAME = 1e-3  # of the largest value: what rounding may change from run to run

Answers = dict[str, np.ndarray]


def probe(model: nn.Module, x: Tensor | Streamed, y: Tensor, eps: float, norm: str) -> Answers:
    """The logits and gradients of the first images x (N, C, H, W), moved by shares of eps.

    logits: (steps, n, K). gradients: (steps, n, 4), of each image's gradient of the margin its L1
    norm, its L-inf norm and its components along two directions.
    Draws from torch's generator are the same in every call.
    """
    images = as_images(x[:PROBED])
    labels = y[:PROBED]
    cuda = [x.device] if x.device.type == "cuda" else []
    logits = []
    gradients = []
    with torch.random.fork_rng(devices=cuda), frozen(model):
        torch.manual_seed(0)
        draws = PerImage(0, torch.arange(len(images), device=images.device))
        signs = torch.stack([draws.uniform(*images.shape[1:]) for _ in range(2)]).round() * 2 - 1
        direction = signs[0] / over_images(size(signs[0], norm), images)
        for step in STEPS:
            moved = (images + step * eps * direction).clamp(0, 1)
            gradient, _, answer = forward_backward(model, moved, labels, Margin())
            along = (gradient * signs).flatten(2).sum(2)
            gradients.append(torch.stack([size(gradient, "L1"), size(gradient, "Linf"), *along], 1))
            logits.append(answer)
    return {
        "logits": torch.stack(logits).cpu().numpy(),
        "gradients": torch.stack(gradients).cpu().numpy(),
    }


def recognised(folder: Path, answers: Answers) -> str:
    """The name of the file in a folder with the same answers up to rounding.

    Where there is no such file, it is written under a new name.
    """
    for path in sorted(folder.glob("probe-*.npz")):
        if _same(store.read_arrays(path), answers):
            return path.stem
    tensors = {key: torch.from_numpy(value) for key, value in answers.items()}
    name = f"probe-{store.fingerprint(tensors)}"
    store.write_arrays(folder / f"{name}.npz", answers)
    return name


def _same(a: Answers, b: Answers) -> bool:
    """Whether two sets of answers are the same up to rounding."""
    if a.keys() != b.keys():
        return False
    return all(a[key].shape == b[key].shape and _near(a[key], b[key]) for key in a)


def _near(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether differences are at most SAME of the largest value of their image and step."""
    largest = np.nanmax(np.abs(a), axis=-1, keepdims=True, initial=0)
    near = np.abs(a - b) <= SAME * largest
    equal = (a == b) | (np.isnan(a) & np.isnan(b))  # infinities and NaN, too
    return bool((near | equal).all())
