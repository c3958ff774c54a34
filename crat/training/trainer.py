"""Training: `train(config) -> Run` trains a run once and resumes it after every epoch.

All randomness of an epoch comes from (seed, epoch), so a resumed run draws the same numbers as an
uninterrupted one. No other module knows epochs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from crat import data, distributed, graphs, store
from crat.attacks import PGD, Decision
from crat.attacks.judge import quick_logits
from crat.config import DATASETS, ConfigError, RunConfig, number
from crat.data.images import first_per_class
from crat.defenses import ClassStats, Defense, Task, make_defense
from crat.defenses.stats import judged_stats
from crat.device import pick_device
from crat.store import Store
from crat.store.lease import Lease, held
from crat.text import dated
from crat.training.averaging import make_average, make_gate
from crat.training.checkpoint import CHECKPOINT, restore, save, write_best, write_card
from crat.training.progress import Progress, tell
from crat.training.run import Run, build_model, history_rows, unread
from crat.training.schedules import learning_rate
from crat.training.start import begin, teacher_of
from crat.training.state import TrainState
from crat.training.step import NEVER, Step, make_optimizer
from crat.training.whole_batch import see_the_whole_batch

# share of validation images that one class may draw before the epoch is called collapsed (K > 2)
COLLAPSED = 0.9


class TrainingError(RuntimeError):
    """A training that cannot go on; the message names epoch, batch and last good checkpoint."""


def train(
    config: RunConfig,
    *,
    device: str | torch.device | None = None,
    progress: str | None = None,
    max_minutes: float | None = None,
    store: Store | None = None,
) -> Run:
    """Trains the run of a config and returns it.

    A finished run is returned at once, with a line that gives its date; an unfinished run is
    resumed. A run that starts from another's weights, or learns from them, finds them in the same
    store, or published (crat.training.start). A published network has no
    optimizer, so its own training does not go on.
    The key of a run covers the code of your own methods (crat.keys.identity), so an
    edited method is trained anew. While another worker trains the same run, this one waits for it
    (crat.store.lease).
    progress: "bar" (terminal), "line" (a line for each epoch, notebooks) or "none"; None chooses.
    max_minutes: the training stops after the epoch in which they pass; the run is then unfinished.
    store: the place of the runs (None: the usual one).
    Raises ConfigError, data.DataError, store.StoreError (MissingStart where the weights to start
    or to learn from are not there), and TrainingError where the loss is not finite.
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
            # another worker may have finished the run while this one waited
            if not distributed.decided_by_first(run.trained_here, where):
                published = (store or Store.usual()).published
                say = partial(tell, style)
                trainer = Trainer(run, where, lease=lease, tell=say, published=published)
                # all ranks raise a TrainingError together
                with distributed.failing_alone(but=TrainingError):
                    trainer.fit(Progress(style, run.name), max_minutes)
                return run
    tell(style, f"kept: {run.name}, trained {dated(run.folder / 'card.json')}")
    return run


class Trainer:
    """A training in progress: its epochs, their validation and their files.

    model: the network that is trained.
    step: its update by a batch.
    tell: takes a line that the user should see.
    published: the folder of published runs, whose networks it may start from, or learn from (None:
    none).
    teacher: the network that a distillation learns from; None for other methods.
    judged: a second network, which takes the weights that validation judges: the average as soon as
    it exists, else those of `model`.
    """

    def __init__(
        self,
        run: Run,
        device: torch.device,
        *,
        lease: Lease | None = None,
        tell: Callable[[str], None] = print,
        published: Path | None = None,
    ):
        self.run = run.here
        self.config = run.config.train
        self.device = device
        self.lease = lease
        self.tell = tell
        self.model = self._untrained()
        start = begin(self.run, self.model, published)
        self.teacher, taught_by = teacher_of(self.run, device, published)
        self.images = data.load(run.config.data).to(device)
        self.augment = data.resolve_augment(run.config.data)
        if distributed.world() > 1:
            see_the_whole_batch(self.model)
        self.judged = self._untrained()
        self.defense = self._make_defense()
        self.state = TrainState(
            self.model,
            make_optimizer(self.model, self.config),
            self.defense,
            make_average(self.config),
            make_gate(self.config),
            start=start,
            teacher=taught_by,
        )
        self.rate = self.config.lr  # of the last update
        protocol = DATASETS[run.config.data.name].protocol
        eps = number(self.config.eps or 0)
        self.valid_attack = PGD(eps, number(protocol.step_size), protocol.steps)
        if start:
            self._average_start()
        if (run.folder / CHECKPOINT).exists():
            self._restore()
        if start and not self.state.epochs_done:
            origin = start.get("run") or start["file"]
            drawn = (
                "; its head has other classes: ours is drawn by the seed" if "head" in start else ""
            )
            self.tell(f"starts from {origin}, weights {start['weights']}{drawn}")
        if taught_by and not self.state.epochs_done:
            self.tell(f"learns from {self.config.teacher}, weights {taught_by['weights']}")

    @cached_property
    def step(self) -> Step:
        """The update, made at its first use: it takes places for the state as it then is."""
        records = graphs.can_record(self.device)
        return Step(
            self.state,
            self.config,
            self.device,
            self.images.n_classes,
            tell=self.tell,
            operations=self._operations() if records else 0.0,
        )

    def _untrained(self) -> nn.Module:
        network = build_model(self.run.config)
        return network.to(self.device).to(memory_format=torch.channels_last)

    def _make_defense(self) -> Defense:
        counts = self.images.y_train.bincount(minlength=self.images.n_classes).cpu()
        settings = self.config
        shape = self.images.image_shape
        task = Task(counts, shape, settings.epochs, self.teacher, settings.batch_size)
        return make_defense(self.config, task).to(self.device)

    def _average_start(self) -> None:
        """Begins a moving average with the weights of another run; a gate admits epochs only."""
        if self.state.average and not self.state.gate:
            self.state.average.update(self.model)

    def _operations(self) -> float:
        """Floating point operations of the whole training.

        A pass backward by the images costs as much as one forward; the one by the weights is added
        once a step.
        """
        image = self.images.x_train[:1].float()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.judged(image)
        passes = 2 * (self.config.steps or 0) + 3
        images = len(self.images.x_train) * self.config.epochs
        return float(counter.get_total_flops()) * passes * images

    def _restore(self) -> None:
        """Restores the checkpoint; the lease's holder (rank 0) writes lost best weights anew."""
        best_is_lost = restore(self.run, self.state)
        self.judged.load_state_dict(self.state.weights)
        if best_is_lost and self.lease and self.lease.held:
            write_best(self.run, self.state, self.judged.state_dict())

    def fit(self, progress: Progress, max_minutes: float | None) -> None:
        """Trains all epochs that are missing; max_minutes as in `train`."""
        began = time.monotonic()
        if distributed.rank() == 0:
            store.remove_half_written(self.run.folder)
            # an earlier session was killed between the last checkpoint and its card
            if self.state.epochs_done >= self.config.epochs:
                write_card(self.run, self.state, self.images)
        progress.start(self.config.epochs, self.state.epochs_done, len(self.images.x_train))
        for epoch in range(self.state.epochs_done, self.config.epochs):
            epoch_began = time.monotonic()
            stats = self.train_epoch(epoch, progress)
            self.finish_epoch(epoch, stats, time.monotonic() - epoch_began, progress)
            late = max_minutes is not None and time.monotonic() - began > 60 * max_minutes
            if distributed.decided_by_first(late, self.device):
                break
        progress.close()

    def train_epoch(self, epoch: int, progress: Progress) -> ClassStats:
        """One pass over the training images; returns the class-wise sums.

        No update waits for the device. Raises TrainingError where a loss is not finite.
        """
        batches = self.batches(epoch)
        n_batches = len(batches)
        for i, (x, y) in enumerate(batches):
            self.rate = learning_rate(self.config, epoch * n_batches + i, n_batches)
            self.step(x, y, self.rate)
            # once a second, for it waits for the device; several ranks must fail together, so they
            # check after the epoch
            if progress.step(len(x)) and distributed.world() == 1:
                self._refuse_non_finite(epoch, self.step.first_bad, n_batches)
        self._refuse_non_finite(epoch, distributed.smallest(self.step.first_bad), n_batches)
        self.state.way = self.step.done_by
        sums = list(vars(self.step.counted()).values())
        return ClassStats(*distributed.sum_over_ranks(sums))

    def batches(self, epoch: int) -> data.Batches:
        """The batches of an epoch, which begins here: its random numbers, its counts, its mode."""
        torch.manual_seed(store.seed_for(self.config.seed, epoch, "dropout"))  # inside fork_rng
        self.step.begin(store.seed_for(self.config.seed, epoch), self.eps_scale(epoch))
        self.model.train()
        return data.Batches(
            self.images.x_train,
            self.images.y_train,
            self.config.batch_size,
            generator=self.step.generator,
            augment=self.augment,
            padding=self.run.config.data.padding,
            class_probs=self.defense.class_probs(),
        )

    def eps_scale(self, epoch: int) -> float:
        """The share of eps and step size that an epoch trains with: linear warm-up, then 1."""
        return min(1.0, (epoch + 1) / (self.config.eps_warmup + 1))

    def _refuse_non_finite(self, epoch: int, first_bad: Tensor, n_batches: int) -> None:
        """Raises TrainingError unless first_bad is NEVER: no batch had a loss not finite."""
        batch = int(first_bad)
        if batch == NEVER:
            return
        done = self.state.epochs_done
        checkpoint = "no checkpoint yet"
        if done:
            checkpoint = f"the checkpoint after epoch {done} is kept in {self.run.folder}"
        raise TrainingError(
            f"the loss is not finite in epoch {epoch + 1}, batch {batch + 1} of {n_batches}; "
            f"{checkpoint}; a smaller --lr, a longer --eps-warmup or --dtype float32 may help"
        )

    def finish_epoch(
        self, epoch: int, stats: ClassStats, seconds: float, progress: Progress
    ) -> None:
        """Averages the weights, validates, chooses the best epoch and writes the epoch's files.

        stats: class-wise sums of the epoch's training. seconds: the time that it took.
        """
        state = self.state
        accepted = self._average_epoch()
        self.judged.load_state_dict(state.weights)
        clean, valid = self._validate()
        state.epochs_done = epoch + 1
        state.seconds += seconds
        self._note(epoch, stats, valid, accepted)
        self.defense.epoch_end(stats, valid)
        counts = clean.argmax(1).bincount(minlength=self.images.n_classes)
        top_share = counts.max().item() / len(clean)
        if self.images.n_classes > 2 and top_share > COLLAPSED:
            state.collapsed.append(state.epochs_done)
        if self.lease:
            self.lease.confirm()
        self._choose(valid)
        self._trace_epoch()
        if distributed.rank() == 0:
            save(self.run, state, self.judged.state_dict(), self.images)
        distributed.wait()
        progress.epoch(state.epochs_done, self._line(stats, valid, seconds, top_share))

    def _note(
        self, epoch: int, stats: ClassStats, valid: ClassStats, accepted: bool | None
    ) -> None:
        """Adds the epoch's rows of history.csv, with the method's values of each class."""
        done = self.state.epochs_done
        classes = self.images.classes
        rate = self.rate
        eps = number(self.config.eps or 0)
        scale = self.eps_scale(epoch)
        used = self.defense.class_values()
        if "eps" in used:
            used = used | {"eps": used["eps"] * scale}
        trained = history_rows(done, "train", stats, classes, rate, eps * scale, used, accepted)
        judged = history_rows(done, "valid", valid, classes, rate, eps)
        self.state.rows += trained + judged

    def _average_epoch(self) -> bool | None:
        """Updates an average of epochs; returns whether its gate opened, None without a gate."""
        average = self.state.average
        if not average or self.config.average == "ema_update":
            return None
        if self.state.gate is None:
            average.update(self.model)
            return None
        worst = 1.0
        if self.config.average == "fawa":  # the gate judges the model's weights, not the average
            self.judged.load_state_dict(self.model.state_dict())
            worst = float(self._validate()[1].accuracy(absent=1.0).min())
        accepted = self.state.gate.opens(worst)
        if accepted:
            average.update(self.model)
            if self.config.average == "swa":
                self._renew_statistics()
        return accepted

    def _renew_statistics(self) -> None:
        """Computes BatchNorm's statistics of the average from unaugmented training images."""
        assert self.state.average
        self.judged.load_state_dict(self.state.average.state)
        batches = data.Batches(self.images.x_train, self.images.y_train, 500, shuffle=False)
        torch.optim.swa_utils.update_bn(batches, self.judged)
        renewed = self.judged.state_dict()
        self.state.average.state = {name: value.clone() for name, value in renewed.items()}

    def _validate(self) -> tuple[Tensor, ClassStats]:
        """Clean validation logits of the judged weights; class-wise sums, clean and under PGD."""
        self.judged.eval()
        x, y = self.images.x_valid, self.images.y_valid
        clean = distributed.of_first(self._logits(x, y, None))
        robust = distributed.of_first(self._logits(x, y, self.valid_attack))
        return clean, judged_stats(y, clean, robust)

    def _logits(self, x: Tensor | data.Streamed, y: Tensor, attack: PGD | None) -> Tensor:
        model = self.judged
        if self.run.config.model.head == "augmented":
            model = Decision(model, slice(self.images.n_classes))
        return quick_logits(model, x, y, attack, seed=self.config.seed, dtype=self.config.dtype)

    def _choose(self, valid: ClassStats) -> None:
        """Chooses the epoch as the best if average + worst accuracy on validation is the highest.

        Source: CFA's index (Wei et al. 2023), which its code takes on the test images.
        """
        correct = valid.clean if self.defense.selects_on == "clean" else valid.robust
        accuracy = (correct / valid.n).cpu()
        score = float(accuracy.nanmean() + accuracy[~accuracy.isnan()].min())
        if not self.state.best or score > self.state.best["score"]:
            self.state.best = {
                "epoch": self.state.epochs_done,
                "score": score,
                "average": float(accuracy.nanmean()),
                "weights": store.fingerprint(self.judged.state_dict()),
            }

    def _trace_epoch(self) -> None:
        """Adds the epoch's logits of a fixed subset of the test images to trace.npz (rank 0)."""
        per_class = self.config.trace_per_class
        if not per_class or distributed.rank():
            return
        index = first_per_class(self.images.y_test, per_class)
        x, y = self.images.x_test[index], self.images.y_test[index]
        for name, attack in (("clean", None), ("pgd", self.valid_attack)):
            self.state.trace[name].append(store.halved(self._logits(x, y, attack).cpu().numpy()))
        arrays = {"index": index.cpu().numpy(), "y": y.cpu().numpy()}
        arrays |= {name: np.stack(epochs) for name, epochs in self.state.trace.items()}
        store.write_arrays(self.run.folder / "trace.npz", arrays, compressed=True)

    def _line(self, train: ClassStats, valid: ClassStats, seconds: float, top_share: float) -> str:
        """The line of a finished epoch, and a second one where the epoch collapsed.

        top_share: the largest share of validation images that is assigned to one class.
        """
        clean = (valid.clean / valid.n).cpu()
        robust = (valid.robust / valid.n).cpu()
        worst = int(robust.nan_to_num(2).argmin())
        loss = float(train.loss.sum() / train.n.sum())
        speed = float(train.n.sum()) / seconds
        line = (
            f"loss {loss:.3f}  valid clean {100 * clean.nanmean():.1f} %  "
            f"robust {100 * robust.nanmean():.1f} %, worst {100 * robust[worst]:.1f} % "
            f"({self.images.classes[worst]})  {speed:.0f} images/s"
        )
        if self.state.epochs_done in self.state.collapsed and self.defense.selects_on == "robust":
            line += f"\n  collapsed: one class draws {100 * top_share:.0f} % of validation; "
            line += "try a longer eps_warmup"
        return line
