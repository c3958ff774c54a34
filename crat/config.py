"""The settings of a run as frozen dataclasses, and the profiles quick, laptop, gpu and paper.

A perturbation budget is stored as the papers write it ("8/255", "0.031"): these are different
numbers, and 0.0313725 in a card would hide which of them was meant. `number("8/255")` is the float.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from crat.data.registry import DATASETS, OWN, REGISTER
from crat.names import ConfigError, known_as, one_of, unknown

MODELS = (
    "small_cnn",
    "mnist_small_cnn",
    "lenet5",
    "preact_resnet18",
    "resnet18",
    "wrn_34_10",
    "resnet50",
)
HEADS = ("linear", "cosine", "hypersphere", "augmented")
SCHEDULES = ("piecewise", "one_cycle", "cosine", "constant")
AUGMENTATIONS = ("auto", "none", "crop", "crop_flip", "resized_crop")
AVERAGES = ("none", "ema_epoch", "ema_update", "swa", "fawa")
BATCH_NORMS = ("auto", "eval", "train", "moving")
DTYPES = ("auto", "float32", "bfloat16")
PROFILES = ("quick", "laptop", "gpu", "paper")


def number(text: str | float) -> float:
    """The float of a budget: "8/255" -> 8 / 255, "0.031" -> 0.031, 0.1 -> 0.1.

    Raises ConfigError on other text.
    """
    if isinstance(text, (int, float)):
        return float(text)
    try:
        above, _, below = text.partition("/")
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{text!r} is not a number: write 0.1 or 8/255") from None


def as_written(value: str | float) -> str:
    """The text of a budget in cards: 8 / 255 -> "8/255", 0.031 -> "0.031".

    A string stays as it is, without spaces. Raises ConfigError where it is no number.
    """
    if isinstance(value, str):
        number(value)  # raises ConfigError where it is no number
        return value.replace(" ", "")
    pixels = float(Fraction(value * 255).limit_denominator(8))
    if float(f"{value:.4g}") != value and pixels / 255 == value:
        return f"{pixels:g}/255"
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def is_path(name: str) -> bool:
    """Whether a data setting means images of one's own: a slash, .npz at the end, a folder here."""
    if known_as(name, DATASETS):
        return False
    return "/" in name or os.sep in name or name.endswith(".npz") or Path(name).is_dir()


def dataset_named(name: str) -> str:
    """The name of the data set that is meant; the images of a path are registered (crat.data.own).

    Raises ConfigError on an unknown name, crat.data.DataError where the images of a path cannot be
    used.
    """
    if isinstance(name, str) and is_path(name):
        return resolve_name(REGISTER)(name)
    if isinstance(name, str) and OWN.fullmatch(name) and name not in DATASETS:
        raise ConfigError(
            f"{name} are images of your own that the folder CRAT_DATA does not know: "
            "name them by their path once more"
        )
    return one_of("data set", name, DATASETS)


def _one_of(config: Any, what: str, setting: str, allowed: Collection[str]) -> None:
    object.__setattr__(config, setting, one_of(what, getattr(config, setting), allowed))


def _at_least(what: str, value: float, least: float) -> None:
    if not least <= value < float("inf"):
        finite = " and finite" if value == float("inf") else ""
        raise ConfigError(f"{what} must be at least {least:g}{finite}, not {value!r}")


def _floats(config: Any) -> None:
    """Turns integers in float fields into floats, so that 3 and 3.0 name one run."""
    for f in fields(config):
        value = getattr(config, f.name)
        if str(f.type).startswith("float") and isinstance(value, int):
            object.__setattr__(config, f.name, float(value))


@dataclass(frozen=True)
class DataConfig:
    """The images of a run; validation images are taken from each class of the training set first.

    Raises ConfigError on a setting that is unknown or out of range.
    """

    name: str = "fashion_mnist_mini"
    train_per_class: int | None = None  # None: all that validation leaves
    valid_per_class: int = 100
    # stratified (seeded) | first (CFA: the first valid_per_class of each class)
    split: str = "stratified"
    split_seed: int = 0
    # removed classes; the remaining labels are renumbered in order
    drop_classes: tuple[int, ...] = ()
    imbalance_ratio: float = 1.0  # n_max / n_min of an exponential long tail
    # auto (by data set), none | crop | crop_flip; of images in files none | resized_crop
    augment: str = "auto"
    padding: str = "reflect"  # reflect (CFA) | zero (TRADES)

    def __post_init__(self) -> None:
        _floats(self)
        object.__setattr__(self, "name", dataset_named(self.name))
        _one_of(self, "split", "split", ("stratified", "first"))
        _one_of(self, "augmentation", "augment", AUGMENTATIONS)
        _one_of(self, "padding", "padding", ("reflect", "zero"))
        _at_least("imbalance_ratio", self.imbalance_ratio, 1)
        _at_least("valid_per_class", self.valid_per_class, 1)
        _at_least("train_per_class", 1 if self.train_per_class is None else self.train_per_class, 1)
        _at_least("split_seed", self.split_seed, 0)
        object.__setattr__(self, "drop_classes", tuple(sorted(set(self.drop_classes))))

    def kept_classes(self) -> tuple[int, ...]:
        """The remaining labels, as in the whole data set.

        Raises ConfigError where fewer than two remain or drop_classes holds other labels.
        """
        n_classes = DATASETS[self.name].n_classes
        wrong = [k for k in self.drop_classes if not 0 <= k < n_classes]
        kept = tuple(k for k in range(n_classes) if k not in self.drop_classes)
        problem = f"{wrong} are not its labels" if wrong else "fewer than two classes would be left"
        if wrong or len(kept) < 2:
            allowed = f"among 0 to {n_classes - 1}"
            raise ConfigError(f"drop_classes of {self.name} must be {allowed}: {problem}")
        return kept


def images_of(name: str) -> DataConfig:
    """The usual settings of a data set's images, by its name or the path of images of your own.

    Of each class 100 images are for validation, of your own a fifth of the smallest class at most;
    all others are for training. Raises as `dataset_named`.
    """
    config = DataConfig(name)
    if not OWN.fullmatch(config.name):
        return config
    few = DATASETS[config.name].smallest_class // 5
    return replace(config, valid_per_class=max(1, min(config.valid_per_class, few)))


@dataclass(frozen=True)
class ModelConfig:
    """The network of a run; width and depth are the architecture's (None: its usual values).

    Raises ConfigError on a setting that is unknown or out of range.
    """

    name: str = "small_cnn"
    width: int | None = None
    depth: int | None = None
    head: str = "linear"
    scale: float | None = None  # s of a cosine or hypersphere head (None: 8, SPAT's; 15, HE's)
    extra_outputs: int = 0  # M of the augmented head, whose outputs are K + M

    def __post_init__(self) -> None:
        _floats(self)
        _one_of(self, "model", "name", MODELS)
        _one_of(self, "head", "head", HEADS)
        for name in ("scale", "extra_outputs"):
            _at_least(name, getattr(self, name) or 0, 0)


Options = tuple[tuple[str, Any], ...]


def _options(values: Options | dict[str, Any]) -> Options:
    """The pairs of name and value, sorted by name, so that their order does not name a run."""
    pairs = (
        values.items() if isinstance(values, dict) else ((name, value) for name, value in values)
    )
    return tuple(sorted((str(name), tuple(v) if isinstance(v, list) else v) for name, v in pairs))


@dataclass(frozen=True)
class TrainConfig:
    """The training of a run; None in eps, step_size and steps: the data set's protocol.

    Raises ConfigError on a setting that is unknown or out of range.
    """

    defense: str = "pgd_at"
    eps: str | float | None = None
    step_size: str | float | None = None
    steps: int | None = None
    # options of the method (crat.defenses), such as (("lambda_1", 0.5),); a dict will do
    options: Options = ()
    epochs: int = 4
    batch_size: int = 128
    lr: float = 0.1
    schedule: str = "one_cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    eps_warmup: int = 0  # epochs over which eps and step_size grow linearly to their value
    # none | ema_epoch (after each epoch: CFA) | ema_update (after each update) | swa | fawa (gated)
    average: str = "none"
    # None: 0.999 for ema_update, else 0.85^(200 / epochs): CFA's 0.85 in 200 epochs
    average_decay: float | None = None
    # number of first epochs that do not enter swa and fawa (None: half and a quarter of all)
    average_start: int | None = None
    # least validation accuracy of the worst class for fawa's gate (None: the median so far)
    fawa_threshold: float | None = None
    awp: float = 0.0  # gamma of adversarial weight perturbation; 0: none
    awp_warmup: int = 0  # number of first epochs without awp
    # BatchNorm's mode in the attack: eval | train | moving | auto (the mode of the method)
    batch_norm: str = "auto"
    seed: int = 0
    dtype: str = "auto"  # auto: bfloat16 autocast where the device multiplies it in hardware
    # test images per class whose logits, clean and under PGD, are stored after every epoch
    trace_per_class: int = 0
    # name of the finished run, of the same store or published with its network, whose best weights
    # this one starts from, or of the weights of a file (crat.training.keep_file); "": weights drawn
    # by the seed
    start_from: str = ""
    # the same of the network that a distillation learns from (crat.training.start); "": none
    teacher: str = ""

    def __post_init__(self) -> None:
        _floats(self)
        _one_of(self, "schedule", "schedule", SCHEDULES)
        _one_of(self, "average", "average", AVERAGES)
        _one_of(self, "dtype", "dtype", DTYPES)
        _one_of(self, "batch_norm", "batch_norm", BATCH_NORMS)
        _at_least("epochs", self.epochs, 1)
        _at_least("eps_warmup", self.eps_warmup, 0)
        _at_least("trace_per_class", self.trace_per_class, 0)
        _at_least("batch_size", self.batch_size, 1)
        for name in ("lr", "momentum", "weight_decay", "awp", "awp_warmup"):
            _at_least(name, getattr(self, name), 0)
        object.__setattr__(self, "options", _options(self.options))
        if self.steps is not None:
            _at_least("steps", self.steps, 1)
        for name in ("start_from", "teacher"):
            value = getattr(self, name)
            if Path(value).name != value:
                raise ConfigError(
                    f"{name} is the name of a run, or of a file's weights that "
                    f"crat.training.keep_file gives, not {value!r}"
                )
        if self.average_decay is not None and not 0 <= self.average_decay < 1:
            raise ConfigError(f"average_decay lies in [0, 1), not {self.average_decay!r}")
        if self.average_start is not None and not 0 <= self.average_start < self.epochs:
            raise ConfigError(
                f"average_start lies in [0, {self.epochs}), the epochs; not {self.average_start!r}"
            )
        if self.fawa_threshold is not None and not 0 <= self.fawa_threshold <= 1:
            raise ConfigError(
                f"fawa_threshold is an accuracy in [0, 1], not {self.fawa_threshold!r}"
            )
        for name in ("eps", "step_size"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_written(value))
                if not 0 <= number(value) <= 1:
                    raise ConfigError(f"{name} lies in [0, 1], such as 8/255, not {value!r}")

    @property
    def earlier(self) -> tuple[str, ...]:
        """The names of the runs, or of files' weights, that must be there before this training."""
        return tuple(dict.fromkeys(name for name in (self.start_from, self.teacher) if name))


@dataclass(frozen=True)
class RunConfig:
    """The settings of one trained model; the hash in a run's name is of the resolved settings."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def resolved(self) -> RunConfig:
        """The settings with the protocol's eps, step_size and steps in place of None."""
        protocol = DATASETS[self.data.name].protocol
        missing = {
            n: getattr(protocol, n)
            for n in ("eps", "step_size", "steps")
            if getattr(self.train, n) is None
        }
        return replace(self, train=replace(self.train, **missing))

    def but(self, **changes: Any) -> RunConfig:
        """A copy with changed fields of data, model or train: `config.but(eps="4/255", seed=1)`.

        data="cifar10" and model="resnet18" change the names of these parts. beta=3.0 sets the
        method's option "beta" and leaves its other options as they are.
        Raises ConfigError on an unknown field.
        """
        if "beta" in changes:
            options = dict(_options(changes.get("options", self.train.options)))
            changes["options"] = options | {"beta": number(changes.pop("beta"))}
        parts: dict[str, dict[str, Any]] = {"data": {}, "model": {}, "train": {}}
        for key, value in changes.items():
            part, name = self._locate(key)
            parts[part][name] = value
        return RunConfig(*(replace(getattr(self, part), **parts[part]) for part in parts))

    def _locate(self, key: str) -> tuple[str, str]:
        """The part and the field that a key of `but` means; "data" and "model": their names."""
        for part in ("data", "model", "train"):
            names = {f.name for f in fields(getattr(self, part))} - {"name"}
            if key in names:
                return part, key
            if key == part:  # data="cifar10", model="resnet18"
                return part, "name"
        known = [
            f.name
            for part in (self.data, self.model, self.train)
            for f in fields(part)
            if f.name != "name"
        ]
        raise ConfigError(unknown("setting", key, ["data", "model", "beta", *known]))

    def as_dict(self) -> dict[str, Any]:
        """The settings as nested dicts, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """The settings that `as_dict` wrote to JSON; cards of version 1 have beta as a field."""
        data = {**values["data"], "drop_classes": tuple(values["data"]["drop_classes"])}
        train = dict(values["train"])
        beta = train.pop("beta", COMMON_BETA)
        config = cls(DataConfig(**data), ModelConfig(**values["model"]), TrainConfig(**train))
        return config if beta == COMMON_BETA else config.but(beta=beta)


def profile(name: str) -> RunConfig:
    """The base run of a profile.

    quick: seconds, shipped images. laptop: minutes on a CPU. paper: CFA's setting. gpu: CFA's data,
    split, network, batches and highest rate, but 30 epochs of one cycle instead of 200.
    The profiles laptop and gpu fix the dtype, so that every machine finds the published runs;
    "auto" would not. Raises ConfigError on an unknown profile.
    """
    name = one_of("profile", name, PROFILES)
    if name == "quick":
        return RunConfig(train=TrainConfig(eps_warmup=1))
    if name == "laptop":
        data = DataConfig("fashion_mnist", train_per_class=2000, valid_per_class=200)
        train = TrainConfig(epochs=12, eps_warmup=2, dtype="bfloat16", trace_per_class=50)
        return RunConfig(data, train=train)
    train = TrainConfig(epochs=200, schedule="piecewise")
    if name == "gpu":
        train = TrainConfig(epochs=30, dtype="bfloat16")
    return RunConfig(DataConfig("cifar10", split="first"), ModelConfig("preact_resnet18"), train)


COMMON_BETA = 6.0  # of all methods, while beta was a field of TrainConfig
# methods whose beta was an option even then, because their default is another
ALWAYS_OPTION = ("frl",)


def different_from_default(config: RunConfig) -> dict[str, Any]:
    """The settings that differ from their defaults, for the hash in a run's name.

    A setting that is added later thus leaves the names of older runs as they are. So does the
    option beta: it is hashed as "train.beta", its field when the first runs were published.
    """
    parts = ((name, getattr(config, name)) for name in ("data", "model", "train"))
    changed = {
        f"{name}.{f.name}": getattr(part, f.name)
        for name, part in parts
        for f in fields(part)
        if getattr(part, f.name) != f.default
    }
    options = dict(config.train.options)
    if "beta" in options and config.train.defense not in ALWAYS_OPTION:
        changed["train.beta"] = options.pop("beta")
        changed["train.options"] = tuple(options.items())
    return {name: value for name, value in changed.items() if name != "train.options" or value}


@dataclass(frozen=True)
class Selection:
    """The data set, the seeds, further methods and a start of a plan, besides its profile.

    data: name of a data set; "": the profile's.
    seeds: of repeated runs; 0 must be among them, for it is the seed of runs that are not repeated.
    (): as many as the plan has for each.
    further: methods of notebook 06 besides its own, by name or as "file.py:Class".
    start_from: weights of yours that the runs of notebooks 01 and 05 start from, by the name that
    `crat.training.keep_file` gives; "": none.
    Raises ConfigError on an unknown data set or other seeds.
    """

    data: str = ""
    seeds: tuple[int, ...] = ()
    further: tuple[str, ...] = ()
    start_from: str = ""

    def __post_init__(self) -> None:
        if self.data:
            object.__setattr__(self, "data", dataset_named(self.data))
        if self.seeds and (0 not in self.seeds or min(self.seeds) < 0):
            given = " ".join(map(str, self.seeds))
            raise ConfigError(
                f"seeds are numbers, 0 among them for what is run once: 0 1 2, not {given}"
            )
        object.__setattr__(self, "seeds", tuple(sorted(set(self.seeds))))

    @classmethod
    def read(
        cls, data: str = "", seeds: str = "", further: str = "", start_from: str = ""
    ) -> Selection:
        """The selection in a notebook's parameters: seeds as "0 1 2", further methods as "a b"."""
        words = seeds.split()
        if not all(word.isdecimal() for word in words):
            raise ConfigError(
                f"seeds are numbers with spaces between them, such as 0 1 2, not {seeds!r}"
            )
        return cls(data, tuple(map(int, words)), tuple(further.split()), start_from)

    def repeated(self, usual: int) -> tuple[int, ...]:
        """The seeds of a run that is repeated: those selected, or as many as usual."""
        return self.seeds or tuple(range(usual))

    def on_data(self, base: RunConfig) -> RunConfig:
        """A plan's base run on the selected data set, with the same number of images per class."""
        if self.data in ("", base.data.name):
            return base
        if base.data.name == "fashion_mnist_mini" and base.data.train_per_class is None:
            base = base.but(train_per_class=800 - base.data.valid_per_class)  # it ships 800
        if OWN.fullmatch(self.data):  # their number of images is their own, too
            return replace(base, data=images_of(self.data))
        return base.but(data=self.data)
