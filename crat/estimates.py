"""What a run will take, by arithmetic: no network is trained or timed for a plan, so that it is
there at once.

    seconds = passes x images x operations of a forward pass of one image / operations a second

A pass forward counts once, one back to the images or to the weights as much again. Right to a
factor of two on machines like those that the rates are of; an idle or another machine is not asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from crat.config import PROTOCOLS, ModelConfig, RunConfig
from crat.data.images import long_tail
from crat.data.registry import DATASETS
from crat.defenses import make_defense
from crat.nets import models
from crat.worker import usual_battery

LARGE = 1e8  # operations of a forward pass from which a network uses the machine well
# Operations a second of small and of large networks, by the device and the precision; of a CPU, a
# thread of it.
RATES = {
    # AMD EPYC with AVX512-BF16: the published runs; benchmarks/training.md
    ("cpu", "bfloat16"): (80e9, 300e9),
    ("cpu", "float32"): (45e9, 150e9),  # half of it: benchmarks/attacks.md
    # H100, batch 128, not compiled; of small networks not measured
    ("cuda", "bfloat16"): (2e12, 38e12),
    ("cuda", "float32"): (2e12, 34e12),
}
SAID = "an AMD EPYC's thread with AVX512-BF16, 0.08 to 0.3 TFLOP/s, or an H100, 2 to 38"
BARE = 0.7e9  # bytes of a process that has imported all this and done nothing


@dataclass(frozen=True)
class Cost:
    """Seconds an epoch, seconds of judging by the standard battery, and bytes held while it is
    done.
    """

    epoch: float
    judging: float
    memory: float


def estimate(config: RunConfig, device: torch.device, threads: int) -> Cost:
    """The cost of a run (`Run.config`: resolved) on a device, on a CPU by so many threads."""
    c, data = config.train, config.data
    spec = DATASETS[data.name]
    classes = len(data.kept_classes())
    network = _network(config.model, spec.image_shape, classes)
    share = classes / spec.n_classes
    train, test = round(spec.train_images * share), round(spec.test_images * share)
    images = train_images(config, train, classes)
    attacked = make_defense(c, classes).selects_on != "clean"
    step = 3 + (2 * (c.steps or 0) if attacked else 0)
    judged = classes * (data.valid_per_class + c.trace_per_class)
    passes = images * step + judged * (1 + 2 * PROTOCOLS[data.name].steps)
    judging = test * (1 + sum(1 + 2 * attack.steps for attack in usual_battery(data.name).values()))

    def seconds(passes: float, dtype: str) -> float:
        rate = RATES[device.type if device.type == "cpu" else "cuda", dtype][
            network.operations >= LARGE
        ]
        return passes * network.operations / (rate * (threads if device.type == "cpu" else 1))

    # the network, the judged one, gradients, momentum
    copies = 4 + (c.average != "none") + (c.awp > 0)
    kept = 4 * copies * network.weights + (train + test) * math.prod(spec.image_shape)
    # a CPU keeps what it casts from, too
    size = 2 if device.type != "cpu" and c.dtype == "bfloat16" else 4
    memory = (
        kept + c.batch_size * size * network.activations + (BARE if device.type == "cpu" else 0)
    )
    return Cost(seconds(passes, c.dtype), seconds(judging, "float32"), memory)


def train_images(config: RunConfig, available: int, classes: int) -> int:
    """How many images an epoch has, out of so many training images of the classes that are left."""
    data = config.data
    most = max(1, available // classes - data.valid_per_class)
    n_max = most if data.train_per_class is None else min(most, data.train_per_class)
    return sum(long_tail(n_max, classes, data.imbalance_ratio))


@dataclass(frozen=True)
class Network:
    """Of one image's forward pass: operations (two a multiplication) and outputs of all layers;
    and weights.
    """

    operations: int
    activations: int
    weights: int


@cache
def _network(config: ModelConfig, shape: tuple[int, int, int], classes: int) -> Network:
    """Counted while one image passes."""
    network = models.build(config, classes, shape).eval()
    operations = activations = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal operations, activations
        activations += output.numel()
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim > 1:
            operations += 2 * output.numel() * weight[0].numel()

    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, *shape))
    return Network(operations, activations, sum(p.numel() for p in network.parameters()))


def lacking(config: RunConfig) -> str:
    """Why the images of a run cannot be had here, in a line; "" where they are."""
    from crat.data import DataError, found, not_here

    try:
        return "" if found(config.data.name) else not_here(config.data.name)
    except DataError as error:
        return str(error)
