"""A search copy's passes as CUDA graphs: recorded once for a size of batch, replayed in each step.

At 128 images a GPU waits two thirds of an attack's time for Python to launch the next kernel. A
battery's batches shrink with every image that is broken, so a recording is made for a few sizes
only: n images take the first n places of the next larger one, and what the other places hold does
not matter, since in eval mode each image is its own. Whether it is, and whether a recording gives
what the copy gives, is tried before it is used.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor

from crat import graphs
from crat.attacks.looked import FOLDED, ROUNDED, Looked, SearchWarning, difference
from crat.attacks.objectives import CrossEntropy
from crat.text import first_line

# larger batches are bound by the work, not by its launches
SIZES = (32, 64, 128, 256, 512)
# passes of a size before it is recorded, which costs some ten of them
EAGER_PASSES = 3
# One pass at a time: the threads of a process share a recording's places. Never held while
# autograd works, whose own thread may wait for it.
_ALONE = threading.RLock()
_NUMBERS = count(1)  # of forward passes

Run = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> logits (N, K)


class Recordings:
    """The recordings of one frozen network in eval mode, by size of batch and kind of image.

    allowed: by how much a recording may differ from the network (crat.attacks.looked).
    A network whose weights are replaced, not written to, needs new ones.
    """

    def __init__(self, allowed: tuple[float, float]) -> None:
        self.allowed = allowed
        self.passes: Counter[Any] = Counter()
        self.made: dict[Any, Recording | None] = {}  # None: it cannot be recorded
        self.memory: Memory | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a network records anew."""
        return Recordings, (self.allowed,)

    def logits(self, run: Run, x: Tensor) -> Tensor | None:
        """The network's logits for x (n, C, H, W), by a replay; None where `run` has to be called.

        Their gradient by x is a replay, too. There is one where n is at most the largest of SIZES,
        from the pass number EAGER_PASSES + 1 of its size on, and outside another recording.
        """
        size = next((size for size in SIZES if len(x) <= size), None)
        if size is None or not len(x) or _is_recording(x.device):
            return None
        key = (size, x.shape[1:], x.dtype, x.device, _rounding())
        self.passes[key] += 1
        if self.passes[key] <= EAGER_PASSES:
            return None
        if key not in self.made:
            self.made[key] = self._recorded(run, x, size)
        recording = self.made[key]
        if recording is None:
            return None
        if x.requires_grad and torch.is_grad_enabled():
            return cast(Tensor, _Pass.apply(x, recording))
        return recording.forward(x)[0]

    def _recorded(self, run: Run, x: Tensor, size: int) -> Recording | None:
        """A recording that was tried; None, with a line that says why, where there can be none."""
        if self.memory is None:
            self.memory = Memory(graphs.shared_pool(x.device))
        try:
            recording = Recording(run, x.detach(), size, self.memory)
            why = self._difference(run, recording, x.detach())
        except Exception as error:  # whatever a network does that cannot be recorded
            why = f"fails ({first_line(error)})"
        if not why:
            return recording
        warnings.warn(
            f"the search at {size} images is not recorded: a recording {why}",
            SearchWarning,
            stacklevel=2,
        )
        return None

    def _difference(self, run: Run, recording: Recording, x: Tensor) -> str:
        """How a replay differs from the network on two sets of images, "" where it does not.

        Half of the places hold other images than the network is given.
        """
        others = x.flip(3)
        for images in (x, others):
            some = images[: max(1, min(len(x), recording.size // 2))]
            leaf = some.detach().clone().requires_grad_()
            with torch.enable_grad():
                logits = run(leaf)
            slope = _slope(logits.detach())
            (gradient,) = torch.autograd.grad(logits, leaf, slope)
            recording.fill(others.flip(0))
            answer, number = recording.forward(some)
            found = Looked(answer, recording.backward(some, slope, number))
            if why := difference(Looked(logits.detach(), gradient), found, self.allowed):
                return why
        return ""


class Memory:
    """The memory that the recordings of one network share, since one of them is needed at a time.

    What one pass leaves for the next (logits, gradients) has places of its own. The activations
    that a backward pass reads may lie where another recording has its passing numbers.
    number: of the forward pass whose activations are there.
    """

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.number = 0


class Recording:
    """One size's forward and backward pass on tensors that stay in their places.

    Raises what the recording raises; RuntimeError where the logits have no gradient.
    """

    def __init__(self, run: Run, x: Tensor, size: int, memory: Memory) -> None:
        self.size = size
        places = torch.zeros((size, *x.shape[1:]), dtype=x.dtype, device=x.device)
        self.images = places.contiguous(memory_format=torch.channels_last)
        self.fill(x)
        self.memory = memory
        # not kept: the network keeps its recordings
        forward = partial(self._forward, run)
        with graphs.aside(x.device):
            for _ in range(3):
                leaf, logits = forward()
                torch.autograd.grad(logits, leaf, torch.zeros_like(logits))
        self.slope = torch.zeros(logits.shape, dtype=logits.dtype, device=x.device)
        del leaf, logits
        # the leaf and the logits hold the activations that the backward pass reads
        self._replay_forward, (self.leaf, self.answer) = graphs.record(
            forward, x.device, pool=memory.pool
        )
        self._replay_backward, self.gradient = graphs.record(
            self._backward, x.device, pool=memory.pool
        )
        self.logits = self.answer.detach()

    def fill(self, x: Tensor) -> None:
        """Puts images (n, C, H, W) into all places, again and again."""
        chosen = torch.arange(self.size, device=x.device) % len(x)
        self.images.copy_(x[chosen])

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """Logits (n, K) of the images, and the number of this pass."""
        with _ALONE, torch.no_grad():
            number = next(_NUMBERS)
            self._pass(x, number)
            return self.logits[: len(x)].clone(), number

    def backward(self, x: Tensor, slope: Tensor, number: int) -> Tensor:
        """The gradient (n, C, H, W) by x of a forward pass, from the gradient by its logits.

        number: of that pass; where another one came since, of any recording in the same memory, it
            is done again.
        """
        with _ALONE, torch.no_grad():
            if number != self.memory.number:
                self._pass(x, number)
            self.slope[: len(x)].copy_(slope)
            self._replay_backward()
            return self.gradient[: len(x)].clone()

    def _pass(self, x: Tensor, number: int) -> None:
        self.images[: len(x)].copy_(x)
        self._replay_forward()
        self.memory.number = number

    def _forward(self, run: Run) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = self.images.detach().requires_grad_()
            return leaf, run(leaf)

    def _backward(self) -> Tensor:
        # kept, so that one forward pass may be followed by several of these
        (gradient,) = torch.autograd.grad(self.answer, self.leaf, self.slope, retain_graph=True)
        return gradient


class _Pass(torch.autograd.Function):
    """A recording as a function of the images, differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, recording: Recording) -> Tensor:
        logits, ctx.number = recording.forward(x)
        ctx.recording = recording
        ctx.save_for_backward(x)
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.recording.backward(x, slope, ctx.number), None


def allowed_of(dtype: str) -> tuple[float, float]:
    """How much a recording may round otherwise: a batch of another size is computed otherwise."""
    # on GPUs, float32 convolutions multiply numbers of 11 bits
    return ROUNDED if dtype == "bfloat16" else (10 * FOLDED[0], 2 * FOLDED[1])


def _slope(logits: Tensor) -> Tensor:
    """The gradient by the logits (N, K) of the log-odds of their largest."""
    leaf = logits.clone().requires_grad_()
    with torch.enable_grad():
        total = CrossEntropy()(leaf, leaf.detach().argmax(1)).sum()
    return torch.autograd.grad(total, leaf)[0]


def _is_recording(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _rounding() -> tuple[bool, bool]:
    """What a recording has chosen of the ways to round float32."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
