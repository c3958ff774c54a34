"""Networks as Normalize + body + head: images in [0, 1] in, logits out; seeded; kept without pickle.

A body ends in the penultimate features; the head is apart, because the papers exchange it (linear, cosine, hypersphere,
augmented). Inside a body the modules carry the names of the released code, so that published weights load.
"""

from __future__ import annotations

import inspect
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.config import ConfigError, ModelConfig

Shape = tuple[int, int, int]  # channels, height, width
Body = tuple[nn.Module, int]  # a module (N, C, H, W) -> (N, D), and D

_NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),  # both as in CFA's utils.py
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's
}
_ZERO_AT_FIRST = {"mnist_small_cnn": ("weight", "bias"), "wrn_34_10": ("bias",)}  # of a linear head; as in TRADES
HEAD_SCALES = {"cosine": 8.0, "hypersphere": 15.0}  # SPAT's s; AT_HE's s for PGD and TRADES


def normalisation(dataset_name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, for `build`; (0,) and (1,), which change nothing, where none is used."""
    return _NORMALISATION.get(dataset_name, ((0.0,), (1.0,)))


def _conv(inside: int, outside: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, bias=False)


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def _he_normal(body: nn.Module, mode: str) -> nn.Module:
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode)  # type: ignore[arg-type]
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return body


def _pooled(**layers: nn.Module) -> nn.Sequential:
    """The named layers, then the mean over all places: at 32 pixels the released fixed pooling, at other sizes too."""
    return nn.Sequential(OrderedDict(layers, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; the shortcut is taken behind the first ReLU where the shape changes (He et al. 2016b)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), _conv(inside, outside, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outside), _conv(outside, outside)
        same = stride == 1 and inside == outside
        self.shortcut = None if same else nn.Sequential(_conv(inside, outside, stride, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inside, H, W) -> (N, outside, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class BasicBlock(nn.Module):
    """Conv-BN-ReLU-conv-BN, the shortcut added before the last ReLU (He et al. 2016a)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inside, outside, stride), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = _conv(outside, outside), nn.BatchNorm2d(outside)
        same = stride == 1 and inside == outside
        projection = [] if same else [_conv(inside, outside, stride, kernel=1), nn.BatchNorm2d(outside)]
        self.shortcut = nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inside, H, W) -> (N, outside, H / stride, W / stride)."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def _stage(block: type[nn.Module], inside: int, outside: int, stride: int, blocks: int = 2) -> nn.Sequential:
    return nn.Sequential(block(inside, outside, stride), *(block(outside, outside, 1) for _ in range(blocks - 1)))


def _stages(block: type[nn.Module], width: int) -> dict[str, nn.Module]:
    """The four stages of an 18-layer net: width, 2 width, 4 width, 8 width channels, halved thrice."""
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    return {f"layer{i}": _stage(block, widths[i - 1], widths[i], 1 if i == 1 else 2) for i in range(1, 5)}


def small_cnn(shape: Shape, width: int = 16) -> Body:
    """Ours, for laptops: conv-BN-ReLU at width, 2 width (halved), 2 width, 4 width (halved) channels, flattened."""
    channels, height, wide = shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (outside, stride) in enumerate(((width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2)), start=1):
        layers |= {f"conv{i}": _conv(channels, outside, stride), f"bn{i}": nn.BatchNorm2d(outside), f"relu{i}": _relu()}
        channels = outside
    layers["flatten"] = nn.Flatten()
    return nn.Sequential(layers), channels * -(-height // 4) * -(-wide // 4)


def mnist_small_cnn(shape: Shape) -> Body:
    """TRADES' net for MNIST: conv 32, 32, pool, 64, 64, pool, then 200, 200; dropout 0.5 (models/small_cnn.py)."""
    places = [((size - 4) // 2 - 4) // 2 for size in shape[1:]]
    if min(places) < 1:
        raise ConfigError(f"mnist_small_cnn needs images of at least 16 x 16 pixels, not {shape[1]} x {shape[2]}")
    plan = ((shape[0], 32), (32, 32), (32, 64), (64, 64))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inside, outside) in enumerate(plan, start=1):
        layers |= {f"conv{i}": nn.Conv2d(inside, outside, 3), f"relu{i}": _relu()}
        if i % 2 == 0:
            layers[f"maxpool{i // 2}"] = nn.MaxPool2d(2)
    flat = 64 * places[0] * places[1]
    dense = OrderedDict(fc1=nn.Linear(flat, 200), relu1=_relu(), drop=nn.Dropout(0.5), fc2=nn.Linear(200, 200))
    classifier = nn.Sequential(OrderedDict(dense, relu2=_relu()))
    parts = OrderedDict(feature_extractor=nn.Sequential(layers), flatten=nn.Flatten(), classifier=classifier)
    return _he_normal(nn.Sequential(parts), "fan_in"), 200


def lenet5(shape: Shape) -> Body:
    """AdverTorch's net for MNIST: two 3x3 convolutions (32, 64), each pooled by 2, then 200."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inside, outside) in enumerate(((shape[0], 32), (32, 64)), start=1):
        parts |= {f"conv{i}": nn.Conv2d(inside, outside, 3, padding=1), f"relu{i}": _relu()}
        parts[f"maxpool{i}"] = nn.MaxPool2d(2)
    flat = 64 * (shape[1] // 4) * (shape[2] // 4)
    parts |= {"flatten": nn.Flatten(), "linear1": nn.Linear(flat, 200), "relu3": _relu()}
    return nn.Sequential(parts), 200


def preact_resnet18(shape: Shape, width: int = 64, final_bn: bool = True) -> Body:
    """CFA's net; with `final_bn=False` FRL's, which pools without the last BN and ReLU (and does not normalise)."""
    last = {"bn": nn.BatchNorm2d(8 * width), "relu": _relu()} if final_bn else {}
    return _pooled(conv1=_conv(shape[0], width), **_stages(PreActBlock, width), **last), 8 * width


def resnet18(shape: Shape, width: int = 64) -> Body:
    """The CIFAR variant: a 3x3 stem without pooling."""
    stem = {"conv1": _conv(shape[0], width), "bn1": nn.BatchNorm2d(width), "relu1": _relu()}
    return _pooled(**stem, **_stages(BasicBlock, width)), 8 * width


def wrn_34_10(shape: Shape, width: int = 10, depth: int = 34) -> Body:
    """TRADES' WideResNet (models/wideresnet.py): 16 channels, then 16, 32, 64 times `width`; depth is 6 n + 4."""
    if depth < 10 or (depth - 4) % 6:
        raise ConfigError(f"the depth of a WideResNet is 6 n + 4 (10, 16, 22, 28, 34 ...), not {depth}")
    widths = [16, 16 * width, 32 * width, 64 * width]
    blocks: dict[str, nn.Module] = {}
    for i in (1, 2, 3):
        stage = _stage(PreActBlock, widths[i - 1], widths[i], 1 if i == 1 else 2, (depth - 4) // 6)
        blocks[f"block{i}"] = nn.Sequential(OrderedDict(layer=stage))
    body = _pooled(conv1=_conv(shape[0], 16), **blocks, bn1=nn.BatchNorm2d(widths[3]), relu=_relu())
    return _he_normal(body, "fan_out"), widths[3]


def resnet50(shape: Shape) -> Body:
    """The ImageNet net of torchvision, its own initialisation."""
    from torchvision import models  # only here: it doubles the time of the import, and the core runs without it

    net = models.resnet50()
    if shape[0] != 3:
        net.conv1 = nn.Conv2d(shape[0], 64, 7, 2, padding=3, bias=False)
    net.fc = nn.Identity()
    return net, 2048


_BODIES: dict[str, Callable[..., Body]] = {
    make.__name__: make for make in (small_cnn, mnist_small_cnn, lenet5, preact_resnet18, resnet18, wrn_34_10, resnet50)
}


class Normalize(nn.Module):
    """(x - mean) / std per channel; kept with the weights, so that a net is never run under another's normalisation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ConfigError(f"{name} has {len(values)} values for images of {channels} channels")
            self.register_buffer(name, torch.tensor(values).float().expand(channels).reshape(1, channels, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> (N, C, H, W); another number of channels is refused, not broadcast."""
        if x.ndim != 4 or x.shape[1] != self.mean.shape[1]:
            raise ValueError(f"the model takes (N, {self.mean.shape[1]}, H, W) images, not {tuple(x.shape)}")
        return (x - self.mean) / self.std


class CosineHead(nn.Module):
    """s (cos(feature, w_k) + b_k): SPAT's logits with the bias, hypersphere embedding (HE) without.

    The scale is part of the logits, for attacks must see the decision function that was trained. Weights are normalised
    in the forward pass only; SPAT's code overwrites them.
    """

    scale: Tensor

    def __init__(self, features: int, n_classes: int, scale: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(n_classes, features)))
        self.bias = nn.Parameter(torch.zeros(n_classes)) if bias else None
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K) in [-s, s] (shifted by s b)."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight), self.bias)


class Classifier(nn.Module):
    """Normalize + body + head: (N, C, H, W) in [0, 1] -> (N, K) logits; K + M with an augmented head, classes first."""

    def __init__(self, name: str, normalize: Normalize, body: nn.Module, head: nn.Module, n_classes: int) -> None:
        super().__init__()
        self.name, self.n_classes = name, n_classes
        self.normalize, self.body, self.head = normalize, body, head

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> (N, D), what the head sees."""
        return self.body(self.normalize(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> logits."""
        return self.head(self.features(x))


def _head(kind: str, features: int, n_classes: int, extra_outputs: int, scale: float | None) -> nn.Module:
    if (kind == "augmented") != (extra_outputs > 0):
        raise ConfigError(f"extra_outputs is at least 1 for the augmented head, else 0; not {extra_outputs} for {kind}")
    if kind in HEAD_SCALES:
        return CosineHead(features, n_classes, HEAD_SCALES[kind] if scale is None else scale, bias=kind == "cosine")
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
    """A new network on the CPU, the same for the same seed; the global random state stays as it was.

    image_shape is (C, H, W); mean and std as from `normalisation`; extra_outputs is M of the augmented head; scale is s
    of the cosine heads; final_bn belongs to preact_resnet18. Raises ConfigError for what an architecture does not have.
    """
    config = ModelConfig(config) if isinstance(config, str) else config
    if n_classes < 2 or len(image_shape) != 3 or min(image_shape) < 1:
        raise ConfigError(f"a model needs 2 classes or more and a (C, H, W) image, not {n_classes} and {image_shape}")
    if config.width is not None and config.width < 1:
        raise ConfigError(f"the width of a model is at least 1, not {config.width}")
    make = _BODIES[config.name]
    given = {"width": config.width, "depth": config.depth, "final_bn": final_bn}
    options = {name: value for name, value in given.items() if value is not None}
    known = list(inspect.signature(make).parameters)[1:]
    if stray := [name for name in options if name not in known]:
        raise ConfigError(f"{config.name} has no {stray[0]}; it has: {', '.join(known) or 'no options'}")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the accelerators
        body, features = make(tuple(image_shape), **options)
        head = _head(config.head, features, n_classes, extra_outputs, scale)
        if isinstance(head, nn.Linear):
            for part in _ZERO_AT_FIRST.get(config.name, ()):
                nn.init.zeros_(getattr(head, part))
        normalize = Normalize((0.0,) if mean is None else mean, (1.0,) if std is None else std, image_shape[0])
        return Classifier(config.name, normalize, body, head, n_classes)


def class_weight_norms(model: nn.Module) -> Tensor:
    """||w_k|| of the last layer, (K,). Raises ConfigError for heads that normalise their weights."""
    model = _plain(model)
    if isinstance(model.head, CosineHead):
        raise ConfigError("class weight norms mean nothing under a cosine or hypersphere head: it uses unit vectors")
    return cast(Tensor, model.head.weight).detach()[: model.n_classes].norm(dim=1)


def _plain(model: nn.Module) -> Classifier:
    """The classifier inside torch.compile and DistributedDataParallel."""
    while not isinstance(model, Classifier):
        model = cast(nn.Module, model._orig_mod if hasattr(model, "_orig_mod") else model.module)
    return model


_UNUSED = re.compile(r"^(sub_block1|layer_one|other_layers)\.")  # in TRADES' and FRL's WideResNet, outside its forward
_HEADS = re.compile(r"^(linear|linear2|fc|classifier\.fc3)\.")
_NOT_CARRIED = re.compile(r"^normalize\.|^head\.scale$|\.num_batches_tracked$")  # the last since torch 0.4.1 only
_NESTS = ("state_dict", "model_state_dict", "model", "net")  # where training scripts put the weights


class CheckpointError(RuntimeError):
    """A weights file that cannot be used: one line; the model keeps the weights that it had."""


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Parameters and buffers, normalisation included, as safetensors; the file appears whole or not at all."""
    path = Path(path)
    tensors = {name: tensor.contiguous() for name, tensor in _plain(model).state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(safetensors.torch.save(tensors))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """The inverse of `save_weights`, onto the model's device. Raises CheckpointError, and then changes nothing."""
    _fill(model, path, _read(Path(path)))


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Weights from safetensors or a foreign .pt, under our names or those of CFA, FRL, TRADES, AdverTorch, torchvision.

    The file may be a state_dict or hold one, and say `module.` before each name. What such files do not carry stays as
    built: normalisation and a head's scale. Raises CheckpointError, and then changes nothing.
    """
    foreign = {re.sub(r"^((module|_orig_mod)\.)+", "", name): tensor for name, tensor in _read(Path(path)).items()}
    tensors = {_our_name(name): tensor for name, tensor in foreign.items() if not _UNUSED.match(name)}
    kept = {name: tensor for name, tensor in _plain(model).state_dict().items() if _NOT_CARRIED.search(name)}
    _fill(model, path, kept | tensors)


def _our_name(name: str) -> str:
    if name.startswith(("normalize.", "body.", "head.")):
        return name
    name = _HEADS.sub("head.", name.replace(".convShortcut.", ".shortcut.0."))
    return name if name.startswith("head.") else f"body.{name}"


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; nothing in it is executed."""
    if not path.is_file():
        raise CheckpointError(f"there is no weights file {path}")
    try:
        safe = path.suffix == ".safetensors"
        found = safetensors.torch.load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise whatever a damaged file makes them stumble over
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read: it is damaged, or more than tensors is in it ({why})") from error
    while isinstance(found, dict) and (inner := [found[key] for key in _NESTS if isinstance(found.get(key), dict)]):
        found = inner[0]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds no state_dict, neither itself nor as {', '.join(_NESTS)}")
    return found


def _fill(model: nn.Module, path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
    """Loads all or nothing: names and shapes are compared first."""
    model = _plain(model)
    own = model.state_dict()
    reshaped = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    wrong = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "of another shape": [f"{name} {(*tensors[name].shape,)}, here {(*own[name].shape,)}" for name in reshaped],
    }
    told = [f"{len(names)} {what} ({_first(names)})" for what, names in wrong.items() if names]
    if told:
        hint = (
            "; final_bn of build decides on the last BatchNorm"
            if "body.bn.weight" in own.keys() ^ tensors.keys()
            else ""
        )
        raise CheckpointError(f"{path} does not fit this {model.name}: {', '.join(told)}{hint}")
    model.load_state_dict(tensors)


def _first(names: list[str], most: int = 3) -> str:
    return "; ".join(names[:most]) + " ..." * (len(names) > most)
