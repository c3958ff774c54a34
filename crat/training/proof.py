"""A faster way to do a training step proves itself against the plain one, on the machine itself.

Most machines that run this code were never seen. So the first steps of each shape of batch go both
ways from one state. Where they differ by more than rounding, or the faster way raises, the next way
is tried, in the end the plain one, and a line says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from crat import distributed, graphs
from crat.config import TrainConfig
from crat.text import first_line

STEPS = 2  # the second has other images, random numbers, rate and share of the average
# How far two ways may part, as a share of what a step changes. Rounding turns the sign of gradients
# near zero, and so whole steps of an attack: right ways parted by up to 0.12 in float32 and by 0.36
# in bfloat16 (folded or not, in first steps of a small CNN and a PreActResNet-18; 24 images: 0.54).
# A step that is left out, or made with the images before, parts by 1 or more.
ALLOWED = {"float32": 0.3, "bfloat16": 0.75}


@dataclass(frozen=True)
class Way:
    """A way to do the step. The plain way has nothing of it.

    recorded: replayed as a CUDA graph. folded: attacks in eval mode see a copy of the network with
    its BatchNorms folded. compiled: by torch.compile.
    """

    recorded: bool = False
    folded: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        return ", ".join(name for name, chosen in vars(self).items() if chosen) or "eager"


class Step(Protocol):
    """What a proof needs of a step (crat.training.step.Step)."""

    config: TrainConfig
    device: torch.device
    generator: torch.Generator
    pool: Any
    tell: Callable[[str], None]
    way: Way  # by which the work is done from now on
    ways: list[Way]  # that were not given up yet, the fastest first

    def changing(self) -> dict[str, list[Tensor]]:
        """Every tensor that a step changes, by what it is."""


class Snapshot:
    """The values of all that a step changes, random numbers included."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.parts = step.changing()
        self.values = {what: [t.detach().clone() for t in ts] for what, ts in self.parts.items()}
        self.drawn = step.generator.get_state()
        self.drawn_by_torch = _state_of_torch(step.device)

    def put_back(self) -> None:
        """Sets everything to the values again, in its place."""
        with torch.no_grad():
            for what, tensors in self.parts.items():
                for tensor, value in zip(tensors, self.values[what], strict=True):
                    tensor.copy_(value)
        self.step.generator.set_state(self.drawn)
        _set_state_of_torch(self.drawn_by_torch, self.step.device)


class Proved:
    """The step of one shape of batch by the fastest way that proves itself."""

    def __init__(self, step: Step, work: Callable[[], None]) -> None:
        self.step = step
        self.work = work
        self.way = Way()
        self.replay: Callable[[], None] | None = None
        self.to_prove = STEPS

    def __call__(self) -> None:
        """Does a step; the first ones go both ways."""
        if self.replay is not None and not self.to_prove:
            self.replay()
            return
        before = Snapshot(self.step)
        self.step.way = Way()
        with graphs.aside(self.step.device):
            self.work()
        plain = Snapshot(self.step)
        while self.replay is not None or self.step.ways:
            before.put_back()
            why = self._fault(before, plain)
            if distributed.agreed(not why, self.step.device):
                self.to_prove -= 1
                return
            self._give_up(why or "it failed in another process")
        plain.put_back()
        self.step.way = Way()
        self.replay = self.work
        self.to_prove = 0

    def _fault(self, before: Snapshot, plain: Snapshot) -> str:
        """Does the step by the faster way, recorded if need be; what is wrong with it, or ""."""
        try:
            if self.replay is None:
                self._record(before)
            assert self.replay is not None
            self.replay()
        except Exception as error:  # a driver, a compiler or a method's own code: whatever it is
            return first_line(error)
        return difference(before, plain, Snapshot(self.step), ALLOWED[self.step.config.dtype])

    def _record(self, before: Snapshot) -> None:
        step = self.step
        step.way = self.way = step.ways[0]
        with graphs.aside(step.device):
            self.work()  # compiles, loads libraries and chooses kernels
        before.put_back()
        self.replay, _ = graphs.record(self.work, step.device, [step.generator], step.pool)

    def _give_up(self, why: str) -> None:
        step = self.step
        self.replay = None
        self.to_prove = STEPS
        if self.way in step.ways:
            step.ways.remove(self.way)
        next_way = step.ways[0] if step.ways else Way()
        step.tell(f"the training step is {next_way}, not {self.way}: {why}")


def difference(before: Snapshot, plain: Snapshot, now: Snapshot, allowed: float) -> str:
    """How a step by another way differs from the plain one, "" where by no more than is allowed.

    allowed: a share of the length of what the plain step changed, for each kind of tensor. Whole
    numbers are equal.
    """
    if not torch.equal(plain.drawn, now.drawn):
        return "it draws other random numbers"
    for what, values in plain.values.items():
        triples = list(zip(before.values[what], values, now.values[what], strict=True))
        if any(not torch.equal(p, n) for _, p, n in triples if not p.is_floating_point()):
            return f"the {what} differ"
        off = changed = 0.0
        for was, expected, found in triples:
            unmade = expected.isnan() & found.isnan()  # sums that the method does not make
            off += _square(found, expected, unmade)
            changed += _square(expected, was, unmade)
        # not "off > ...": what is not a number is no proof
        if not off**0.5 <= allowed * changed**0.5:
            return f"the {what} differ by {(off / max(changed, 1e-30)) ** 0.5:.2g} of their change"
    return ""


def _square(a: Tensor, b: Tensor, left_out: Tensor) -> float:
    """The squared length of a - b without the places left out."""
    return float((a.double() - b.double()).masked_fill(left_out, 0.0).square().sum())


def _state_of_torch(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_state_of_torch(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
