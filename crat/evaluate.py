"""Evaluation: the only file that knows batteries of attacks. What is kept is each sample's logits, never an average."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from crat import data, store
from crat.attacks import FGSM, PGD, Attack, cw, temperature_pgd
from crat.attacks.judge import REVISION, attacked_batches
from crat.config import PROTOCOLS, ConfigError, RunConfig, number
from crat.device import pick_device
from crat.run import Run
from crat.train import train

Battery = Mapping[str, Attack]
BATCH = 500  # fixed: random starts are drawn batch by batch, so another size would be another outcome
SAVE_EVERY = 30.0  # seconds between partial results of a long attack
TEMPERATURES = (1 / 50, 1 / 20, 1 / 10, 1 / 5, 1 / 2, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Outcomes:
    """What a model did on each image of a split, clean and under each attack.

    y: (N,) int64. logits: name -> (N, K) float16. predictions: name -> (N,) int64, taken from the float32 logits
    (float16 can round two logits to a tie). "clean" is always among the names.
    """

    run: Run
    split: str
    y: np.ndarray
    logits: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return tuple(self.run.card()["classes"])

    @property
    def clean(self) -> np.ndarray:
        """Clean predictions (N,)."""
        return self.predictions["clean"]

    def robust(self, attack: str) -> np.ndarray:
        """R of each sample, (N,) bool: clean-correct and correct under the attack."""
        return (self.clean == self.y) & (self.predictions[attack] == self.y)


class ClassSubset(nn.Module):
    """A model that may answer only some classes: its logits (N, K) restricted to `keep`, no retraining."""

    def __init__(self, model: nn.Module, keep: Sequence[int]):
        super().__init__()
        self.model = model
        self.register_buffer("keep", torch.tensor(list(keep)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, len(keep))."""
        return self.model(x).index_select(1, self.keep)


def protocol_pgd(dataset: str, restarts: int = 1) -> PGD:
    """The test attack of a data set's protocol (PROTOCOLS): PGD-20 at 8/255 for CIFAR-10."""
    p = PROTOCOLS[dataset]
    return PGD(number(p.eps), number(p.test_step_size), p.test_steps, restarts=restarts)


def standard_battery(dataset: str) -> dict[str, Attack]:
    """FGSM, PGD and CW at the data set's test protocol, with names such as "PGD-20"."""
    pgd = protocol_pgd(dataset)
    return {"FGSM": FGSM(pgd.eps), f"PGD-{pgd.steps}": pgd, f"CW-{pgd.steps}": cw(pgd)}


def temperature_battery(dataset: str, temperatures: Sequence[float] = TEMPERATURES) -> dict[str, Attack]:
    """Temperature-PGD at every temperature, named by it: "T=0.02" ... (T = 1 is PGD)."""
    return {f"T={t:g}": temperature_pgd(protocol_pgd(dataset), t) for t in temperatures}


def evaluate(
    run: Run,
    battery: Battery,
    *,
    split: str = "test",
    which: str = "best",
    crafted_on: Run | None = None,
    keep_classes: Sequence[int] | None = None,
    dtype: str = "float32",
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Outcomes:
    """Outcomes of a trained run on the clean images of a split and under each attack, computed once and kept.

    split: "test" or "valid"; which: "best" or "last"; crafted_on: a run whose examples are transferred to this one;
    keep_classes: judge a model that may answer these classes only, on their images, labels renumbered;
    dtype: of the search for adversarial examples, the verdict is float32 in any case.
    What was computed before (here or under results/) is read; a killed evaluation resumes where it was.
    Raises ConfigError on an unknown split, store.StoreError where the run has no weights or a file is damaged.
    """
    if split not in ("test", "valid"):
        raise ConfigError(f"split is 'test' or 'valid', not {split!r}")
    keep = sorted(keep_classes) if keep_classes is not None else None
    bench = _Bench(run, split, which, crafted_on, keep, dtype, seed, device, progress)
    kept = {name: bench.outcome(name, attack) for name, attack in {"clean": None, **battery}.items()}
    return Outcomes(
        run,
        split,
        kept["clean"]["y"].astype(np.int64),
        {name: arrays["logits"] for name, arrays in kept.items()},
        {name: arrays["prediction"].astype(np.int64) for name, arrays in kept.items()},
    )


def outcomes(config: RunConfig, battery: Battery, *, progress: str | None = None, **settings) -> Outcomes:
    """What a notebook asks for: reads what is kept, here or under results/; trains and attacks what is missing."""
    run = Run.of(config, settings.get("device"))
    try:
        return evaluate(run, battery, **settings)
    except MissingWeights:
        for needed in filter(None, (run, settings.get("crafted_on"))):
            train(needed.config, device=settings.get("device"), progress=progress)
        return evaluate(run, battery, **settings)


class MissingWeights(store.StoreError):
    """An outcome that is not kept, of a run whose weights are not here."""


@dataclass
class _Bench:
    """One model on one split; loads the model and the images only when something is missing."""

    run: Run
    split: str
    which: str
    crafted_on: Run | None
    keep: list[int] | None
    dtype: str
    seed: int
    device: str | torch.device | None
    progress: bool

    def __post_init__(self) -> None:
        self._loaded: tuple[nn.Module, nn.Module | None, Tensor, Tensor] | None = None
        self.weights = {r.name: _weights(r, self.which) for r in (self.run, self.crafted_on) if r}

    def path(self, attack: Attack | None) -> Path:
        """Relative place of an outcome, named by the hash of all that decides it, the weights included."""
        source = self.crafted_on if attack else None
        what = {
            "attack": repr(attack), "split": self.split, "which": self.which, "seed": self.seed, "batch": BATCH,
            "keep": self.keep, "dtype": self.dtype if attack else None, "revision": [store.FORMAT, REVISION],
            "weights": self.weights[self.run.name], "crafted_on": self.weights[source.name] if source else None,
        }  # fmt: skip
        return Path("eval") / f"{self.split}-{store.digest(what)}.npz"

    def outcome(self, name: str, attack: Attack | None) -> dict[str, np.ndarray]:
        """The arrays y, prediction, logits of one attack, read or computed."""
        place = self.path(attack)
        for folder in (self.run.published, self.run.folder):
            if folder and (folder / place).exists():
                return store.read_arrays(folder / place)
        return self._compute(name, attack, self.run.folder / place)

    def _compute(self, name: str, attack: Attack | None, path: Path) -> dict[str, np.ndarray]:
        model, source, x, y = self._load()
        partial = path.with_suffix(".part.npz")
        logits = [torch.from_numpy(store.read_arrays(partial)["logits"])] if partial.exists() else []
        begin = sum(map(len, logits))
        bar = tqdm(
            total=len(x), initial=begin, desc=f"{name} on {self.run.name}", unit="img", disable=not self.progress
        )
        saved = time.monotonic()
        batches = attacked_batches(
            model, x, y, attack, batch_size=BATCH, seed=self.seed, dtype=self.dtype, crafted_on=source, begin=begin
        )
        for batch in batches:
            logits.append(batch.cpu())
            bar.update(len(batch))
            if time.monotonic() - saved > SAVE_EVERY:
                store.write_arrays(partial, {"logits": torch.cat(logits).numpy()})
                saved = time.monotonic()
        bar.close()
        whole = torch.cat(logits)
        meta = {
            "name": name, "attack": repr(attack), "split": self.split, "which": self.which, "dtype": self.dtype,
            "keep": self.keep, "crafted_on": self.crafted_on.name if self.crafted_on else None, "seed": self.seed,
        }  # fmt: skip
        arrays = {
            "y": y.cpu().numpy().astype(np.int16),
            "prediction": whole.argmax(1).numpy().astype(np.int16),
            "logits": whole.half().numpy(),
            "meta": np.array(json.dumps(meta)),
        }
        store.write_arrays(path, arrays, compressed=True)
        partial.unlink(missing_ok=True)
        return arrays

    def _load(self) -> tuple[nn.Module, nn.Module | None, Tensor, Tensor]:
        if self._loaded is None:
            device = pick_device(self.device)
            images = data.load(self.run.config.data)
            x, y = getattr(images, f"x_{self.split}").to(device), getattr(images, f"y_{self.split}").to(device)
            model = self._model(self.run, device)
            source = self._model(self.crafted_on, device) if self.crafted_on else None
            if self.keep is not None:
                inside = torch.isin(y, torch.tensor(self.keep, device=device))
                x, y = x[inside], torch.searchsorted(torch.tensor(self.keep, device=device), y[inside])
                model = ClassSubset(model, self.keep).to(device)
                source = ClassSubset(source, self.keep).to(device) if source else None
            self._loaded = model, source, x, y
        return self._loaded

    def _model(self, run: Run, device: torch.device) -> nn.Module:
        if not run.trained_here:
            raise MissingWeights(f"{run.name} is not trained here: `crat train` or train(config) does it")
        model = run.model(self.which, device)
        if store.fingerprint(model.state_dict()) != self.weights[run.name]:
            raise store.StoreError(
                f"{run.name} was published with other weights than are here, and their outcomes may not be mixed: "
                "set CRAT_RECOMPUTE=1 to leave the published results aside"
            )
        return model


def _weights(run: Run, which: str) -> str:
    """The fingerprint of a run's weights, from its card."""
    if which not in ("best", "last"):
        raise ConfigError(f"which is 'best' or 'last', not {which!r}")
    if not run.finished:
        raise MissingWeights(f"{run.name} is not trained here: `crat train` or train(config) does it")
    return run.card()[which]["weights"]


def publish(run: Run, folder: Path | None = None) -> Path:
    """Copies what is small and lasting (card, history, trace, outcomes; no weights) to results/<data set>/<run>."""
    if not run.trained_here:
        raise store.StoreError(f"{run.name} is not finished here; only finished runs are published")
    target = (folder or store.results_home()) / run.config.data.name / run.name
    for source in sorted(run.folder.rglob("*")):
        place = source.relative_to(run.folder)
        hidden = any(part.startswith(".") or ".part." in part for part in place.parts)
        if source.suffix in (".json", ".csv", ".npz") and not hidden:
            with store.written_whole(target / place) as temporary:
                temporary.write_bytes(source.read_bytes())
    return target
