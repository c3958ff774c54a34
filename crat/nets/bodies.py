"""Bodies of the networks: (N, C, H, W) to the penultimate features (N, D), the modules named as in the released code.

So published weights load. Each function gives the module and D; its arguments are what the architecture can vary.
"""

from __future__ import annotations

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
    """Ours, for laptops: conv-BN-ReLU at width, 2 width (halved), 2 width, 4 width (halved) channels, flattened.

    3.8 million multiply-adds at 1 x 28 x 28, 5.2 at 3 x 32 x 32. A mean over the places instead of flattening costs
    7 points of robust accuracy after a short adversarial training on Fashion-MNIST.
    """
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


BODIES: dict[str, Callable[..., Body]] = {
    make.__name__: make for make in (small_cnn, mnist_small_cnn, lenet5, preact_resnet18, resnet18, wrn_34_10, resnet50)
}
