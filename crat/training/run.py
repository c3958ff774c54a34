"""A run: its config, its name, its files, its trained network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from crat import store
from crat.config import ConfigError, RunConfig, different_from_default
from crat.data.registry import DATASETS
from crat.defenses import DEFENSES, ClassStats, known_name, make_defense
from crat.defenses.base import METHODS
from crat.device import pick_device, pick_dtype
from crat.keys import identity
from crat.keys.identity import Identity
from crat.nets import bodies, models
from crat.store import FORMAT, Store, digest
from crat.training.state import part

WEIGHTS = "best.safetensors"  # the network of the best epoch


@dataclass(frozen=True)
class Run:
    """A training, finished or not: its resolved config and the folder of its files.

    published: the folder of the same run under results/; None: no such folder, or not to be used.
    Published files are read before those in `folder`, so that all numbers of a run have one origin.
    """

    config: RunConfig
    folder: Path
    published: Path | None = None

    @classmethod
    def of(
        cls, config: RunConfig, device: str | torch.device | None = None, store: Store | None = None
    ) -> Run:
        """The run of a config; its name ends in the hash of config, method revision and dtype.

        The hash also covers the code of a method or network from outside crat, and everything that
        this code reaches (crat.keys.identity), so an edited method makes another run.
        device: decides only the dtype that "auto" means.
        store: the place of the runs (None: the usual one).
        """
        config = config.resolved()
        dtype = pick_dtype(config.train.dtype, pick_device(device))
        config = replace(config, train=replace(config.train, dtype=dtype))
        config, revision = _canonical(config)
        decided_by = {**different_from_default(config), "revision": revision, "format": FORMAT}
        foreign = {part: found.text for part, found in put_in_place(config).items()}
        if foreign:
            decided_by["foreign"] = foreign
        method = f"{config.train.defense}-s{config.train.seed}"
        name = f"{config.data.name}-{config.model.name}-{method}-{digest(decided_by)}"
        where = store or Store.usual()
        return cls(config, where.root / name, where.published_run(config.data.name, name))

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.name

    @property
    def here(self) -> Run:
        """The same run without its published files."""
        return replace(self, published=None)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, according to the published card or else the store's."""
        return self.card().get("finished", False)

    @property
    def trained_here(self) -> bool:
        """Whether all epochs are done and the weights are in the store."""
        weights = (WEIGHTS, "checkpoint.safetensors")
        return all((self.folder / name).exists() for name in weights) and self.here.finished

    def published_weights(self, which: str = "best") -> Path | None:
        """The published file of a network's weights; None where they are not published.

        which: "best" or "last". The best epoch's are published; they are the last ones where the
        card says so.
        Raises StoreError where the file was altered.
        """
        path = store.published_file(self.published, WEIGHTS) if self.published else None
        card = self.card()
        return path if path and card[which]["weights"] == card["best"]["weights"] else None

    def has_network(self, which: str = "best") -> bool:
        """Whether `model` can give the network of a finished run: trained here, or published.

        A published network can be attacked, and another run may start from it; its own training
        does not go on.
        """
        return self.trained_here or self.published_weights(which) is not None

    def no_network(self, which: str = "best") -> str:
        """The line that says why there is no network, and how to have it."""
        if self.published_weights():
            return (
                f"the {which} network of {self.name} is not published, only the best: `crat train` "
                "or train(config) makes it"
            )
        return f"{self.name} is not trained here: `crat train` or train(config) does it"

    def card(self) -> dict[str, Any]:
        """The run's card: config, versions, device, epochs done, chosen epoch; {} if there is none.

        Raises StoreError where the card names other settings: a default has changed since, or the
        folder was moved.
        """
        path = self.find("card.json")
        if path is None:
            return {}
        card = store.read_json(path)
        if card_config(card, path.parent) != self.config:
            raise store.StoreError(
                f"{path.parent} holds a run of other settings than asked; remove it to train anew"
            )
        return card

    def history(self) -> pd.DataFrame:
        """The table history.csv: n, accuracies, loss, lr and eps by epoch, split and class."""
        return pd.read_csv(self._file("history.csv"), float_precision="round_trip")

    def trace(self) -> dict[str, Any]:
        """The logits of a fixed subset of the test images after each epoch.

        index, y: (N,). clean, pgd: (epochs, N, K) float16.
        """
        return store.read_arrays(self._file("trace.npz"))

    def find(self, name: str) -> Path | None:
        """The path of a file of the run, published or in the store; None where it is in neither.

        Raises StoreError where a published file was altered (store.published_file).
        """
        if self.published and (path := store.published_file(self.published, name)):
            return path
        return self.folder / name if (self.folder / name).exists() else None

    def _file(self, name: str) -> Path:
        if path := self.find(name):
            return path
        raise store.StoreError(
            f"{self.name} has no {name}: train it first, `crat train` or train(config)"
        )

    def model(self, which: str = "best", device: str | torch.device | None = None) -> nn.Module:
        """The trained network in eval mode, with averaged weights where the run averages.

        The published weights are read before those in the store, as all files of a run are.
        which: "best" (the epoch that validation chose) or "last".
        Raises ConfigError on another `which`, StoreError where the weights are absent, damaged or
        altered.
        """
        if which not in ("best", "last"):
            raise ConfigError(f"which is 'best' or 'last', not {which!r}")
        where = pick_device(device)
        network = build_model(self.config).to(where).to(memory_format=torch.channels_last)
        network.load_state_dict(self._tensors(which))
        return network.eval()

    def _tensors(self, which: str) -> dict[str, Tensor]:
        """The weights of a network, on the CPU."""
        if path := self.published_weights(which):
            tensors, _ = store.read_tensors(path)
            if store.fingerprint(tensors) != self.card()[which]["weights"]:
                raise store.StoreError(f"{path} has other weights than its card says")
            return tensors
        if which == "best":
            return store.read_tensors(self.folder / WEIGHTS)[0]
        checkpoint = self.folder / "checkpoint.safetensors"
        if self.published_weights() and not checkpoint.exists():
            raise store.StoreError(self.no_network(which))
        saved, _ = store.read_tensors(checkpoint)
        return part(saved, "average") or part(saved, "model")


def fine_tuned(config: RunConfig, start: RunConfig) -> RunConfig:
    """A copy of a config whose training starts from the best weights of another config's run.

    A plan that has it must have the run of `start`, too: the weights must be there first.
    """
    return config.but(start_from=Run.of(start).name)


def put_in_place(config: RunConfig) -> dict[str, Identity]:
    """The identities of the method and network of a config that are not crat's or were changed."""
    method = config.train.defense
    network = config.model.name
    return identity.put_in_place(
        method=(DEFENSES.get(method), METHODS.get(method)),
        network=(bodies.BODIES.get(network), bodies.CAME.get(network)),
    )


def unread(config: RunConfig) -> list[str]:
    """A warning (one line or none) of code that cannot be read into the key of a run.

    Such a run is found again in the present session only.
    """
    parts: list[str] = []
    for found in put_in_place(config).values():
        parts += found.unread
    if not parts:
        return []
    consequence = "cannot be read into the key of this run, so a later session will train it anew"
    return [f"{', '.join(parts)}: {consequence}"]


def _canonical(config: RunConfig) -> tuple[RunConfig, int]:
    """The config in its canonical form, and the revision of its method.

    The canonical form has the head that the method brings, and no option at its default.
    """
    defense = make_defense(config.train, 2)
    if config.train.teacher and not defense.taught:
        raise ConfigError(
            f"{config.train.defense} learns from no teacher: leave out --teacher, or teacher="
        )
    model = config.model
    train = replace(config.train, defense=known_name(config.train.defense))
    if defense.head and defense.head != model.head:
        if model.head != "linear":
            raise ConfigError(f"{train.defense} needs the {defense.head} head, not {model.head}")
        model = replace(model, head=defense.head)
    if model.head == "augmented" and not model.extra_outputs:
        model = replace(model, extra_outputs=defense.extra_outputs)
    default = defense.options()
    given = {name: getattr(defense, name) for name, _ in train.options}
    options = tuple((name, value) for name, value in given.items() if value != default[name])
    return replace(config, model=model, train=replace(train, options=options)), defense.revision


def card_config(card: dict[str, Any], folder: Path) -> RunConfig:
    """The config in a card; raises StoreError where this version cannot read it."""
    try:
        return RunConfig.from_dict(card["config"])
    except (KeyError, TypeError) as error:
        raise store.StoreError(f"{folder} was made by another version of crat ({error})") from None


def build_model(config: RunConfig, n_classes: int | None = None) -> nn.Module:
    """The untrained network of a config, seeded by the config's seed.

    n_classes: the number of outputs (None: the number of classes in the config's data).
    """
    spec = DATASETS[config.data.name]
    return models.build(
        config.model,
        n_classes or len(config.data.kept_classes()),
        spec.image_shape,
        mean=spec.mean,
        std=spec.std,
        seed=store.seed_for(config.train.seed, "init"),
    )


def history_rows(
    epoch: int,
    split: str,
    stats: ClassStats,
    classes: tuple[str, ...],
    rate: float,
    eps: float,
    class_values: dict[str, Tensor] | None = None,
    accepted: bool | None = None,
) -> list[dict]:
    """The rows of one epoch and split in history.csv; an absent class has NaN accuracies.

    rate: learning rate. eps: radius, common to all classes.
    class_values: column -> the method's values of the classes in this epoch, (K,); a column "eps"
    replaces the common one.
    accepted: whether the epoch entered a gated average; None: no gate, and no such column.
    """
    n = stats.n.cpu().double()  # in this order: a GPU may have no float64
    clean = stats.clean.cpu().double()
    robust = stats.robust.cpu().double()
    loss = stats.loss.cpu().double()
    chosen = {column: values.cpu().double() for column, values in (class_values or {}).items()}
    rows = []
    for k, name in enumerate(classes):
        row: dict[str, Any] = {
            "epoch": epoch,
            "split": split,
            "class": name,
            "n": int(n[k]),
            "clean_acc": float(clean[k] / n[k]),
            "robust_acc": float(robust[k] / n[k]),
            "loss": float(loss[k] / n[k]),
            "lr": rate,
            "eps": eps,
        }
        row |= {column: float(values[k]) for column, values in chosen.items()}
        if accepted is not None:
            row["accepted"] = accepted
        rows.append(row)
    return rows
