"""A model from outside crat, or a run's: found by its name and checked before any attack."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crat import data
from crat.analysis import metrics
from crat.attacks import Decision, frozen
from crat.attacks.door import as_images, check_model
from crat.attacks.judge import attacked_logits
from crat.attacks.logits import AttackError, finite_logits, forward_backward, logits_of
from crat.attacks.objectives import Margin
from crat.attacks.watched import RobustnessWarning, check_gradients, check_outputs
from crat.config import MODELS, ConfigError, ModelConfig
from crat.data.registry import DATASETS
from crat.nets import models
from crat.outcomes.evaluation import network
from crat.training.named import find_run
from crat.training.run import Run

CHECKED = 64  # images on which outputs and gradients are checked
DIAGNOSED = 1000  # images, at most, on which other scalings of the input are tried
NAMED = 8  # functions and classes, at most, that an error lists
BATCH = 500  # images of one forward pass
SAME = 1e-3  # of the largest logit: a difference that rounding may cause between batches
Found = tuple[nn.Module, list[str]]  # a model and doubts about it, a line each


class ModelError(ValueError):
    """A model that cannot be judged; the message says what it does and what is expected."""


def find_model(
    subject: str,
    architecture: str | None,
    images: data.Dataset,
    device: torch.device,
    key: str | None = None,
    weights: Path | None = None,
) -> Found:
    """The model that `subject` names, on the device, and doubts about it, a line each.

    subject: "module:function", "file.py:function" or "file.py:Class", whose code runs; a run,
    trained here or published with its weights, by its folder, its name or a part of the name; with
    an architecture, the path of a weights file, of which nothing is unpickled.
    key: the state_dict to use, where a weights file has several (crat.nets.models.load_checkpoint).
    weights: a file of the function's or class's own weights, which are loaded into its model.
    Raises ConfigError where the subject does not exist, ModelError where the function fails,
    CheckpointError where the weights do not fit the architecture, MissingWeights where the run's
    network is not here.
    """
    if architecture is not None:
        if weights is not None:
            raise ConfigError(
                "--weights go with file.py:Class; with --model the file is the subject"
            )
        return _from_weights(Path(subject), architecture, images, device, key)
    if key is not None and weights is None:
        raise ConfigError(
            "--key chooses among the weights of a file, with --model or --weights; a function "
            "returns its own model, and a run has one"
        )
    if ":" not in subject:
        _must_be_a_run(subject, weights)
        return network(run_named(subject), "best", device), []
    model = _from_function(subject)
    if weights is None:
        return model.to(device), in_train_mode(model)
    # a class makes a network in train mode, always: that says nothing of its weights
    doubt = models.load_foreign(model, weights, key)
    return model.to(device), [doubt] if doubt else []


def in_train_mode(model: nn.Module) -> list[str]:
    """A line where a model's BatchNorm is in train mode; none else."""
    if any(isinstance(part, _BatchNorm) and part.training for part in model.modules()):
        return ["BatchNorm came in train mode; the model is judged in eval mode"]
    return []


def _must_be_a_run(subject: str, weights: Path | None) -> None:
    """Raises ConfigError where a subject without a colon is a file, or is given weights."""
    path = Path(subject)
    if path.suffix == ".py":
        raise ConfigError(f"{subject} is a file: name its class or function, {subject}:Net")
    if path.is_file():
        raise ConfigError(
            f"{subject} is a file: weights of a class of yours are "
            f"`crat audit file.py:Class --weights {subject}`, those of an architecture of crat's "
            f"`crat audit {subject} --model {' | '.join(MODELS)}`"
        )
    if weights is not None:
        raise ConfigError(
            f"--weights go with file.py:Class, whose network they are; {subject} has its own"
        )


def run_named(subject: str) -> Run:
    """The run that a subject means; raises ConfigError where it means none, or several."""
    _must_be_a_run(subject, None)
    try:
        return find_run(subject)
    except ConfigError as error:
        names = " | ".join(MODELS)
        raise ConfigError(
            f"{subject!r} is neither module:function nor a weights file with --model {names}; "
            f"{error}"
        ) from None


def _from_function(subject: str) -> nn.Module:
    place, _, name = subject.rpartition(":")
    # `python file.py` and `python -m module` look here first; the model's forward may import, too
    folder = str(Path(place).parent.absolute() if place.endswith(".py") else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _imported(place)
    make = getattr(module, name, None)
    if not callable(make):
        raise ConfigError(f"{place} has no function {name!r}{_makers(module)}")
    model = make
    if not isinstance(make, nn.Module):
        _must_need_nothing(make, f"{name}() of {place}")
        with _blamed(ModelError, f"{name}() of {place} failed"):
            model = make()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name}() of {place} returns {type(model).__name__}, not an nn.Module")
    return model


def _makers(module: ModuleType) -> str:
    """The functions and classes that a module defines itself, in words; the first few."""
    defined = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    more = " ..." if len(defined) > NAMED else ""
    return f"; it has: {', '.join(defined[:NAMED])}{more}" if defined else ""


def _must_need_nothing(make: Callable[..., Any], what: str) -> None:
    """Raises ConfigError where a function or class cannot be called without arguments."""
    try:
        inspect.signature(make).bind()
    except ValueError:  # some built-in classes have no signature
        return
    except TypeError as error:
        raise ConfigError(
            f"{what} needs arguments ({error}): name a function that calls it with them"
        ) from None


def _imported(place: str) -> ModuleType:
    if place.endswith(".py") and not Path(place).is_file():
        raise ConfigError(f"there is no file {place}")
    with _blamed(ConfigError, f"cannot import {place!r}"):
        if not place.endswith(".py"):
            return import_module(place)
        # the prefix keeps a file from hiding a module of the same name
        name = f"audited_{Path(place).stem}"
        module = sys.modules[name] = ModuleType(name)
        module.__file__ = str(Path(place).absolute())
        SourceFileLoader(name, place).exec_module(module)
        return module


@contextmanager
def _blamed(kind: type[ValueError], what: str, way_out: str = "") -> Iterator[None]:
    """Turns any exception of foreign code into a `kind`: `what`, and the reason's first line."""
    try:
        yield
    except AttackError:  # its message is one line already
        raise
    except SystemExit as error:  # a script may call sys.exit when imported
        raise kind(
            f'{what}: it ends the program; put what it runs under if __name__ == "__main__"'
        ) from error
    except Exception as error:
        why = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise kind(f"{what}: {why}{way_out}") from error


def _from_weights(
    path: Path, architecture: str, images: data.Dataset, device: torch.device, key: str | None
) -> Found:
    """The model of a weights file; without normalisation in the file, validation images decide it.

    Two candidates, with the data set's normalisation and without one, are then compared.
    """
    spec = DATASETS[images.name]
    config = ModelConfig(architecture)
    candidates = []
    for mean, std in ((spec.mean, spec.std), ((0.0,), (1.0,))):
        model = models.build(config, images.n_classes, images.image_shape, mean=mean, std=std)
        doubt = models.load_checkpoint(model, path, key)
        candidates.append(model.eval().to(device))
    doubts = [doubt] if doubt else []
    normalised, plain = candidates
    if torch.equal(normalised.normalize.mean, plain.normalize.mean):
        return normalised, doubts
    x = as_images(images.x_valid[:CHECKED].to(device))
    y = images.y_valid[:CHECKED].to(device)
    right_normalised = accuracy(normalised, x, y)
    right_plain = accuracy(plain, x, y)
    judged_plain = right_plain > right_normalised
    doubts.append(
        f"{path.name} says nothing of normalisation: {right_normalised:.0%} of {len(x)} validation "
        f"images are right with that of {images.name}, {right_plain:.0%} without; it is judged "
        f"{'without' if judged_plain else 'with it'}"
    )
    return plain if judged_plain else normalised, doubts


def decision(
    model: nn.Module,
    example: Tensor,
    n_classes: int,
    logit_slice: int | None = None,
    scale: float = 1.0,
) -> nn.Module:
    """The model with its first `logit_slice` logits (None: all), times `scale`.

    example: images (N, C, H, W) in [0, 1]. The model must also accept the first image alone, as the
    last unbroken image of an attack is.
    Raises ModelError where the model refuses the images or the number of logits is not n_classes,
    AttackError where no attack can work on the model (crat.attacks.door).
    """
    check_model(model)
    for x in (example, example[:1]):
        shape = f"the model takes no float32 images of shape {tuple(x.shape)}"
        refused = _blamed(ModelError, shape, _other_images(x))
        with refused, frozen(model), torch.no_grad():
            answer = model(x)
        logits = logits_of(answer, x)
    outputs = logits.shape[1]
    n_logits = len(range(outputs)[:logit_slice])
    if n_logits != n_classes:
        hint = ""
        if outputs > n_classes:
            hint = f"; --logit-slice {n_classes} lets the first {n_classes} answer"
        hint += _with_classes(n_logits)
        raise ModelError(f"the model answers with {n_logits} logits, not {n_classes}{hint}")
    plain = answer is logits and logit_slice is None and scale == 1
    return model if plain else Decision(model, slice(logit_slice), scale)


def _other_images(x: Tensor) -> str:
    """Words on how images (N, C, H, W) may be made into those that a model takes."""
    grey = ", x.expand(-1, 3, -1, -1) in its forward makes grey ones colour"
    return f"; --resize N scales them for the model{grey if x.shape[1] == 1 else ''}"


def _with_classes(n: int) -> str:
    """The data sets with so many classes, in words."""
    fitting = [name for name, spec in DATASETS.items() if spec.n_classes == n]
    return f"; --data with {n} classes: {' | '.join(fitting)}" if fitting else ""


class Resized(nn.Module):
    """A network of another resolution: images are scaled (bilinear), and the gradient through it.

    The attack stays on the data set's own pixels.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> what the network answers to (N, C, size, size)."""
        both = (self.size, self.size)
        scaled = F.interpolate(x, both, mode="bilinear", align_corners=False, antialias=True)
        return self.network(scaled)


def examine(
    model: nn.Module, x: Tensor | data.Streamed, y: Tensor, classes: Sequence[str]
) -> tuple[Tensor, list[str]]:
    """Clean float32 logits (N, K), and reasons to doubt a robust accuracy, a line each.

    x: (N, C, H, W) uint8, or files. y: (N,). classes: K names.
    Raises AttackError on NaN logits and where the images get no gradient, ModelError where the
    gradient fails.
    """
    few = as_images(x[:CHECKED])
    labels = y[:CHECKED]
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
    absent = [name for k, name in enumerate(classes) if not (y == k).any()]
    if absent:
        names = ", ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
        lines.append(f"no image of {names} is among the first {len(y)}")
    return logits, lines + diagnosis(model, x[:DIAGNOSED], y[:DIAGNOSED], len(classes))


def diagnosis(model: nn.Module, x: Tensor, y: Tensor, n_classes: int) -> list[str]:
    """A line (or none) where another scaling of the inputs is right more often, or few are right.

    More often: with 95 % intervals that do not overlap. Few: less than twice chance.
    x: (N, C, H, W) uint8 or [0, 1]. y: (N,).
    """
    x = as_images(x)
    mean = x.mean((0, 2, 3), keepdim=True)
    std = x.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    missing = "put that inside the model"
    doubled = "the model normalises once too often"
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
    share = f"{100 * clean:.1f} % of the clean images are right"
    if low[0] > high[1] and shares[best] > 2 / n_classes:
        remedy = other_inputs[best][1]
        return [f"{share}; with inputs {best} it would be {100 * shares[best]:.1f} %: {remedy}"]
    if clean < 2 / n_classes:
        chance = f"{100 / n_classes:.1f} %"
        return [
            f"{share}, chance is {chance}: is a normalisation missing or doubled, or are the "
            "classes in disorder?"
        ]
    return []


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The accuracy on images (N, C, H, W), in [0, 1] or not; 0 where the model refuses them."""
    try:
        with frozen(model):
            answers = [finite_logits(model, images).argmax(1) for images in x.split(BATCH)]
    except Exception:  # the model's code may check its inputs
        return 0.0
    return (torch.cat(answers) == y).cpu().double().mean().item()


@contextmanager
def noted(kind: type[Warning] = RobustnessWarning) -> Iterator[list[str]]:
    """Collects the messages of one kind of warning, each once; other warnings are shown."""
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
