"""The explorer of the report: two published runs side by side, class by class, image by image.

    results/ -> numbers.js, images/<data set>-<class>.png -> explorer.html (docs/site/explorer.md)

The page opens from the disk, without a server: what it reads is a script, since a page from the
disk may fetch nothing. `link` makes an address of the page; docs/site/explorer.md describes it.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crat import data, store
from crat.attacks.gradient import Attack
from crat.config import DATASETS, RunConfig
from crat.data.files import DataError
from crat.keys.identity import attack_identity
from crat.outcomes import margins
from crat.outcomes.batteries import (
    TEMPERATURES,
    protocol_pgd,
    standard_battery,
    strong_battery,
    temperature_battery,
)
from crat.outcomes.margins import Place
from crat.papers.all_methods import TRIED
from crat.training.named import label
from crat.training.run import card_config

PAGE = "explorer.html"
PLACE = Path("_static") / "explorer"  # of the page's files
LEVELS = 63  # of a margin, on each side of 0
# settings of an outcome that the page shows: any other value, or a further setting, is left out
SHOWN = {"split": "test", "which": "best", "seed": 0, "keep": None, "crafted_on": None}
FREE = {"name", "attack", "dtype", "first"}
AVERAGES = {"none": "none", "ema_update": "EMA", "ema_epoch": "EMA of epochs", "fawa": "FAWA"}
# shown unasked, where they are: the leaderboard's baseline, and methods for fairness
DEFAULTS = ("AT+EMA-s0", "WAT+EMA-s0", "CFA (AT)+EMA-s0", "CFA (AT)-s0")
SEEDS = 5  # the first ones of a method are shown; the page says nothing of a mean over seeds
COLUMNS = 40  # images in a row of a sprite
# The images that may be shipped: data set -> (where they are from, those that crat ships). The
# shipped ones are the first of each class, in the same order.
PICTURES = {
    "fashion_mnist": ("fashion_mnist", "fashion_mnist_mini"),
    "fashion_mnist_mini": ("fashion_mnist", "fashion_mnist_mini"),
}
NO_PICTURES = {"cifar10": "CIFAR-10's images are not crat's to ship: no pictures, numbers only."}


class Name(NamedTuple):
    """A run's name in the page's menus, whose parts `key` joins as in "AT+EMA-s0"."""

    method: str  # with the settings that are not its usual ones: "TRADES, beta 3.0"
    average: str  # of the weights
    seed: int
    own_average: bool  # whether it is the method's usual one

    @property
    def key(self) -> str:
        """The name in addresses: the leaderboard's name of the method, and the seed."""
        method, comma, settings = self.method.partition(", ")
        if not self.own_average:
            method += f"{' ' * method.endswith('+')}+{self.average}"
        return f"{method}{comma}{settings}-s{self.seed}"


class Answers(NamedTuple):
    """A run's predictions (n,) and margins (n,) on the first n images, under one attack."""

    prediction: NDArray
    margin: NDArray
    dtype: str  # of the search for the examples


@dataclass
class Shown:
    """A run of the page: its name, its folder's name and, by attack, its answers ("clean" too)."""

    name: Name
    run: str
    answers: dict[str, Answers] = field(default_factory=dict)


@dataclass
class Collection:
    """The runs of a data set, on the same test images with the labels y (N,)."""

    name: str
    classes: tuple[str, ...]
    y: NDArray
    runs: list[Shown]

    @property
    def attacks(self) -> list[str]:
        """The attacks under which two runs at least can be compared, the usual ones first."""
        met = Counter(attack for run in self.runs for attack in run.answers)
        return [name for name in offered(self.name).values() if met[name] > 1 and name != "clean"]


def link(
    dataset: str, a: str, b: str, attack: str = "", class_name: str = "", cell: str = ""
) -> str:
    """The address of a choice, from the report's first page: "explorer.html#data=...&a=...".

    a, b: runs, as the leaderboard names them with their seeds ("AT+EMA-s0"), or the last 16 digits
    of a run's folder. attack: such as "PGD-20" ("": the first that both have). class_name: opened.
    cell: "a:Coat" (where the left run answers coat), "b:Coat", "both", "a-only", "b-only" or
    "neither" (which run withstands). Nothing is checked here: of a choice that is not there, the
    page says so and shows its default.
    """
    asked = {"data": dataset, "attack": attack, "a": a, "b": b, "class": class_name, "cell": cell}
    parts = [f"{name}={quote(value, safe='+/:(),')}" for name, value in asked.items() if value]
    return f"{PAGE}#{'&'.join(parts)}"


@cache
def offered(dataset: str) -> dict[str, str]:
    """The attacks that the page may show: identity -> name, in the order of its menu."""
    pgd = protocol_pgd(dataset)
    usual = standard_battery(dataset)
    first = {name: attack for name, attack in usual.items() if name != "FGSM"}
    named: dict[str, Any] = {"clean": None, **first, **strong_battery(dataset), **usual}
    named |= {f"PGD-{2 * pgd.steps}": replace(pgd, steps=2 * pgd.steps)}
    named |= {f"PGD-{pgd.steps}, 3 starts": protocol_pgd(dataset, restarts=3)}
    named |= _temperatures(dataset, pgd.steps)
    names: dict[str, str] = {}
    for name, attack in named.items():
        names.setdefault(attack_identity(attack).text, name)
    return names


def _temperatures(dataset: str, steps: int) -> dict[str, Attack]:
    battery = temperature_battery(dataset, (*TEMPERATURES, 4.0, 8.0))
    return {f"PGD-{steps}, {name.replace('=', ' = ')}": a for name, a in battery.items()}


def collect(results: Path | None = None) -> list[Collection]:
    """The published runs of each data set, Fashion-MNIST first; none where nothing is published.

    Runs that are shown answer all classes of their data set, which are fewer than 255.
    results: (None: the package's own).
    Raises StoreError where a file is not as it was published, or contradicts itself.
    """
    top = results or store.published_home()
    names = sorted({card.parents[1].name for card in top.glob("*/*/card.json")})
    names.sort(key=lambda name: name != "fashion_mnist")
    small = [name for name in names if name in DATASETS and DATASETS[name].n_classes < 255]
    found = [_collection(top / name) for name in small]
    return [collection for collection in found if collection.attacks]


def _collection(folder: Path) -> Collection:
    """The runs of a data set's folder in results/."""
    cards = {card.parent: _card(card.parent) for card in sorted(folder.glob("*/card.json"))}
    configs = {run: card_config(card, run) for run, card in cards.items()}
    classes = DATASETS[folder.name].classes
    whole = {run: c for run, c in configs.items() if tuple(cards[run]["classes"]) == classes}
    kept = {run: config for run, config in whole.items() if config.train.seed < SEEDS}
    attacks = offered(folder.name)
    y = np.zeros(0, int)
    runs = []
    for run, name in _names(kept).items():
        labels, answers = _answers(run, attacks)
        if not np.array_equal(labels[: len(y)], y[: len(labels)]):
            raise store.StoreError(f"{run} was judged on other images than the runs beside it")
        y = max(y, labels, key=len)
        if len(answers) > 1:
            runs.append(Shown(name, run.name, answers))
    return Collection(folder.name, classes, y, sorted(runs, key=lambda shown: _order(shown.name)))


def _card(run: Path) -> dict[str, Any]:
    path = store.published_file(run, "card.json")
    assert path
    return store.read_json(path)


def _answers(run: Path, attacks: Mapping[str, str]) -> tuple[NDArray, dict[str, Answers]]:
    """A run's labels, and its answers by attack: of several outcomes, the one of most images.

    Of two of as many, the one whose examples were searched in float32.
    """
    labels = np.zeros(0, int)
    answers: dict[str, Answers] = {}
    for place, meta in margins.metas(run).items():
        known = all(meta.get(key, "") == value for key, value in SHOWN.items())
        if meta.get("attack") not in attacks or not known or meta.keys() - SHOWN.keys() - FREE:
            continue
        name = attacks[meta["attack"]]
        y, found = _read(run, place, meta)
        labels = max(labels, y, key=len)
        if name not in answers or _rank(found) > _rank(answers[name]):
            answers[name] = found
    return labels, dict(sorted(answers.items())) if "clean" in answers else {}


def _rank(answers: Answers) -> tuple[int, bool]:
    return len(answers.prediction), answers.dtype == "float32"


def _read(run: Path, place: Place, meta: dict[str, Any]) -> tuple[NDArray, Answers]:
    """The labels and answers of an outcome, with logits or without, after its checks."""
    store.published_file(run, place.path.relative_to(run).as_posix())
    arrays = margins.answers(place, meta)
    dtype = "float32" if meta["attack"] == "None" else meta["dtype"]
    return arrays["y"].astype(int), Answers(arrays["prediction"], arrays["margin"], dtype)


# --- names ---


def _names(configs: Mapping[Path, RunConfig]) -> dict[Path, Name]:
    """The names of the runs of a data set, no two alike."""
    networks = Counter(config.model.name for config in configs.values())
    lengths = Counter(config.train.epochs for config in configs.values())
    sizes = Counter(config.data.train_per_class for config in configs.values())
    usual = _most(networks, ""), _most(lengths, 0), _most(sizes, None)
    names = {run: _name(config, *usual) for run, config in configs.items()}
    times = Counter(names.values())
    for run, name in names.items():
        if times[name] > 1:
            names[run] = name._replace(method=f"{name.method}, {run.name[-6:]}")
    return names


def _most(counts: Counter[Any], none: Any) -> Any:
    """What is there most often; none: where nothing is."""
    return max(counts, key=lambda value: counts[value], default=none)


def _name(config: RunConfig, usual_network: str, usual_epochs: int, usual_size: int | None) -> Name:
    head, *settings = label(config).split(", ")
    method, plus, _ = head.partition(" + ")
    settings = [re.sub(r"^start_from \S+-(\w+)-s\d+-\w+$", r"from \1", s) for s in settings]
    settings = [s for s in settings if not s.startswith(("average_decay", "teacher"))]
    known = _papers_names()
    whole = known.get((method, *settings))
    parts = [whole] if whole else [known.get((method,), method), *settings]
    if config.model.name != usual_network:
        parts.append(config.model.name)
    size = config.data.train_per_class
    if size and size != usual_size:
        parts.append(f"{size} images of a class")
    if config.train.epochs != usual_epochs:
        parts.append(f"{config.train.epochs} epochs")
    average = AVERAGES.get(config.train.average, config.train.average)
    return Name(", ".join(parts), average, config.train.seed, own_average=not plus)


@cache
def _papers_names() -> dict[tuple[str, ...], str]:
    """The leaderboard's names, without averages: crat's words for a method and settings -> name."""
    names = {}
    for name, changes in TRIED.items():
        head, *settings = label(RunConfig().but(**changes)).split(", ")
        names[head.partition(" + ")[0], *settings] = re.sub(r" ?\+EMA$", "", name)
    return names


def _order(name: Name) -> tuple[Any, ...]:
    """Methods as in the leaderboard, without further settings first; seeds together."""
    method, _, settings = name.method.partition(", ")
    known = list(_papers_names().values())
    place = known.index(method) if method in known else len(known)
    return bool(settings), place, name.method, name.average != "none", name.average, name.seed


# --- files ---


def write_numbers(html: Path, results: Path | None = None) -> None:
    """Writes what the page shows into the pages' folder: numbers.js and the images' sprites.

    results: as in `collect`, which also says what is raised.
    """
    collections = collect(results)
    folder = html / PLACE
    sources = {c.name: PICTURES[c.name] for c in collections if c.name in PICTURES}
    drawn = {pair: write_images(folder / "images", *pair) for pair in sorted(set(sources.values()))}
    drawn_of = {name: drawn[pair] for name, pair in sources.items()}
    numbers = {c.name: packed(c) | {"images": drawn_of.get(c.name, [])} for c in collections}
    text = json.dumps(numbers, separators=(",", ":"))
    store.write_text(folder / "numbers.js", f"window.CRAT_NUMBERS = {text};\n")


def packed(shown: Collection) -> dict[str, Any]:
    """A data set as the page reads it.

    Its arrays are one string: gzip, in base64, of uint8 labels (N,), then the n predictions of each
    outcome (uint8: 0 where right, else the class + 1), then the n margins of each (int8 q, which
    stands for sign(q) (q / LEVELS)^2 times the run's largest margin; less those of the run's last
    outcome of n images, modulo 256). Like stands beside like, because that compresses better.
    """
    predictions, levels = [], []
    runs = []
    at = len(shown.y)
    for run in shown.runs:
        outcomes = {}
        largest = max(float(np.abs(a.margin).max()) for a in run.answers.values()) or 1.0
        before: dict[int, NDArray] = {}  # n -> the margins of the run's last outcome of n images
        for attack, answers in run.answers.items():
            n = len(answers.prediction)
            outcomes[attack] = {"at": at, "n": n, "dtype": answers.dtype}
            predictions.append(_coded(answers.prediction, shown.y[:n]))
            quantised = _quantised(answers.margin, largest)
            levels.append(quantised - before.get(n, np.int8(0)))
            before[n] = quantised
            at += n
        name = run.name
        row: dict[str, Any] = {"key": name.key, "method": name.method, "average": name.average}
        row |= {"seed": name.seed, "run": run.run, "largest": largest}
        runs.append(row | {"outcomes": outcomes})
    arrays = [shown.y.astype(np.uint8), *predictions, *levels]
    text = base64.b64encode(gzip.compress(b"".join(a.tobytes() for a in arrays), mtime=0))
    return {
        "classes": shown.classes,
        "attacks": shown.attacks,
        "default": _default(shown.runs),
        "levels": LEVELS,
        "margins_after": at - len(shown.y),  # from an outcome's predictions to its margins
        "no_images": NO_PICTURES.get(shown.name, "The images of this data set are not shipped."),
        "runs": runs,
        "arrays": text.decode(),
        "n": len(shown.y),
    }


def _coded(prediction: NDArray, y: NDArray) -> NDArray:
    return np.where(prediction == y, 0, prediction + 1).astype(np.uint8)


def _quantised(margin: NDArray, largest: float) -> NDArray:
    """Margins in LEVELS steps, finest near 0, where they decide."""
    root = np.sqrt(np.abs(margin.astype(float)) / largest)
    return (np.sign(margin.astype(float)) * np.round(LEVELS * root)).astype(np.int8)


def _default(runs: Sequence[Shown]) -> list[str]:
    """The two runs that the page shows unasked."""
    keys = [run.name.key for run in runs]
    return list(dict.fromkeys([*(key for key in DEFAULTS if key in keys), *keys]))[:2]


def write_images(folder: Path, dataset: str, shipped: str) -> list[dict[str, Any]]:
    """Writes a sprite of the test images of each class, in 16 greys; a row for each class.

    Rows: file, images (their number), columns, side (pixels). Where the files of the data set are
    not on this machine, only the images that crat ships are drawn: the first of each class.
    """
    try:
        images = data.load(dataset)
    except DataError:
        images = data.load(shipped)
    assert isinstance(images.x_test, Tensor)  # those of PICTURES fit the memory
    x = images.x_test.numpy()[:, 0]
    y = images.y_test.numpy()
    rows = []
    for k in range(len(images.classes)):
        name = f"{dataset}-{k}.png"
        own = x[y == k]
        with store.written_whole(folder / name) as temporary:
            temporary.write_bytes(_png(_tiled(own)))
        side = own.shape[1]
        rows.append({"file": name, "images": len(own), "columns": COLUMNS, "side": side})
    return rows


def _tiled(images: NDArray) -> NDArray:
    """Images (n, S, S) as one (rows S, COLUMNS S), row by row."""
    n, side, _ = images.shape
    rows = -(-n // COLUMNS)
    whole = np.zeros((rows * COLUMNS, side, side), np.uint8)
    whole[:n] = images
    tiles = whole.reshape(rows, COLUMNS, side, side)
    return tiles.transpose(0, 2, 1, 3).reshape(rows * side, COLUMNS * side)


def _png(image: NDArray) -> bytes:
    """A uint8 image (H, W), W even, as a PNG of 16 greys."""
    height, width = image.shape
    greys = (image.astype(int) + 8) // 17
    pairs = (greys[:, ::2] << 4 | greys[:, 1::2]).astype(np.uint8)
    lines = np.pad(pairs, ((0, 0), (1, 0)))  # each line begins with its filter, 0: none
    head = struct.pack(">2I5B", width, height, 4, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        png += struct.pack(">I", len(content)) + kind + content
        png += struct.pack(">I", zlib.crc32(kind + content))
    return png
