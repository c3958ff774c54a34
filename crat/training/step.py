"""One update of a training: attack, loss, gradients, optimizer, average and counts.

    step = Step(...);  step.begin(seed, scale);  step(x, y, rate) ...;  step.counted()

Everything that changes from step to step is a tensor that stays in its place. On a GPU the update
is therefore recorded once as a CUDA graph and replayed (crat.graphs); on a CPU the same function
runs as it is. The recording proves itself on its first steps (crat.training.proof).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from crat import distributed, graphs
from crat.attacks.noise import Share
from crat.config import TrainConfig
from crat.defenses import ClassStats
from crat.device import autocast, compiled, finest
from crat.nets.folding import Folded
from crat.text import first_line
from crat.training.averaging import EMA
from crat.training.awp import perturbed
from crat.training.crafting import Casts, fault_of_fold, foldable
from crat.training.proof import Proved, Way
from crat.training.state import TrainState

NEVER = 2**62  # of `first_bad`: no loss was bad
# floating point operations of a training from which torch.compile earns the 40 s that it takes: it
# made a step at batch 512 a quarter faster, and an H100 did 150 to 200 TFLOP/s
WORTH_COMPILING = 3e16


@dataclass
class Batch:
    """A batch in its place: x (B, C, H, W), y (B,), and this process's part of it."""

    x: Tensor
    y: Tensor
    part: distributed.Part | None


class Step:
    """The update of a training's state.

    n_classes: K, of the class-wise sums.
    tell: takes a line where a faster way is given up.
    operations: floating point operations of the whole training, which decide on torch.compile
        (WORTH_COMPILING).
    """

    def __init__(
        self,
        state: TrainState,
        config: TrainConfig,
        device: torch.device,
        n_classes: int,
        *,
        tell: Callable[[str], None] = print,
        operations: float = 0.0,
    ) -> None:
        self.state = state
        self.config = config
        self.device = device
        self.tell = tell
        self.generator = torch.Generator(device)
        exact = torch.float32 if device.type == "cuda" else finest(device)
        self.scale = torch.ones((), device=device, dtype=exact)  # of eps and step size
        self.share = torch.ones((), device=device, dtype=exact)  # of the new weights in the average
        self.first_bad = torch.full((), NEVER, device=device)
        self.done = torch.zeros((), device=device, dtype=torch.long)  # steps of this epoch
        self.totals = ClassStats.zeros(n_classes, next(state.model.parameters()).detach())
        self.kept: dict[str, Tensor] = {}  # the method's state, in its places
        self.casts = Casts(state.model) if config.dtype == "bfloat16" else None
        self.folded: Folded | None = None
        self.compiled: dict[nn.Module, nn.Module] = {}
        self.batches: dict[tuple[int, ...], Batch] = {}
        # how the steps of a shape are done, with and without moved weights
        self.steps: dict[tuple[tuple[int, ...], bool], Callable[[], None]] = {}
        self.pool = graphs.shared_pool(device)
        self._begin_momentum()
        self.way = Way()
        self.ways = self._ways(operations)

    def _begin_momentum(self) -> None:
        """Gives the momentum its places; from zeros, its first step is the gradient itself."""
        for group in self.state.optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                kept = self.state.optimizer.state[parameter]
                if kept.get("momentum_buffer") is None:
                    kept["momentum_buffer"] = torch.zeros_like(parameter)

    def _ways(self, operations: float) -> list[Way]:
        """The faster ways, the fastest first."""
        if not graphs.can_record(self.device):
            return []
        if self.state.defense.waits:
            method = self.config.defense
            self.tell(f"the training step of {method} is eager: {self.state.defense.waits}")
            return []
        folded = self.state.defense.attack.batch_norm == "eval" and self._fold()
        ways = [Way(recorded=True, folded=folded)]
        if operations >= WORTH_COMPILING:
            ways.insert(0, Way(recorded=True, folded=folded, compiled=True))
        if folded:
            ways.append(Way(recorded=True))
        return ways

    def _fold(self) -> bool:
        try:
            self.folded = foldable(self.state.model, self.config.dtype)
        except Exception as error:  # tracing runs the model's own code: it raises what it likes
            self.tell(f"BatchNorm is not folded for the attack: {first_line(error)}")
        return self.folded is not None

    def begin(self, seed: int, scale: float) -> None:
        """Begins an epoch: its random numbers, its share of eps and step size, its counts."""
        self.generator.manual_seed(seed)
        self.scale.fill_(scale)
        self.first_bad.fill_(NEVER)
        self.done.zero_()
        torch._foreach_zero_(list(vars(self.totals).values()))
        self._keep_in_place()

    @property
    def done_by(self) -> str:
        """The way of the steps, such as "recorded, folded"."""
        return str(self.ways[0]) if self.ways else "eager"

    def counted(self) -> ClassStats:
        """The class-wise sums of the epoch so far, of this process's images."""
        return self.totals.times(1)

    def __call__(self, x: Tensor, y: Tensor, rate: float) -> None:
        """Updates the weights by a batch: x (B, C, H, W) in [0, 1], y (B,) int64.

        A method that uses a batch for several updates makes them all here.

        rate: the learning rate. Nothing waits for the device, but in the first steps of a shape.
        """
        batch = self._in_place(x, y)
        self.state.optimizer.param_groups[0]["lr"].fill_(rate)
        shape = tuple(x.shape), self._moves_weights()
        for _ in range(self.state.defense.updates_a_batch):
            average = self._average()
            if average:
                average.begin(self.state.model)
                self.share.fill_(average.advance())
            if shape not in self.steps:
                self.steps[shape] = self._prepared(batch)
            self.steps[shape]()

    def _in_place(self, x: Tensor, y: Tensor) -> Batch:
        shape = tuple(x.shape)
        if shape not in self.batches:
            part = distributed.share(len(x), self.device) if distributed.world() > 1 else None
            place = torch.empty_like(x.contiguous(memory_format=torch.channels_last))
            self.batches[shape] = Batch(place, torch.empty_like(y), part)
        batch = self.batches[shape]
        batch.x.copy_(x)
        batch.y.copy_(y)
        return batch

    def _average(self) -> EMA | None:
        """The average over updates, where there is one."""
        return self.state.average if self.config.average == "ema_update" else None

    def _moves_weights(self) -> bool:
        """Whether adversarial weight perturbation is on: wanted, and behind its warm-up."""
        return self.config.awp > 0 and self.state.epochs_done >= self.config.awp_warmup

    def _work(self, batch: Batch) -> None:
        """All of the step, on the tensors in their places."""
        if batch.part is None:
            loss, stats = self._update(batch.x, batch.y, self.generator)
        else:
            own = batch.part.own
            draws = Share(self.generator, own, batch.part.total)
            with distributed.sharing(batch.part):
                loss, stats = self._update(batch.x[own], batch.y[own], draws, batch.part.weight)
            stats = stats if batch.part.weight else stats.times(0)
        self._count(loss, stats)
        self._keep_in_place()

    def _update(
        self, x: Tensor, y: Tensor, draws: torch.Generator | Share, weight: float = 1.0
    ) -> tuple[Tensor, ClassStats]:
        """One update from a share of the batch; its mean loss has `weight` among the processes."""
        defense = self.state.defense
        network = self._by_the_way(self.state.model)
        x_adv = self._crafted(x, y, draws)
        with self._weights_moved(x, x_adv, y, weight):
            with autocast(self.device, self.config.dtype):
                loss, stats = defense.loss(network, x, x_adv, y)
            self.state.optimizer.zero_grad(set_to_none=True)
            (loss * weight if weight != 1 else loss).backward()
            distributed.average_gradients(self.state.model)
            self.state.optimizer.step()
        defense.after_step(network, x, y)
        average = self._average()
        if average:
            average.mix(self.state.model, self.share)
        return loss.detach(), stats

    def _crafted(self, x: Tensor, y: Tensor, draws: torch.Generator | Share) -> Tensor:
        network = self._by_the_way(self.state.model)
        if self.way.folded:
            assert self.folded is not None
            self.folded.refresh()
            network = self._by_the_way(self.folded)
        if self.casts:
            self.casts.refresh()
        in_place = self.casts.in_place() if self.casts else nullcontext()
        with in_place, autocast(self.device, self.config.dtype):
            return self.state.defense.craft(network, x, y, scale=self.scale, generator=draws)

    def _by_the_way(self, network: nn.Module) -> nn.Module:
        """The network, under torch.compile where the present way has it."""
        if not self.way.compiled:
            return network
        if network not in self.compiled:
            self.compiled[network] = compiled(network)
        return self.compiled[network]

    def _weights_moved(
        self, x: Tensor, x_adv: Tensor, y: Tensor, weight: float
    ) -> AbstractContextManager[None]:
        """Adversarial weight perturbation, where it is on."""
        if not self._moves_weights():
            return nullcontext()

        def loss() -> Tensor:
            with autocast(self.device, self.config.dtype):
                return weight * self.state.defense.loss(self.state.model, x, x_adv, y)[0]

        return perturbed(self.state.model, self.config.awp, loss)

    def _count(self, loss: Tensor, stats: ClassStats) -> None:
        """Adds the batch's sums, and notes the first loss that is not finite."""
        sums = list(vars(stats).values())
        torch._foreach_add_(list(vars(self.totals).values()), sums)
        bad = ~loss.isfinite() & (self.first_bad == NEVER)
        self.first_bad.copy_(torch.where(bad, self.done, self.first_bad))
        self.done.add_(1)

    def _keep_in_place(self) -> None:
        """Copies what the method put into its state to where the state lay before.

        A new name, or another shape, makes all recordings void.
        """
        state = self.state.defense.state_dict()
        if {n: (v.shape, v.dtype) for n, v in state.items()} != {
            n: (v.shape, v.dtype) for n, v in self.kept.items()
        }:
            self.steps.clear()
            self.kept = dict(state)
        for name, value in self.kept.items():
            if state[name] is not value:
                value.copy_(state[name])
        self.state.defense.load_state_dict(self.kept)

    def _prepared(self, batch: Batch) -> Callable[[], None]:
        """How the steps of a shape are done from now on; nothing is done yet."""
        work = partial(self._work, batch)
        if not self.ways:
            return work
        if self.folded is not None:
            self._prove_fold(batch.x)
        return Proved(self, work)

    def _prove_fold(self, x: Tensor) -> None:
        """Gives the fold up where it changes the network's answer."""
        assert self.folded is not None
        self.folded.refresh()
        why = fault_of_fold(self.folded, x, self.config.dtype)
        if not distributed.agreed(not why, self.device):
            self.tell(f"BatchNorm is not folded for the attack: {why or 'not in another process'}")
            self.folded = None
            self.ways = list(dict.fromkeys(replace(way, folded=False) for way in self.ways))

    def changing(self) -> dict[str, list[Tensor]]:
        """Every tensor that a step changes, by what it is."""
        momentum = [kept["momentum_buffer"] for kept in self.state.optimizer.state.values() if kept]
        average = self.state.average.state if self.state.average else {}
        return {
            "weights": list(self.state.model.parameters()),
            "statistics of BatchNorm": list(self.state.model.buffers()),
            "momentum": momentum,
            "average": list(average.values()),
            "state of the method": list(self.kept.values()),
            "class-wise sums": list(vars(self.totals).values()),
            "counted steps": [self.done, self.first_bad],
        }


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """The optimizer of a step, whose rate is a tensor.

    On a CUDA GPU the fused form, which takes no number from the tensor, and so does not wait.
    Elsewhere the rate is as fine as the device has it: float64 on a CPU loses no digit of it.
    """
    device = next(model.parameters()).device
    records = graphs.can_record(device)
    dtype = torch.float32 if records else finest(device)
    return torch.optim.SGD(
        model.parameters(),
        lr=torch.tensor(config.lr, device=device, dtype=dtype),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=records or None,
    )
