"""A model from elsewhere: found by its name, and checked against the protocol before any attack
is believed.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crat import data
from crat.analysis import metrics
from crat.attacks import Decision, frozen
from crat.attacks.door import (
    RobustnessWarning,
    as_images,
    check_gradients,
    check_model,
    check_outputs,
)
from crat.attacks.gradient import forward_backward
from crat.attacks.judge import attacked_logits
from crat.attacks.logits import AttackError, finite_logits, logits_of
from crat.attacks.objectives import Margin
from crat.config import MODELS, ConfigError, ModelConfig
from crat.data.registry import DATASETS
from crat.nets import models

CHECKED = 64  # images on which outputs and gradients are checked
DIAGNOSED = 1000  # images, at most, on which other scalings of the input are tried
BATCH = 500  # images that are passed at once
SAME = 1e-3  # of the largest logit: what may differ by rounding between batches
Found = tuple[nn.Module, list[str]]  # a model in eval mode or not, and lines on what is doubtful


class ModelError(ValueError):
    """A model that cannot be judged: one line with what it does and what is expected."""


def find_model(
    subject: str,
    architecture: str | None,
    images: data.Dataset,
    device: torch.device,
    key: str | None = None,
) -> Found:
    """The model of "module:function", "file.py:function" or, with an architecture, a weights file;
    on the device.

    key: which of several state_dicts in a weights file (crat.nets.models.load_checkpoint).
    Nothing is unpickled; of a function, its own code runs. Raises ConfigError where there is no
    such thing, ModelError where the function fails, CheckpointError where the weights do not fit.
    """
    if architecture is not None:
        return _from_weights(Path(subject), architecture, images, device, key)
    if ":" not in subject:
        names = " | ".join(MODELS)
        raise ConfigError(
            f"{subject!r} is neither module:function nor a weights file with --model {names}"
        )
    if key is not None:
        raise ConfigError(
            "--key chooses among the weights of a file, with --model; a function returns its own "
            "model"
        )
    model = _from_function(subject)
    training = any(isinstance(part, _BatchNorm) and part.training for part in model.modules())
    return model.to(device), [
        "BatchNorm came in train mode; the model is judged in eval mode"
    ] * training


def _from_function(subject: str) -> nn.Module:
    place, _, name = subject.rpartition(":")
    folder = str(Path(place).parent.absolute() if place.endswith(".py") else Path.cwd())
    # where `python file.py` and `python -m module` look first; forward may import, too
    if folder not in sys.path:
        sys.path.insert(0, folder)
    make = getattr(_imported(place), name, None)
    if not callable(make):
        raise ConfigError(f"{place} has no function {name!r}")
    with _blamed(ModelError, f"{name}() of {place} failed"):
        model = make if isinstance(make, nn.Module) else make()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name}() of {place} returns {type(model).__name__}, not an nn.Module")
    return model


def _imported(place: str) -> ModuleType:
    with _blamed(ConfigError, f"cannot import {place!r}"):
        if not place.endswith(".py"):
            return import_module(place)
        # whatever the file is called, no other module is hidden
        name = f"audited_{Path(place).stem}"
        module = sys.modules[name] = ModuleType(name)
        module.__file__ = str(Path(place).absolute())
        SourceFileLoader(name, place).exec_module(module)
        return module


@contextmanager
def _blamed(kind: type[ValueError], what: str) -> Iterator[None]:
    """Whatever foreign code raises, as one line: what failed, and the first line of why."""
    try:
        yield
    except AttackError:  # a line already
        raise
    except (Exception, SystemExit) as error:  # a script may call sys.exit when imported
        why = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise kind(f"{what}: {why}") from error


def _from_weights(
    path: Path, architecture: str, images: data.Dataset, device: torch.device, key: str | None
) -> Found:
    """Where a file says nothing of normalisation, validation images tell whether it was trained
    with the data set's.
    """
    tried = []
    spec = DATASETS[images.name]
    for mean, std in ((spec.mean, spec.std), ((0.0,), (1.0,))):
        model = models.build(
            ModelConfig(architecture), images.n_classes, images.image_shape, mean=mean, std=std
        )
        line = models.load_checkpoint(model, path, key)
        tried.append(model.eval().to(device))
    if torch.equal(tried[0].normalize.mean, tried[1].normalize.mean):
        return tried[0], [line] * bool(line)
    x, y = as_images(images.x_valid[:CHECKED].to(device)), images.y_valid[:CHECKED].to(device)
    right = [accuracy(model, x, y) for model in tried]
    normalised = (
        f"{path.name} says nothing of normalisation: {right[0]:.0%} of {len(x)} validation images "
        f"are right with that "
        f"of {images.name}, {right[1]:.0%} without; it is judged "
        f"{'without' if right[1] > right[0] else 'with it'}"
    )
    return tried[right[1] > right[0]], [line] * bool(line) + [normalised]


def decision(
    model: nn.Module,
    example: Tensor,
    n_classes: int,
    logit_slice: int | None = None,
    scale: float = 1.0,
) -> nn.Module:
    """The model with its first `logit_slice` logits, times `scale`; ModelError where that is not K
    logits an image.

    example: (N, C, H, W) in [0, 1]; its first image is also given alone, as attacks do with the
    last one unbroken. Raises AttackError on a model that no attack can work on (crat.attacks.door).
    """
    check_model(model)
    for x in (example, example[:1]):
        refused = _blamed(
            ModelError, f"the model takes no float32 images of shape {tuple(x.shape)}"
        )
        with refused, frozen(model), torch.no_grad():
            answer = model(x)
        logits = logits_of(answer, x)
    outputs = logits.shape[1]
    if len(range(outputs)[:logit_slice]) != n_classes:
        hint = (
            f"; --logit-slice {n_classes} lets the first {n_classes} answer"
            if outputs > n_classes
            else ""
        )
        raise ModelError(
            f"the model answers with {len(range(outputs)[:logit_slice])} logits, not "
            f"{n_classes}{hint}"
        )
    plain = answer is logits and logit_slice is None and scale == 1
    return model if plain else Decision(model, slice(logit_slice), scale)


def examine(
    model: nn.Module, x: Tensor, y: Tensor, classes: Sequence[str]
) -> tuple[Tensor, list[str]]:
    """Clean float32 logits (N, K), and a line for each thing that makes a robust accuracy doubtful.

    x: (N, C, H, W) uint8, y (N,). Raises AttackError on NaN logits and where the images get no
    gradient.
    """
    few, labels = as_images(x[:CHECKED]), y[:CHECKED]
    with frozen(model), noted() as lines:
        logits = attacked_logits(model, x, y, None)
        check_outputs(model, few)
        alone = finite_logits(model, few[:1])
        with _blamed(ModelError, "the gradient of the logits by the images cannot be had"):
            gradient = forward_backward(model, few, labels, Margin())[0]
        check_gradients(gradient)
    if not lines and (alone - logits[:1]).abs().max() > SAME * logits.abs().max():
        lines.append("an image's logits depend on the others of its batch, and so will its verdict")
    if not lines and logits.abs().max() <= 1:
        lines.append(
            "all logits lie in [-1, 1]: if they are cosines, attacks need the scale of training "
            "(--scale)"
        )
    if absent := [name for k, name in enumerate(classes) if not (y == k).any()]:
        lines.append(
            f"no image of {', '.join(absent[:3])}{' ...' * (len(absent) > 3)} is among the first "
            f"{len(y)}"
        )
    return logits, lines + diagnosis(model, x[:DIAGNOSED], y[:DIAGNOSED], len(classes))


def diagnosis(model: nn.Module, x: Tensor, y: Tensor, n_classes: int) -> list[str]:
    """A line where other inputs are right more often (95 % intervals apart), or where hardly any
    image is right.
    """
    x = as_images(x)
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    missing, doubled = "put that inside the model", "the model normalises once too often"
    other_inputs = {
        "in [0, 255]": (255 * x, missing),
        "in [-1, 1]": (2 * x - 1, missing),
        "normalised by their mean and standard deviation": ((x - mean) / std, missing),
        "whose normalisation is undone beforehand": (x * std + mean, doubled),
    }
    clean = accuracy(model, x, y)
    shares = {how: accuracy(model, images, y) for how, (images, _) in other_inputs.items()}
    best = max(shares, key=shares.__getitem__)
    low, high = metrics.wilson([shares[best] * len(y), clean * len(y)], len(y))
    told = f"{100 * clean:.1f} % of the clean images are right"
    if low[0] > high[1] and shares[best] > 2 / n_classes:
        return [
            f"{told}; with inputs {best} it would be {100 * shares[best]:.1f} %: "
            f"{other_inputs[best][1]}"
        ]
    if clean < 2 / n_classes:
        chance = f"{100 / n_classes:.1f} %"
        return [
            f"{told}, chance is {chance}: is a normalisation missing or doubled, or are the "
            f"classes in disorder?"
        ]
    return []


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share that is right of images (N, C, H, W), in [0, 1] or not; 0 where the model
    refuses them.
    """
    try:
        with frozen(model):
            answers = [finite_logits(model, images).argmax(1) for images in x.split(BATCH)]
    except Exception:  # its own code may check what it is given
        return 0.0
    return (torch.cat(answers) == y).double().mean().item()


@contextmanager
def noted(kind: type[Warning] = RobustnessWarning) -> Iterator[list[str]]:
    """Collects the lines of one kind of warning, each once; other warnings are shown as ever."""
    lines: list[str] = []
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *where) -> None:
            if not issubclass(category, kind):
                shown(message, category, *where)
            elif str(message) not in lines:
                lines.append(str(message))

        warnings.simplefilter("always", kind)
        warnings.showwarning = note  # type: ignore[assignment]
        yield lines
