"""Training: the only file that knows epochs. `train(config) -> Run`, never twice, resumable at every epoch.

All randomness of an epoch comes from (seed, epoch), so a resumed run draws what it would have drawn.
"""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import crat
from crat import data, models, store
from crat.attacks import PGD
from crat.attacks.judge import quick_logits
from crat.averaging import EMA
from crat.config import PROTOCOLS, ConfigError, RunConfig, number
from crat.defenses import ClassStats, make_defense
from crat.defenses.base import judged_stats
from crat.device import autocast, compiled, describe, pick_device
from crat.progress import Progress
from crat.run import Run, build_model, first_per_class, history_rows, part
from crat.schedules import learning_rate

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
) -> Run:
    """Trains what the config says and returns its Run; a finished one is returned at once, an unfinished one resumed.

    progress: "bar" (terminal), "line" (one line an epoch, notebooks), "none"; None chooses.
    max_minutes: stop at the end of the epoch in which they have passed (the Run is then unfinished).
    compile: torch.compile the network (worth its start-up time on long runs).
    Raises ConfigError, data.DataError, store.StoreError, and TrainingError where the loss is not finite.
    """
    if max_minutes is not None and not max_minutes >= 0:
        raise ConfigError(f"max_minutes must be at least 0, not {max_minutes!r}")
    where = pick_device(device)
    run = Run.of(config, where)
    if run.trained_here:
        return run
    trainer = Trainer(run, where, compile=compile)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        trainer.fit(Progress(progress, run.name), max_minutes)
    return run


class Trainer:
    """One training in progress: what changes from epoch to epoch, and how it is saved."""

    def __init__(self, run: Run, device: torch.device, *, compile: bool = False):
        self.run, self.config, self.device = run.here, run.config.train, device
        self.images = data.load(run.config.data).to(device)
        self.augment = data.resolve_augment(run.config.data)
        self.model = build_model(run.config, self.images).to(device).to(memory_format=torch.channels_last)
        self.network: nn.Module = compiled(self.model) if compile else self.model
        self.defense = make_defense(self.config, self.images.n_classes)
        c = self.config
        self.optimizer = torch.optim.SGD(self.model.parameters(), c.lr, c.momentum, weight_decay=c.weight_decay)
        decay = c.average_decay if c.average_decay is not None else 0.85 if c.average == "ema_epoch" else 0.999
        self.average = EMA(decay, warm_up=c.average == "ema_update") if c.average != "none" else None
        self.judged = build_model(run.config, self.images).to(device).to(memory_format=torch.channels_last)
        protocol = PROTOCOLS[run.config.data.name]
        self.valid_attack = PGD(number(c.eps or 0), number(protocol.step_size), protocol.steps)
        self.done, self.seconds = 0, 0.0
        self.best: dict[str, Any] = {}
        self.collapsed: list[int] = []
        self.rows: list[dict[str, Any]] = []
        self.trace: dict[str, list[Tensor]] = defaultdict(list)
        if (run.folder / "checkpoint.safetensors").exists():
            self.restore()

    @property
    def current(self) -> dict[str, Tensor]:
        """The weights that are judged and kept: the average where there is one."""
        return self.average.state if self.average else self.model.state_dict()

    def fit(self, progress: Progress, max_minutes: float | None) -> None:
        """All epochs that are missing."""
        began = time.monotonic()
        store.remove_half_written(self.run.folder)
        if self.done >= self.config.epochs:  # killed between the last checkpoint and its card
            store.write_json(self.run.folder / "card.json", self.card())
        progress.start(self.config.epochs, self.done, len(self.images.x_train))
        for epoch in range(self.done, self.config.epochs):
            epoch_began = time.monotonic()
            stats = self.train_epoch(epoch, progress)
            self.finish_epoch(epoch, stats, time.monotonic() - epoch_began, progress)
            if max_minutes is not None and time.monotonic() - began > 60 * max_minutes:
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
        first_bad, total = torch.full((), -1, device=self.device), None
        self.network.train()
        for i, (x, y) in enumerate(batches):
            x = x.contiguous(memory_format=torch.channels_last)
            rate = learning_rate(self.config, epoch * len(batches) + i, len(batches))
            loss, stats = self.step(x, y, rate, self.eps_scale(epoch), generator)
            total = stats if total is None else total + stats
            first_bad = torch.where((first_bad < 0) & ~loss.isfinite(), i, first_bad)
            if progress.step(len(x)):  # about once a second, so the check costs nothing
                self._refuse_non_finite(epoch, first_bad, len(batches))
        self._refuse_non_finite(epoch, first_bad, len(batches))
        assert total is not None
        return total

    def eps_scale(self, epoch: int) -> float:
        """Share of eps and step size that an epoch trains with."""
        return min(1.0, (epoch + 1) / (self.config.eps_warmup + 1))

    def step(
        self, x: Tensor, y: Tensor, rate: float, scale: float, generator: torch.Generator
    ) -> tuple[Tensor, ClassStats]:
        """Craft, loss, update."""
        with autocast(self.device, self.config.dtype):
            x_adv = self.defense.craft(self.network, x, y, scale=scale, generator=generator)
            loss, stats = self.defense.loss(self.network, x, x_adv, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        if self.average and self.config.average == "ema_update":
            self.average.update(self.model)
        return loss.detach(), stats

    def _refuse_non_finite(self, epoch: int, first_bad: Tensor, n_batches: int) -> None:
        batch = int(first_bad)
        if batch < 0:
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
        if self.average and self.config.average == "ema_epoch":
            self.average.update(self.model)
        self.judged.load_state_dict(self.current)
        self.judged.eval()
        images = self.images
        clean = self._logits(images.x_valid, images.y_valid, None)
        robust = self._logits(images.x_valid, images.y_valid, self.valid_attack)
        valid = judged_stats(images.y_valid, clean, robust)
        self.defense.epoch_end(stats, valid)
        self.done, self.seconds = epoch + 1, self.seconds + seconds
        rate, eps = self.optimizer.param_groups[0]["lr"], number(self.config.eps or 0)
        self.rows += history_rows(self.done, "train", stats, images.classes, rate, eps * self.eps_scale(epoch))
        self.rows += history_rows(self.done, "valid", valid, images.classes, rate, eps)
        top_share = clean.argmax(1).bincount(minlength=images.n_classes).max().item() / len(clean)
        if images.n_classes > 2 and top_share > COLLAPSED:
            self.collapsed.append(self.done)
        self._choose(valid)
        self._trace_epoch()
        self.save()
        progress.epoch(self.done, self._line(stats, valid, seconds, top_share))

    def _logits(self, x: Tensor, y: Tensor, attack: PGD | None) -> Tensor:
        return quick_logits(self.judged, x, y, attack, seed=self.config.seed, dtype=self.config.dtype)

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
        if not per_class:
            return
        index = first_per_class(self.images.y_test, per_class)
        x, y = self.images.x_test[index], self.images.y_test[index]
        self.trace["clean"].append(self._logits(x, y, None).half().cpu())
        self.trace["pgd"].append(self._logits(x, y, self.valid_attack).half().cpu())
        kept = {"index": index, "y": y} | {name: torch.stack(epochs) for name, epochs in self.trace.items()}
        arrays = {name: value.cpu().numpy() for name, value in kept.items()}
        store.write_arrays(self.run.folder / "trace.npz", arrays, compressed=True)

    def save(self) -> None:
        """History first: a resumed run drops what lies beyond the checkpoint. Best weights last: it holds them too."""
        folder = self.run.folder
        store.write_text(folder / "history.csv", pd.DataFrame(self.rows).to_csv(index=False))
        momentum = {
            name: self.optimizer.state[p]["momentum_buffer"]
            for name, p in self.model.named_parameters()
            if self.optimizer.state.get(p, {}).get("momentum_buffer") is not None
        }
        parts = {
            "model": self.model.state_dict(),
            "momentum": momentum,
            "average": self.average.state if self.average else {},
            "defense": self.defense.state_dict(),
        }
        tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        meta = {"epoch": self.done, "seconds": self.seconds, "best": self.best, "collapsed": self.collapsed}
        meta["averaged"] = self.average.updates if self.average else 0
        store.write_tensors(folder / "checkpoint.safetensors", tensors, meta)
        if self.best["epoch"] == self.done:
            self._write_best()
        store.write_json(folder / "card.json", self.card())

    def _write_best(self) -> None:
        store.write_tensors(self.run.folder / "best.safetensors", self.judged.state_dict(), {"epoch": self.done})

    def card(self) -> dict[str, Any]:
        """What a reader must know of the run; what only a finished one can tell is None until then."""
        finished = self.done >= self.config.epochs
        return {
            "name": self.run.name,
            "config": self.run.config.as_dict(),
            "classes": list(self.images.classes),
            "original_labels": list(self.images.original_labels),
            "epochs_done": self.done,
            "finished": finished,
            "best": self.best,
            "last": {"weights": store.fingerprint(self.current)} if finished else None,
            "collapsed_epochs": self.collapsed,
            "class_weight_norms": self._weight_norms() if finished else None,
            "train_seconds": round(self.seconds, 1),
            "device": describe(self.device),
            "versions": {"crat": crat.__version__, "torch": torch.__version__, "python": platform.python_version()},
        }

    def _weight_norms(self) -> list[float] | None:
        """||w_k|| of the best epoch's last layer, where the head has weights of free length."""
        if self.run.config.model.head not in ("linear", "augmented"):
            return None
        self.judged.load_state_dict(store.read_tensors(self.run.folder / "best.safetensors")[0])
        return [round(norm, 6) for norm in models.class_weight_norms(self.judged).tolist()]

    def restore(self) -> None:
        """Goes back to the end of the last saved epoch; to the beginning, where the best weights are lost."""
        folder = self.run.folder
        tensors, meta = store.read_tensors(folder / "checkpoint.safetensors")
        best = folder / "best.safetensors"
        best_epoch = store.read_tensors(best)[1]["epoch"] if best.exists() else None
        if best_epoch != meta["best"]["epoch"] != meta["epoch"]:
            return
        self.done, self.seconds, self.best = meta["epoch"], meta["seconds"], meta["best"]
        self.collapsed = meta["collapsed"]
        self.model.load_state_dict(part(tensors, "model"))
        for name, buffer in part(tensors, "momentum").items():
            parameter = self.model.get_parameter(name)
            self.optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter)
        if self.average:
            self.average.state = {k: v.to(self.device) for k, v in part(tensors, "average").items()}
            self.average.updates = meta["averaged"]
        self.defense.load_state_dict({k: v.to(self.device) for k, v in part(tensors, "defense").items()})
        history = self.run.history()
        self.rows = history[history.epoch <= self.done].to_dict("records")
        if self.config.trace_per_class:
            trace = self.run.trace()
            for name in ("clean", "pgd"):
                self.trace[name] = [torch.from_numpy(kept) for kept in trace[name][: self.done]]
        self.judged.load_state_dict(self.current)
        if best_epoch != self.best["epoch"]:
            self._write_best()

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
