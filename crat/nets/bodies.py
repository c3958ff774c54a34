"""The bodies of the networks: (N, C, H, W) -> penultimate features (N, D).

The modules are named as in the released code, so that published weights load. Each function gives
the module and D; its arguments are what the architecture can vary.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from crat.config import ConfigError

Shape = tuple[int, int, int]  # channels, height, width
Body = tuple[nn.Module, int]  # a module (N, C, H, W) -> (N, D), and D


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
    """The named layers, then the mean over all places: the released pooling at 32 pixels."""
    return nn.Sequential(OrderedDict(layers, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; a convolved shortcut starts behind the first ReLU (He et al. 2016b)."""

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
        self.shortcut = nn.Sequential()
        if not same:
            self.shortcut.append(_conv(inside, outside, stride, kernel=1))
            self.shortcut.append(nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inside, H, W) -> (N, outside, H / stride, W / stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def _stage(
    block: type[nn.Module], inside: int, outside: int, stride: int, blocks: int = 2
) -> nn.Sequential:
    stage = nn.Sequential(block(inside, outside, stride))
    for _ in range(blocks - 1):
        stage.append(block(outside, outside, 1))
    return stage


def _stages(block: type[nn.Module], width: int) -> dict[str, nn.Module]:
    """The four stages of an 18-layer net: width times 1, 2, 4, 8 channels, halved thrice."""
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    stages: dict[str, nn.Module] = {}
    for i in range(1, 5):
        stages[f"layer{i}"] = _stage(block, widths[i - 1], widths[i], stride=1 if i == 1 else 2)
    return stages


def small_cnn(shape: Shape, width: int = 16) -> Body:
    """A net of ours for laptops: conv-BN-ReLU four times, flattened.

    Channels: width, 2 width (halved), 2 width, 4 width (halved). 3.8 million multiply-adds at
    1 x 28 x 28, 5.2 at 3 x 32 x 32. A mean over the places instead of flattening costs 7 points of
    robust accuracy after a short adversarial training on Fashion-MNIST.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inside = shape[0]
    plan = ((width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2))
    for i, (outside, stride) in enumerate(plan, start=1):
        layers[f"conv{i}"] = _conv(inside, outside, stride)
        layers[f"bn{i}"] = nn.BatchNorm2d(outside)
        layers[f"relu{i}"] = _relu()
        inside = outside
    layers["flatten"] = nn.Flatten()
    height, wide = (math.ceil(size / 4) for size in shape[1:])
    return nn.Sequential(layers), inside * height * wide


def mnist_small_cnn(shape: Shape) -> Body:
    """TRADES' net for MNIST (models/small_cnn.py).

    conv 32, 32, pool, 64, 64, pool, then 200, 200; dropout 0.5.
    """
    places = [((size - 4) // 2 - 4) // 2 for size in shape[1:]]
    if min(places) < 1:
        size = f"{shape[1]} x {shape[2]}"
        raise ConfigError(f"mnist_small_cnn needs images of at least 16 x 16 pixels, not {size}")
    plan = ((shape[0], 32), (32, 32), (32, 64), (64, 64))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inside, outside) in enumerate(plan, start=1):
        layers[f"conv{i}"] = nn.Conv2d(inside, outside, 3)
        layers[f"relu{i}"] = _relu()
        if i % 2 == 0:
            layers[f"maxpool{i // 2}"] = nn.MaxPool2d(2)
    flat = 64 * places[0] * places[1]
    dense: OrderedDict[str, nn.Module] = OrderedDict()
    dense["fc1"] = nn.Linear(flat, 200)
    dense["relu1"] = _relu()
    dense["drop"] = nn.Dropout(0.5)
    dense["fc2"] = nn.Linear(200, 200)
    dense["relu2"] = _relu()
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["feature_extractor"] = nn.Sequential(layers)
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = nn.Sequential(dense)
    return _he_normal(nn.Sequential(parts), "fan_in"), 200


def lenet5(shape: Shape) -> Body:
    """AdverTorch's net for MNIST: two 3x3 convolutions (32, 64), each pooled by 2, then 200."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inside, outside) in enumerate(((shape[0], 32), (32, 64)), start=1):
        parts[f"conv{i}"] = nn.Conv2d(inside, outside, 3, padding=1)
        parts[f"relu{i}"] = _relu()
        parts[f"maxpool{i}"] = nn.MaxPool2d(2)
    flat = 64 * (shape[1] // 4) * (shape[2] // 4)
    parts |= {"flatten": nn.Flatten(), "linear1": nn.Linear(flat, 200), "relu3": _relu()}
    return nn.Sequential(parts), 200


def preact_resnet18(shape: Shape, width: int = 64, final_bn: bool = True) -> Body:
    """CFA's net; with `final_bn=False` FRL's, which pools without the last BN and ReLU."""
    last = {"bn": nn.BatchNorm2d(8 * width), "relu": _relu()} if final_bn else {}
    return _pooled(conv1=_conv(shape[0], width), **_stages(PreActBlock, width), **last), 8 * width


def resnet18(shape: Shape, width: int = 64) -> Body:
    """The ResNet-18 for CIFAR, with a 3x3 stem without pooling."""
    stem = {"conv1": _conv(shape[0], width), "bn1": nn.BatchNorm2d(width), "relu1": _relu()}
    return _pooled(**stem, **_stages(BasicBlock, width)), 8 * width


def wrn_34_10(shape: Shape, width: int = 10, depth: int = 34) -> Body:
    """TRADES' WideResNet (models/wideresnet.py): 16 channels, then 16, 32, 64 times `width`.

    depth is 6 n + 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ConfigError(
            f"the depth of a WideResNet is 6 n + 4 (10, 16, 22, 28, 34 ...), not {depth}"
        )
    widths = [16, 16 * width, 32 * width, 64 * width]
    blocks: dict[str, nn.Module] = {}
    for i in (1, 2, 3):
        stride = 1 if i == 1 else 2
        stage = _stage(PreActBlock, widths[i - 1], widths[i], stride, blocks=(depth - 4) // 6)
        blocks[f"block{i}"] = nn.Sequential(OrderedDict(layer=stage))
    last = {"bn1": nn.BatchNorm2d(widths[3]), "relu": _relu()}
    body = _pooled(conv1=_conv(shape[0], 16), **blocks, **last)
    return _he_normal(body, "fan_out"), widths[3]


def resnet50(shape: Shape) -> Body:
    """The ImageNet net of torchvision, with torchvision's initialisation."""
    # only here: it doubles the time of the import, and the core runs without it
    from torchvision import models

    net = models.resnet50()
    if shape[0] != 3:
        net.conv1 = nn.Conv2d(shape[0], 64, 7, 2, padding=3, bias=False)
    net.fc = nn.Identity()
    return net, 2048


BODIES: dict[str, Callable[..., Body]] = {
    make.__name__: make
    for make in (small_cnn, mnist_small_cnn, lenet5, preact_resnet18, resnet18, wrn_34_10, resnet50)
}
CAME = dict(BODIES)  # as crat has them, whatever a session puts in their place
