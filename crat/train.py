"""Training: the only file that knows epochs. `train(config) -> Run`, never twice, resumable at every epoch.

All randomness of an epoch comes from (seed, epoch), so a resumed run draws what it would have drawn.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crat import data, distributed, store
from crat.attacks import PGD, Decision
from crat.attacks.judge import quick_logits
from crat.attacks.noise import Share
from crat.averaging import make_average, make_gate
from crat.awp import perturbed
from crat.checkpoint import restore, save, write_card
from crat.config import PROTOCOLS, ConfigError, RunConfig, number
from crat.defenses import ClassStats, Task, make_defense
from crat.defenses.stats import judged_stats
from crat.device import autocast, compiled, pick_device
from crat.kept import halved
from crat.lease import Lease, held
from crat.progress import Progress, dated, tell
from crat.run import Run, build_model, first_per_class, history_rows, unread
from crat.schedules import learning_rate
from crat.store import Store
from crat.whole_batch import see_the_whole_batch

COLLAPSED = 0.9  # share of validation images that one class may draw before the epoch is called collapsed (K > 2)


class TrainingError(RuntimeError):
    """A training that cannot go on: one line with the epoch, the batch and the last good checkpoint."""


def train(
    config: RunConfig,
    *,
    device: str | torch.device | None = None,
    progress: str | None = None,
    max_minutes: float | None = None,
    compile: bool = False,
    store: Store | None = None,
) -> Run:
    """Trains what the config says and returns its Run; a finished one is returned at once, an unfinished one resumed.

    One that is returned says so in a line with its date. A method of yours is told from others by its code
    (crat.identity), so an edited one is trained anew.
    While another worker trains the same run, this one waits for it (crat.lease).
    progress: "bar" (terminal), "line" (one line an epoch, notebooks), "none"; None chooses.
    max_minutes: stop at the end of the epoch in which they have passed (the Run is then unfinished).
    compile: torch.compile the network (worth its start-up time on long runs).
    store: where runs are (None: the usual one).
    Raises ConfigError, data.DataError, store.StoreError, and TrainingError where the loss is not finite.
    """
    if max_minutes is not None and not max_minutes >= 0:
        raise ConfigError(f"max_minutes must be at least 0, not {max_minutes!r}")
    where = distributed.join(pick_device(device))
    run = Run.of(config, where, store)
    style = "none" if distributed.rank() else progress
    if not run.trained_here:
        tell(style, *unread(run.config))
        distributed.wait()
        forked = torch.random.fork_rng(devices=[where] if where.type == "cuda" else [])
        with held(run.folder, where) as lease, forked:
            if not distributed.decided_by_first(run.trained_here, where):  # another may have done it meanwhile
                trainer = Trainer(run, where, compile=compile, lease=lease)
                with distributed.failing_alone(but=TrainingError):  # of which all ranks know
                    trainer.fit(Progress(style, run.name), max_minutes)
                return run
    tell(style, f"kept: {run.name}, trained {dated(run.folder / 'card.json')}")
    return run


class Trainer:
    """One training in progress: what changes from epoch to epoch, and how it is saved."""

    def __init__(self, run: Run, device: torch.device, *, compile: bool = False, lease: Lease | None = None):
        self.run, self.config, self.device, self.lease = run.here, run.config.train, device, lease
        self.images = data.load(run.config.data).to(device)
        self.augment = data.resolve_augment(run.config.data)
        self.model = build_model(run.config, self.images).to(device).to(memory_format=torch.channels_last)
        if distributed.world() > 1:
            see_the_whole_batch(self.model, compiled=compile)
        self.network: nn.Module = compiled(self.model) if compile else self.model
        c, counts = self.config, self.images.y_train.bincount(minlength=self.images.n_classes)
        self.defense = make_defense(c, Task(counts, self.images.image_shape, c.epochs)).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), c.lr, c.momentum, weight_decay=c.weight_decay)
        self.average, self.gate = make_average(c), make_gate(c)
        self.judged = build_model(run.config, self.images).to(device).to(memory_format=torch.channels_last)
        protocol = PROTOCOLS[run.config.data.name]
        self.valid_attack = PGD(number(c.eps or 0), number(protocol.step_size), protocol.steps)
        self.done, self.seconds = 0, 0.0
        self.best: dict[str, Any] = {}
        self.collapsed: list[int] = []
        self.rows: list[dict[str, Any]] = []
        self.trace: dict[str, list[np.ndarray]] = defaultdict(list)
        if (run.folder / "checkpoint.safetensors").exists():
            restore(self)

    @property
    def current(self) -> dict[str, Tensor]:
        """The weights that are judged and kept: the average, once there is one."""
        return self.average.state if self.average and self.average.state else self.model.state_dict()

    def fit(self, progress: Progress, max_minutes: float | None) -> None:
        """All epochs that are missing."""
        began = time.monotonic()
        if distributed.rank() == 0:
            store.remove_half_written(self.run.folder)
            if self.done >= self.config.epochs:  # killed between the last checkpoint and its card
                write_card(self)
        progress.start(self.config.epochs, self.done, len(self.images.x_train))
        for epoch in range(self.done, self.config.epochs):
            epoch_began = time.monotonic()
            stats = self.train_epoch(epoch, progress)
            self.finish_epoch(epoch, stats, time.monotonic() - epoch_began, progress)
            late = max_minutes is not None and time.monotonic() - began > 60 * max_minutes
            if distributed.decided_by_first(late, self.device):
                break
        progress.close()

    def train_epoch(self, epoch: int, progress: Progress) -> ClassStats:
        """One pass over the training images; returns the class-wise sums. No host synchronisation within a step."""
        torch.manual_seed(store.seed_for(self.config.seed, epoch, "dropout"))  # inside fork_rng
        generator = torch.Generator(self.device).manual_seed(store.seed_for(self.config.seed, epoch))
        batches = data.Batches(
            self.images.x_train, self.images.y_train, self.config.batch_size, generator=generator,
            augment=self.augment, padding=self.run.config.data.padding, class_probs=self.defense.class_probs(),
        )  # fmt: skip
        none = len(batches)
        first_bad, total = torch.full((), none, device=self.device), None
        self.network.train()
        for i, (x, y) in enumerate(batches):
            x = x.contiguous(memory_format=torch.channels_last)
            rate = learning_rate(self.config, epoch * len(batches) + i, len(batches))
            loss, stats = self.step(x, y, rate, self.eps_scale(epoch), generator)
            total = stats if total is None else total + stats
            first_bad = torch.where((first_bad == none) & ~loss.isfinite(), i, first_bad)
            # about once a second, so the check costs nothing; several ranks must fail together, behind the epoch
            if progress.step(len(x)) and distributed.world() == 1:
                self._refuse_non_finite(epoch, first_bad, len(batches))
        self._refuse_non_finite(epoch, distributed.smallest(first_bad), len(batches))
        assert total is not None
        return ClassStats(*distributed.sum_over_ranks(list(vars(total).values())))

    def eps_scale(self, epoch: int) -> float:
        """Share of eps and step size that an epoch trains with."""
        return min(1.0, (epoch + 1) / (self.config.eps_warmup + 1))

    def step(
        self, x: Tensor, y: Tensor, rate: float, scale: float, generator: torch.Generator
    ) -> tuple[Tensor, ClassStats]:
        """Craft, loss, update; of several processes each takes its share of the batch."""
        if distributed.world() == 1:
            return self._update(x, y, rate, scale, generator)
        part = distributed.share(len(x), self.device)
        draws = Share(generator, part.own, part.total)
        with distributed.sharing(part):
            loss, stats = self._update(x[part.own], y[part.own], rate, scale, draws, part.weight)
        return loss, stats if part.weight else stats.times(0)

    def _update(
        self, x: Tensor, y: Tensor, rate: float, scale: float, generator: torch.Generator | Share, weight: float = 1.0
    ) -> tuple[Tensor, ClassStats]:
        """`weight` of the mean loss in the average over processes."""
        with autocast(self.device, self.config.dtype):
            x_adv = self.defense.craft(self.network, x, y, scale=scale, generator=generator)
        with self._weights_moved(x, x_adv, y, weight):
            with autocast(self.device, self.config.dtype):
                loss, stats = self.defense.loss(self.network, x, x_adv, y)
            self.optimizer.zero_grad(set_to_none=True)
            (loss * weight if weight != 1 else loss).backward()
            distributed.average_gradients(self.model)
            self.optimizer.param_groups[0]["lr"] = rate
            self.optimizer.step()
        self.defense.after_step(self.network, x, y)
        if self.average and self.config.average == "ema_update":
            self.average.update(self.model)
        return loss.detach(), stats

    def _weights_moved(self, x: Tensor, x_adv: Tensor, y: Tensor, weight: float) -> AbstractContextManager[None]:
        """Adversarial weight perturbation around the update, where the config asks for it and warm-up is over."""
        if not self.config.awp or self.done < self.config.awp_warmup:
            return nullcontext()

        def loss() -> Tensor:
            with autocast(self.device, self.config.dtype):
                return weight * self.defense.loss(self.model, x, x_adv, y)[0]

        return perturbed(self.model, self.config.awp, loss)

    def _refuse_non_finite(self, epoch: int, first_bad: Tensor, n_batches: int) -> None:
        batch = int(first_bad)
        if batch == n_batches:
            return
        kept = (
            f"the checkpoint after epoch {self.done} is kept in {self.run.folder}" if self.done else "no checkpoint yet"
        )
        raise TrainingError(
            f"the loss is not finite in epoch {epoch + 1}, batch {batch + 1} of {n_batches}; {kept}; "
            "a smaller --lr, a longer --eps-warmup or --dtype float32 may help"
        )

    def finish_epoch(self, epoch: int, stats: ClassStats, seconds: float, progress: Progress) -> None:
        """Averages, validates, notes, chooses the best, and writes all of it."""
        images = self.images
        accepted = self._average_epoch()
        self.judged.load_state_dict(self.current)
        clean, valid = self._validate()
        used = self.defense.class_values()
        rate, eps = self.optimizer.param_groups[0]["lr"], number(self.config.eps or 0)
        self.done, self.seconds = epoch + 1, self.seconds + seconds
        scaled = eps * self.eps_scale(epoch)
        if "eps" in used:
            used = used | {"eps": used["eps"] * self.eps_scale(epoch)}
        self.rows += history_rows(self.done, "train", stats, images.classes, rate, scaled, used, accepted)
        self.rows += history_rows(self.done, "valid", valid, images.classes, rate, eps)
        self.defense.epoch_end(stats, valid)
        top_share = clean.argmax(1).bincount(minlength=images.n_classes).max().item() / len(clean)
        if images.n_classes > 2 and top_share > COLLAPSED:
            self.collapsed.append(self.done)
        if self.lease:
            self.lease.confirm()
        self._choose(valid)
        self._trace_epoch()
        if distributed.rank() == 0:
            save(self)
        distributed.wait()
        progress.epoch(self.done, self._line(stats, valid, seconds, top_share))

    def _average_epoch(self) -> bool | None:
        """The step that an average takes at an epoch's end; whether its gate opened, None where there is no gate."""
        if not self.average or self.config.average == "ema_update":
            return None
        if self.gate is None:
            return self.average.update(self.model)
        worst = 1.0
        if self.config.average == "fawa":  # the gate asks the plain weights
            self.judged.load_state_dict(self.model.state_dict())
            worst = float(self._validate()[1].accuracy(absent=1.0).min())
        accepted = self.gate.opens(worst)
        if accepted:
            self.average.update(self.model)
            if self.config.average == "swa":
                self._renew_statistics()
        return accepted

    def _renew_statistics(self) -> None:
        """BatchNorm's statistics of the average, from one pass over the training images as they are."""
        assert self.average
        self.judged.load_state_dict(self.average.state)
        batches = data.Batches(self.images.x_train, self.images.y_train, 500, shuffle=False)
        torch.optim.swa_utils.update_bn(batches, self.judged)
        self.average.state = {name: value.clone() for name, value in self.judged.state_dict().items()}

    def _validate(self) -> tuple[Tensor, ClassStats]:
        """Clean logits of the judged weights on validation, and what they and those under PGD count up to."""
        self.judged.eval()
        x, y = self.images.x_valid, self.images.y_valid
        clean, robust = (distributed.of_first(self._logits(x, y, attack)) for attack in (None, self.valid_attack))
        return clean, judged_stats(y, clean, robust)

    def _logits(self, x: Tensor, y: Tensor, attack: PGD | None) -> Tensor:
        model = self.judged
        if self.run.config.model.head == "augmented":
            model = Decision(model, slice(self.images.n_classes))
        return quick_logits(model, x, y, attack, seed=self.config.seed, dtype=self.config.dtype)

    def _choose(self, valid: ClassStats) -> None:
        """The best epoch by average + worst class on validation (CFA's index, on validation instead of test)."""
        counted = valid.clean if self.defense.selects_on == "clean" else valid.robust
        accuracy = (counted / valid.n).cpu()
        score = float(accuracy.nanmean() + accuracy[~accuracy.isnan()].min())
        if not self.best or score > self.best["score"]:
            weights = store.fingerprint(self.judged.state_dict())
            self.best = {"epoch": self.done, "score": score, "average": float(accuracy.nanmean()), "weights": weights}

    def _trace_epoch(self) -> None:
        per_class = self.config.trace_per_class
        if not per_class or distributed.rank():
            return
        index = first_per_class(self.images.y_test, per_class)
        x, y = self.images.x_test[index], self.images.y_test[index]
        for name, attack in (("clean", None), ("pgd", self.valid_attack)):
            self.trace[name].append(halved(self._logits(x, y, attack).cpu().numpy()))
        arrays = {"index": index.cpu().numpy(), "y": y.cpu().numpy()}
        arrays |= {name: np.stack(epochs) for name, epochs in self.trace.items()}
        store.write_arrays(self.run.folder / "trace.npz", arrays, compressed=True)

    def _line(self, train: ClassStats, valid: ClassStats, seconds: float, top_share: float) -> str:
        robust, clean = (valid.robust / valid.n).cpu(), (valid.clean / valid.n).cpu()
        worst = int(robust.nan_to_num(2).argmin())
        speed = float(train.n.sum()) / seconds
        line = (
            f"loss {float(train.loss.sum() / train.n.sum()):.3f}  valid clean {100 * clean.nanmean():.1f} %  "
            f"robust {100 * robust.nanmean():.1f} %, worst {100 * robust[worst]:.1f} % "
            f"({self.images.classes[worst]})  {speed:.0f} images/s"
        )
        if self.done in self.collapsed and self.defense.selects_on == "robust":
            line += f"\n  collapsed: one class draws {100 * top_share:.0f} % of validation; try a longer eps_warmup"
        return line
