"""The networks, each Normalize + body + head: images in [0, 1] -> logits.

They are seeded, and saved and loaded without pickle. A body (crat/nets/bodies.py) ends in the
penultimate features; the head is apart, because the papers exchange it: linear, cosine,
hypersphere, augmented.
"""

from __future__ import annotations

import inspect
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.config import ConfigError, ModelConfig
from crat.nets.bodies import BODIES
from crat.nets.chain import through

# of a linear head; as in TRADES
_ZERO_AT_FIRST = {"mnist_small_cnn": ("weight", "bias"), "wrn_34_10": ("bias",)}
HEAD_SCALES = {"cosine": 8.0, "hypersphere": 15.0}  # SPAT's s; AT_HE's s for PGD and TRADES


class Normalize(nn.Module):
    """The map (x - mean) / std per channel; mean and std are saved with the weights of a net."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ConfigError(
                    f"{name} has {len(values)} values for images of {channels} channels"
                )
            self.register_buffer(
                name,
                torch.tensor(values).float().expand(channels).reshape(1, channels, 1, 1).clone(),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same shape; raises ValueError on other channels."""
        if x.ndim != 4 or x.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"the model takes (N, {self.mean.shape[1]}, H, W) images, not {tuple(x.shape)}"
            )
        return (x - self.mean) / self.std


class CosineHead(nn.Module):
    """The logits s (cos(feature, w_k) + b_k): SPAT's with the bias b, HE's (hypersphere) without.

    The scale is part of the logits, for attacks must see the decision function that was trained.
    Weights are normalised in the forward pass only, and the gradient is that of the direction,
    orthogonal to w_k. SPAT's and HE's code instead overwrites the weights in each pass and
    differentiates as if the unit vectors were free: `onto_sphere` does so.
    """

    scale: Tensor

    def __init__(self, features: int, n_classes: int, scale: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(n_classes, features)))
        self.bias = nn.Parameter(torch.zeros(n_classes)) if bias else None
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.free = False

    def onto_sphere(self) -> None:
        """Overwrites the weights by unit vectors; then the gradient has its part along w_k.

        The next overwriting drops that part from the weights, but weight decay and momentum have
        used it; and the step turns unit vectors, not vectors whose length, and with it the rate of
        turning, drifts.
        """
        self.free = True
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight))

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K) in [-s, s] (shifted by s b)."""
        unit = F.normalize(self.weight)
        if self.free:
            unit = self.weight + (unit - self.weight).detach()
        return self.scale * F.linear(F.normalize(features), unit, self.bias)


class Classifier(nn.Module):
    """A network Normalize + body + head: (N, C, H, W) in [0, 1] -> logits (N, K).

    With an augmented head the logits are (N, K + M), the classes first.
    """

    def __init__(
        self, name: str, normalize: Normalize, body: nn.Module, head: nn.Module, n_classes: int
    ) -> None:
        super().__init__()
        self.name, self.n_classes = name, n_classes
        self.normalize = normalize
        self.body = body
        self.head = head

    def features(self, x: Tensor) -> Tensor:
        """The input of the head: (N, C, H, W) in [0, 1] -> (N, D)."""
        return through(self.body, self.normalize(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> logits."""
        return self.head(self.features(x))


def _head(
    kind: str, features: int, n_classes: int, extra_outputs: int, scale: float | None
) -> nn.Module:
    if (kind == "augmented") != (extra_outputs > 0):
        allowed = "at least 1 for the augmented head, else 0"
        raise ConfigError(f"extra_outputs is {allowed}; not {extra_outputs} for {kind}")
    if kind in HEAD_SCALES:
        scale = HEAD_SCALES[kind] if scale is None else scale
        return CosineHead(features, n_classes, scale, bias=kind == "cosine")
    if scale is not None:
        raise ConfigError(f"the {kind} head has no scale; {' and '.join(HEAD_SCALES)} have")
    return nn.Linear(features, n_classes + extra_outputs)


def build(
    config: ModelConfig | str,
    n_classes: int,
    image_shape: Sequence[int] = (3, 32, 32),
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    extra_outputs: int = 0,
    scale: float | None = None,
    final_bn: bool | None = None,
) -> Classifier:
    """A new network on the CPU, drawn by the seed; the global random state stays as it was.

    image_shape is (C, H, W); mean and std as in crat.data.registry; extra_outputs is M of the
    augmented head; scale is s of the cosine heads; final_bn belongs to preact_resnet18. Raises
    ConfigError for what an architecture does not have.
    """
    config = ModelConfig(config) if isinstance(config, str) else config
    extra_outputs = extra_outputs or config.extra_outputs
    scale = config.scale if scale is None else scale
    if n_classes < 2 or len(image_shape) != 3 or min(image_shape) < 1:
        needed = "2 classes or more and a (C, H, W) image"
        raise ConfigError(f"a model needs {needed}, not {n_classes} and {image_shape}")
    if config.width is not None and config.width < 1:
        raise ConfigError(f"the width of a model is at least 1, not {config.width}")
    make = BODIES[config.name]
    given = {"width": config.width, "depth": config.depth, "final_bn": final_bn}
    options = {name: value for name, value in given.items() if value is not None}
    known = list(inspect.signature(make).parameters)[1:]
    if stray := [name for name in options if name not in known]:
        has = ", ".join(known) or "no options"
        raise ConfigError(f"{config.name} has no {stray[0]}; it has: {has}")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would also seed the accelerators
        torch.random.default_generator.manual_seed(seed)
        body, features = make(tuple(image_shape), **options)
        head = _head(config.head, features, n_classes, extra_outputs, scale)
        if isinstance(head, nn.Linear):
            for part in _ZERO_AT_FIRST.get(config.name, ()):
                nn.init.zeros_(getattr(head, part))
        mean = (0.0,) if mean is None else mean
        std = (1.0,) if std is None else std
        normalize = Normalize(mean, std, image_shape[0])
        return Classifier(config.name, normalize, body, head, n_classes)


def class_weight_norms(model: nn.Module) -> Tensor:
    """The norms ||w_k|| of the last layer, (K,); raises ConfigError for normalising heads."""
    model = plain(model)
    if isinstance(model.head, CosineHead):
        raise ConfigError(
            "class weight norms mean nothing under a cosine or hypersphere head: "
            "it uses unit vectors"
        )
    return cast(Tensor, model.head.weight).detach()[: model.n_classes].norm(dim=1)


def plain(model: nn.Module) -> Classifier:
    """The classifier inside torch.compile and DistributedDataParallel."""
    while not isinstance(model, Classifier):
        model = cast(nn.Module, model._orig_mod if hasattr(model, "_orig_mod") else model.module)
    return model


# in TRADES' and FRL's WideResNet, outside its forward
_UNUSED = re.compile(r"^(sub_block1|layer_one|other_layers)\.")
_FRONTS = re.compile(r"^((module|_orig_mod)\.)+")  # that wrappers put before each name
_HEADS = re.compile(r"^(linear|linear2|fc|classifier\.fc3)\.")
# the last since torch 0.4.1 only
_NOT_CARRIED = re.compile(r"^normalize\.|^head\.scale$|\.num_batches_tracked$")
_OF_OPTIMIZER = re.compile(r"(^|\.)\w*(optim|sched|scaler)\w*\.")
# where training scripts put the weights
_NESTS = ("state_dict", "model_state_dict", "model", "net")


class CheckpointError(RuntimeError):
    """An unusable weights file: one line; the model keeps its old weights."""


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Saves parameters and buffers as safetensors; the file appears whole or not at all."""
    path = Path(path)
    tensors = {name: tensor.contiguous() for name, tensor in plain(model).state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(safetensors.torch.save(tensors))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads the weights of `save_weights`; raises CheckpointError, and then changes nothing."""
    _fill(plain(model), path, _chosen(_read(Path(path)), Path(path), None)[0])


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str], key: str | None = None) -> str:
    """Loads weights from safetensors or a foreign .pt; returns a line on the choice of weights.

    The names are ours or those of CFA, FRL, TRADES, AdverTorch, torchvision. The file may be a
    state_dict or hold some, and say `module.` before each name. key: which of those it holds
    ("ema", "nets.student"); None: the only one, else the first of state_dict, model_state_dict,
    model and net. The line is "" where there was no choice. Such files have no normalisation and no
    scale of a head: these stay as built. Raises CheckpointError, and then changes nothing.
    """
    found, line = weights_in(path, key)
    _fill(plain(model), path, by_our_names(model, found))
    return line


def weights_in(
    path: str | os.PathLike[str], key: str | None = None
) -> tuple[dict[str, Tensor], str]:
    """The weights in a file by its own names, and the line of `load_checkpoint`."""
    return _chosen(_read(Path(path)), Path(path), key)


def by_our_names(model: nn.Module, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Foreign weights by the names of a classifier of ours, whose own fill what files lack.

    These are the normalisation, the scale of a head and the number of BatchNorm's batches.
    """
    own = plain(model).state_dict()
    tensors = {name: tensor for name, tensor in own.items() if _NOT_CARRIED.search(name)}
    for name, tensor in found.items():
        foreign = _FRONTS.sub("", name)
        if not _UNUSED.match(foreign):
            tensors[_our_name(foreign)] = tensor
    return tensors


def load_start(model: nn.Module, path: str | os.PathLike[str]) -> bool:
    """Loads the weights that a training starts from, as `load_checkpoint`; whether with the head.

    A head of as many rows as the model has classes fills these rows, and further outputs stay as
    drawn; a head of another number of rows is left out, and the model's stays as drawn.
    """
    classifier = plain(model)
    tensors = by_our_names(model, weights_in(path)[0])
    own = classifier.state_dict()
    rows = len(tensors.get("head.weight", ()))
    fits = rows in (0, classifier.n_classes, len(own["head.weight"]))  # 0: `_fill` says that
    for name, drawn in own.items():
        if name.startswith("head.") and drawn.ndim and not fits:
            tensors[name] = drawn
        elif name in tensors and name.startswith("head.") and _alike(tensors[name], drawn):
            tensors[name] = torch.cat([tensors[name], drawn[rows:]])
    _fill(classifier, path, tensors)
    return fits


def _alike(given: Tensor, drawn: Tensor) -> bool:
    """Whether two tensors differ in the number of their rows at most."""
    return given.ndim > 0 and given.shape[1:] == drawn.shape[1:]


def load_foreign(model: nn.Module, path: str | os.PathLike[str], key: str | None = None) -> str:
    """Loads a file into a network of any class by that class's own names; as `load_checkpoint`.

    A front that all names of the file share ("model.", as a trainer's module saves them) may be
    missing in the class; and the file may be of a part of it that has all its parameters, as where
    a class normalises its input and holds a network.
    """
    found, line = _chosen(_read(Path(path)), Path(path), key)
    bare = {_FRONTS.sub("", name): tensor for name, tensor in found.items()}
    fronts = {name.partition(".")[0] for name in bare}
    short = {name.partition(".")[2]: tensor for name, tensor in bare.items()}
    for tensors in (bare, short) if len(fronts) == 1 else (bare,):
        for part in (model, *model.children()):
            counters = _counters(part, tensors)
            whole = len(list(part.parameters())) == len(list(model.parameters()))
            if whole and (tensors | counters).keys() == part.state_dict().keys():
                _fill(part, path, tensors | counters)
                return line
    _fill(model, path, bare)
    return line


def _counters(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """BatchNorm's counters of batches that a file of before torch 0.4.1 lacks; none is used."""
    own = model.state_dict()
    lacking = own.keys() - tensors.keys()
    return {name: own[name] for name in lacking if name.endswith("num_batches_tracked")}


def _our_name(name: str) -> str:
    if name.startswith(("normalize.", "body.", "head.")):
        return name
    name = _HEADS.sub("head.", name.replace(".convShortcut.", ".shortcut.0."))
    return name if name.startswith("head.") else f"body.{name}"


def _read(path: Path) -> Any:
    """The content of a file; nothing in it is executed."""
    if not path.is_file():
        raise CheckpointError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # it warns of old pickles; what is wrong is said below
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not (zipfile.is_zipfile(path) or path.read_bytes()[:1] == b"\x80"):
            raise CheckpointError(
                f"{path} cannot be read: it is damaged, or no file of torch.save"
            ) from error
        raise CheckpointError(
            f"{path} holds more than tensors, such as a whole pickled model, "
            "and opening that would run its code: "
            "where it was made, write torch.save(model.state_dict(), file) instead"
        ) from error
    except Exception as error:  # the readers raise whatever a damaged file makes them stumble over
        kind = type(error).__name__
        raise CheckpointError(f"{path} cannot be read: it is damaged ({kind})") from error


def _chosen(found: Any, path: Path, key: str | None) -> tuple[dict[str, Tensor], str]:
    """The state_dict in a file's content, and a line on the choice where there are several."""
    if _is_state_dict(found) and key is None:
        return found, ""
    known = _state_dicts(found)
    # a checkpoint's optimizer has dicts of tensors, too, one for each weight
    known = {n: w for n, w in known.items() if not _OF_OPTIMIZER.search(n)} or known
    listed = ", ".join(known) or "none"
    if key is not None:
        if key not in known:
            raise CheckpointError(f"{path} holds no weights named {key!r}; there are: {listed}")
        return known[key], ""
    usual = [name for name in known if name.split(".")[-1] in _NESTS]
    usual.sort(key=lambda name: (name.count("."), _NESTS.index(name.split(".")[-1])))
    if not usual and len(known) != 1:
        if known:
            raise CheckpointError(f"{path} holds several: {listed}; --key chooses")
        raise CheckpointError(f"{path} holds no state_dict, neither itself nor inside")
    taken = usual[0] if usual else listed
    if len(known) == 1:
        return known[taken], ""
    line = f"{path.name} holds the weights {listed}: {taken} is taken; --key chooses another"
    return known[taken], line


def _is_state_dict(found: Any) -> bool:
    if not isinstance(found, dict) or not found:
        return False
    return all(isinstance(value, Tensor) for value in found.values())


def _state_dicts(found: Any, front: str = "") -> dict[str, dict[str, Tensor]]:
    """All dicts of tensors in nested dicts, by their keys joined with dots."""
    if _is_state_dict(found):
        return {front: found}
    parts = found.items() if isinstance(found, dict) else ()
    inner = [_state_dicts(part, f"{front}.{name}" if front else str(name)) for name, part in parts]
    return {name: tensors for some in inner for name, tensors in some.items()}


def _fill(model: nn.Module, path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
    """Loads all or nothing: names and shapes are compared first."""
    own = model.state_dict()
    reshaped = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    wrong = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "of another shape": [
            f"{name} {(*tensors[name].shape,)}, here {(*own[name].shape,)}" for name in reshaped
        ],
    }
    faults = [f"{len(names)} {what} ({_first(names)})" for what, names in wrong.items() if names]
    if faults:
        hint = ""
        ours = isinstance(model, Classifier)
        if ours and "body.bn.weight" in own.keys() ^ tensors.keys():
            hint = "; final_bn of build decides on the last BatchNorm"
        name = model.name if ours else type(model).__name__
        if ours:
            hint += f"; a network of your own: `crat audit file.py:Class --weights {path}`"
        else:
            hint += "; a function in its place, file.py:make, may build and load another network"
        raise CheckpointError(f"{path} does not fit this {name}: {', '.join(faults)}{hint}")
    model.load_state_dict(tensors)


def _first(names: list[str], most: int = 3) -> str:
    return "; ".join(names[:most]) + " ..." * (len(names) > most)
