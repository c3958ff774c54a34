"""What a run will take on this machine, measured before it is trained: time of an epoch, time of judging, memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from crat.attacks.judge import as_images, attacked_logits
from crat.config import RunConfig
from crat.run import Run
from crat.train import Trainer
from crat.verdicts import BATCH
from crat.worker import usual_battery

BARE = psutil.Process().memory_info().rss  # a process that has imported all this and done nothing


@dataclass(frozen=True)
class Cost:
    """Seconds an epoch, seconds of judging by the standard battery, and bytes held while it is done."""

    epoch: float
    judging: float
    memory: float


def alike(config: RunConfig) -> RunConfig:
    """Runs of one cost: they differ in seeds, in classes left out, and in numbers that a method multiplies by."""
    chosen = {name: value for name, value in config.train.options if not isinstance(value, float)}
    return config.but(seed=0, drop_classes=(), epochs=1, eps_warmup=0, average_start=None, beta=6.0, options=chosen)


def measure(run: Run, device: torch.device) -> Cost:
    """By one step and one attack on validation images, in a batch as small as will tell.

    Memory: on a CPU that of the process, on a GPU that of the tensors. It counts weights, gradients, momentum,
    averages, images and what the backward pass keeps; what a convolution borrows meanwhile comes on top.
    Raises DataError and StoreError.
    """
    trainer = Trainer(run, device)
    images, c = trainer.images, trainer.config
    generator = torch.Generator(device).manual_seed(0)
    trainer.judged.eval()

    def step(n: int) -> None:
        loss, _ = trainer.step(as_images(images.x_train[:n]), images.y_train[:n], 0.0, 1.0, generator)
        loss.item()  # waits for the device

    def judge(n: int) -> None:
        x, y = images.x_valid[:n], images.y_valid[:n]
        attacked_logits(trainer.judged, x, y, trainer.valid_attack, seed=0, dtype=c.dtype).sum().item()

    most = min(c.batch_size, len(images.x_valid))
    stepping, judging = _seconds_an_image(step, most), _seconds_an_image(judge, most)
    battery = usual_battery(run.config.data.name).values()
    attack_steps = sum(getattr(attack, "steps", 1) for attack in battery) / trainer.valid_attack.steps
    judged = len(images.x_valid) + c.trace_per_class * images.n_classes
    epoch = len(images.x_train) * stepping + judged * judging
    batch = max(c.batch_size, BATCH.get(device.type, 500))
    memory = _kept(trainer) + batch * _saved_an_image(step, min(8, most // 2)) + (BARE if device.type == "cpu" else 0)
    return Cost(epoch, len(images.x_test) * attack_steps * judging, memory)


def _seconds_an_image(work: Callable[[int], None], most: int) -> float:
    """The work of n images is timed for growing n until it takes long enough to be told from noise."""
    n = min(4, most)
    work(n)  # sets up
    while True:
        began = time.perf_counter()
        work(n)
        spent = time.perf_counter() - began
        if spent > 0.2 or n == most:
            return spent / n
        n = min(4 * n, most)


def _kept(trainer: Trainer) -> int:
    """Bytes that stay from step to step."""
    networks: list[nn.Module] = [trainer.model, trainer.judged]
    tensors = [t for network in networks for t in network.state_dict().values()]
    parameters = list(trainer.model.parameters())
    tensors += parameters + parameters  # gradients and momentum
    tensors += trainer.average.state.values() if trainer.average else []
    tensors += parameters if trainer.config.awp else []
    return sum(map(_bytes, [*tensors, *(t for t in vars(trainer.images).values() if isinstance(t, Tensor))]))


def _saved_an_image(work: Callable[[int], None], n: int) -> float:
    """Bytes that the backward pass keeps for one image more."""
    return max(0.0, (_peak_saved(work, 2 * n) - _peak_saved(work, n)) / n)


def _peak_saved(work: Callable[[int], None], n: int) -> int:
    """The largest sum of bytes that autograd holds at one time while n images are worked on, each storage once."""
    holders: Counter[int] = Counter()
    now = peak = 0

    class Held:
        def __init__(self, tensor: Tensor):
            nonlocal now, peak
            self.tensor, self.place = tensor, tensor.untyped_storage().data_ptr()
            now += 0 if holders[self.place] else _bytes(tensor)
            peak = max(peak, now)
            holders[self.place] += 1

        def __del__(self) -> None:
            nonlocal now
            holders[self.place] -= 1
            now -= 0 if holders[self.place] else _bytes(self.tensor)

    def unpack(held: Any) -> Tensor:
        return held.tensor

    with torch.autograd.graph.saved_tensors_hooks(Held, unpack):
        work(n)
    return peak


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
