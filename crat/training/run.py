"""A run: what was trained, by which config, and where its files are."""

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
from crat.defenses import DEFENSES, ClassStats, make_defense
from crat.defenses.base import METHODS
from crat.device import pick_device, pick_dtype
from crat.keys import identity
from crat.keys.identity import Identity
from crat.names import one_of
from crat.nets import bodies, models
from crat.store import FORMAT, Store, digest


@dataclass(frozen=True)
class Run:
    """A trained model (or one in the making): its resolved config and the folder where it lives.

    published: the folder of the same run under results/ (None: there is none, or it is left aside).
    It is read before the run's own folder, so that one run's numbers have one origin.
    """

    config: RunConfig
    folder: Path
    published: Path | None = None

    @classmethod
    def of(
        cls, config: RunConfig, device: str | torch.device | None = None, store: Store | None = None
    ) -> Run:
        """The run of a config; its name ends in the hash of config, method revision and dtype.

        Of a method or a network that is not crat's the hash holds its code and all that it reaches
        (crat.keys.identity), so an edited one is another run. The device matters only to what dtype
        "auto" means. store: where runs are (None: the usual one).
        """
        config = config.resolved()
        dtype = pick_dtype(config.train.dtype, pick_device(device))
        config = replace(config, train=replace(config.train, dtype=dtype))
        config, revision = _canonical(config)
        t, foreign = (
            config.train,
            {what: found.text for what, found in put_in_place(config).items()},
        )
        decided_by = {**different_from_default(config), "revision": revision, "format": FORMAT}
        key = digest(decided_by | ({"foreign": foreign} if foreign else {}))
        name = f"{config.data.name}-{config.model.name}-{t.defense}-s{t.seed}-{key}"
        where = store or Store.usual()
        return cls(config, where.root / name, where.published_run(config.data.name, name))

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def here(self) -> Run:
        """The same run as it lies in the store, whatever was published."""
        return replace(self, published=None)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, here or where it was published."""
        return self.card().get("finished", False)

    @property
    def trained_here(self) -> bool:
        """Whether all epochs are done and the weights are in the store."""
        weights = ("best.safetensors", "checkpoint.safetensors")
        return all((self.folder / name).exists() for name in weights) and self.here.finished

    def card(self) -> dict[str, Any]:
        """What is known of the run: config, versions, device, epochs done, the chosen epoch; {}
        before the first.

        Raises StoreError where the card tells of other settings (a default has changed since, or
        the folder was moved).
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
        """One row an epoch, split and class: n, clean_acc, robust_acc, loss, with lr and eps of
        the epoch.
        """
        return pd.read_csv(self._file("history.csv"), float_precision="round_trip")

    def trace(self) -> dict[str, Any]:
        """Per epoch logits of the fixed test subset: index, y (N,), clean and pgd (epochs, N, K)
        float16.
        """
        return store.read_arrays(self._file("trace.npz"))

    def find(self, name: str) -> Path | None:
        """Where a file of the run is, published or in the store; None where it is in neither.

        Raises StoreError where the run was published and is not as it was published
        (store.published_file).
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
        """The trained network in eval mode: "best" by validation, or "last"; the average where
        one was kept.
        """
        where = pick_device(device)
        network = build_model(self.config).to(where).to(memory_format=torch.channels_last)
        if which == "best":
            tensors, _ = store.read_tensors(self.folder / "best.safetensors")
        elif which == "last":
            saved, _ = store.read_tensors(self.folder / "checkpoint.safetensors")
            tensors = part(saved, "average") or part(saved, "model")
        else:
            raise ConfigError(f"which is 'best' or 'last', not {which!r}")
        network.load_state_dict(tensors)
        return network.eval()


def put_in_place(config: RunConfig) -> dict[str, Identity]:
    """What a config names that is not crat's own: its method, its network, what was changed in
    this session.
    """
    method, network = config.train.defense, config.model.name
    return identity.put_in_place(
        method=(DEFENSES.get(method), METHODS.get(method)),
        network=(bodies.BODIES.get(network), bodies.CAME.get(network)),
    )


def unread(config: RunConfig) -> list[str]:
    """A line where something of a run's code cannot be read: then it is found again in this
    session only.
    """
    parts = [part for found in put_in_place(config).values() for part in found.unread]
    told = "cannot be read into the key of this run, so a later session will train it anew"
    return [f"{', '.join(parts)}: {told}"] if parts else []


def _canonical(config: RunConfig) -> tuple[RunConfig, int]:
    """The config with the head that its method brings and without options at their default; the
    method's revision.
    """
    defense = make_defense(config.train, 2)
    model, train = (
        config.model,
        replace(config.train, defense=one_of("defense", config.train.defense, DEFENSES)),
    )
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
    """The config that a card tells of; raises StoreError where it is none of ours."""
    try:
        return RunConfig.from_dict(card["config"])
    except (KeyError, TypeError) as error:
        raise store.StoreError(f"{folder} was made by another version of crat ({error})") from None


def build_model(config: RunConfig, n_classes: int | None = None) -> nn.Module:
    """The untrained network of a config, seeded by its seed.

    n_classes: another number than that of the data set's classes.
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


def part(tensors: dict[str, Tensor], name_of_part: str) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint, without the part's prefix."""
    return {
        name.split("/", 1)[1]: value
        for name, value in tensors.items()
        if name.startswith(name_of_part + "/")
    }


def first_per_class(y: Tensor, n: int) -> Tensor:
    """Places of the first n images of each class, in file order."""
    return torch.cat([(y == k).nonzero()[:n, 0] for k in y.unique()]).sort().values


def classes_in_turn(y: Tensor) -> Tensor:
    """The places of all images, the first of each class first, then the second of each ...: (N,) ->
    (N,).

    The first so many of them are spread evenly over the classes, and are among those of any longer
    choice.
    """
    by_class, counts = y.argsort(stable=True), y.bincount()
    turn = torch.empty_like(y)
    turn[by_class] = (
        torch.arange(len(y), device=y.device) - (counts.cumsum(0) - counts)[y[by_class]]
    )
    return (turn * len(counts) + y).argsort()


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

    class_values: what the method chose for each class in this epoch, (K,) each, a column each; its
    eps replaces the common one. accepted: whether the epoch entered a gated average.
    """
    n, clean, robust, loss = (
        getattr(stats, k).double().cpu() for k in ("n", "clean", "robust", "loss")
    )
    chosen = {name: value.double().cpu() for name, value in (class_values or {}).items()}
    gated = {} if accepted is None else {"accepted": accepted}
    return [
        {
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
        | {column: float(value[k]) for column, value in chosen.items()}
        | gated
        for k, name in enumerate(classes)
    ]
