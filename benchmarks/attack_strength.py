"""The strength of our attacks beside the reference's: which images each attack leaves standing.

    # where pyautoattack, torchattacks and foolbox can be imported:
    python benchmarks/attack_strength.py record --weights FOLDER
    python benchmarks/attack_strength.py compare --weights FOLDER [--dtype bfloat16] [--out FILE]

Both skip what attack_strength.json holds already, so either may be killed and started again;
`--models` and `--attacks` take less of the plan. FOLDER holds the two foreign weights files named
in MODELS; the runs of the store are those of notebook 01. pyautoattack 0.2.0 is the reference: its
attacks are fra31/auto-attack's, line for line, apart from imports and logging. All libraries use
the standard version's settings unless SETTINGS says otherwise, and all are judged alike: an image
is broken by a float32 prediction that is wrong on a point inside ball and box.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from attack_libraries import LIBRARIES, SETTINGS, size, survivors
from torch import Tensor, nn

import crat
from crat import data, store
from crat.attacks.judge import REVISION
from crat.config import number
from crat.nets import models
from crat.papers.tian2021 import evidence_runs
from crat.training.run import Run

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "attack_strength.json"
SHIPPED = HERE.parent / "tests" / "fixtures" / "strength_net.safetensors"
STANDARD = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "autoattack")


@dataclass(frozen=True)
class Model:
    """A network whose weights do not change, and the first images of a test set."""

    name: str
    data: str
    images: int
    architecture: models.ModelConfig
    # a file under --weights, "" for the shipped net, or "run KEY" of notebook 01's laptop plan
    weights: str

    def file(self, folder: Path) -> Path:
        """Where the weights lie."""
        if self.weights.startswith("run "):
            return Run.of(evidence_runs("laptop")[self.weights[4:]]).folder / "best.safetensors"
        return folder / self.weights if self.weights else SHIPPED

    def load(self, folder: Path, images: int | None = None) -> tuple[nn.Module, Tensor, Tensor]:
        """The network in eval mode, its first images (N, C, H, W) in [0, 1] and labels (N,)."""
        whole = data.load(self.data)
        n = images or self.images
        model = models.build(self.architecture, whole.n_classes, whole.image_shape)
        if self.weights.startswith("run "):
            model.load_state_dict(store.read_tensors(self.file(folder))[0])
        else:
            models.load_checkpoint(model, self.file(folder))
        return model.eval(), whole.x_test[:n].float().div(255), whole.y_test[:n]


MODELS = {
    model.name: model
    for model in (
        Model("shipped", "fashion_mnist_mini", 200, models.ModelConfig("small_cnn", width=8), ""),
        Model(
            "mnist_lenet5", "mnist", 100, models.ModelConfig("lenet5"), "mnist_lenet5_advtrained.pt"
        ),
        Model(
            "fashion_pgd_at", "fashion_mnist", 100, models.ModelConfig("small_cnn"), "run pgd_at-s0"
        ),
        Model("cifar_resnet18", "cifar10", 24, models.ModelConfig("resnet18"), "model_test.pt"),
    )
}


@dataclass(frozen=True)
class Case:
    """A model under a threat: the reference's attacks, their seeds, those of other libraries."""

    model: str
    norm: str
    eps: str
    attacks: tuple[str, ...]
    seeds: int = 1
    torchattacks: tuple[str, ...] = ()
    foolbox: tuple[str, ...] = ()

    def attacks_of(self, library: str) -> tuple[str, ...]:
        """Ours are all that any library has run."""
        if library == "crat":
            return tuple(dict.fromkeys(self.attacks + self.torchattacks + self.foolbox))
        return self.attacks if library == "pyautoattack" else getattr(self, library)

    def seeds_of(self, library: str, attack: str) -> int:
        """How many seeds are run: one where nothing is drawn, and for a second library's attack.

        The latter is a cross-check only.
        """
        cross_check = library == "torchattacks" and attack in self.attacks
        return 1 if cross_check or attack in ("deepfool", "cw") else self.seeds


# in the order of what a recording that is cut short should have
PLAN = (
    Case(
        "shipped",
        "Linf",
        "0.1",
        (*STANDARD, "fab"),
        2,
        ("apgd-ce", "pgd-20"),
        ("pgd-20", "deepfool"),
    ),
    Case("shipped", "L2", "1.5", STANDARD[:-1], 2, (), ("pgd-20", "deepfool", "cw")),
    Case("cifar_resnet18", "Linf", "0.5/255", ("apgd-ce", "apgd-t")),
    Case("cifar_resnet18", "Linf", "1/255", ("apgd-ce", "apgd-t")),
    Case("cifar_resnet18", "Linf", "2/255", ("apgd-ce", "apgd-t")),
    Case(
        "mnist_lenet5",
        "Linf",
        "0.3",
        ("apgd-ce", "apgd-dlr", "apgd-t", "square"),
        2,
        ("pgd-20",),
        ("pgd-20",),
    ),
    Case("shipped", "L1", "5", ("apgd-ce", "apgd-dlr", "apgd-t", "square"), 2),
    Case("fashion_pgd_at", "Linf", "0.1", STANDARD),
)
REFERENCES = (
    "pyautoattack",
    "torchattacks",
    "foolbox",
)  # the first that has an attack is its reference


def packed(outcome: Tensor) -> str:
    """(N,) bool as hex digits, first image first."""
    return np.packbits(outcome.cpu().numpy()).tobytes().hex()


def unpacked(text: str, images: int) -> Tensor:
    """The inverse of `packed`."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=images)
    return torch.from_numpy(bits.astype(bool))


@dataclass(frozen=True)
class Job:
    """One attack of one library at one seed; its fields name the record."""

    model: str
    norm: str
    eps: str
    attack: str
    library: str
    seed: int
    dtype: str = "float32"  # of the search

    def run(self, folder: Path) -> dict:
        """The record: who, and per image whether it survived."""
        model, x, y = MODELS[self.model].load(folder)
        eps, began = number(self.eps), time.process_time()
        settings = {"dtype": self.dtype} if self.library == "crat" else {}
        x_adv = LIBRARIES[self.library](
            model, x, y, self.attack, self.norm, eps, self.seed, **settings
        ).detach()
        seconds = time.process_time() - began
        outcome = survivors(model, x, y, x_adv, self.norm, eps)
        return vars(self) | {
            "version": release(self.library),
            "images": len(x),
            "cpu_seconds": round(seconds, 1),
            "largest": float(f"{size(x_adv - x, self.norm).max().item():.7g}"),
            "robust_acc": round(outcome.double().mean().item(), 6),
            "robust": packed(outcome),
        }


def release(library: str) -> str:
    """Its version; ours with the revision of the attacks."""
    return (
        f"{crat.__version__}, attacks revision {REVISION}"
        if library == "crat"
        else version(library)
    )


def jobs(libraries: tuple[str, ...], dtype: str = "float32") -> Iterator[Job]:
    """The plan, the first seed of everything before the second."""
    for seed in range(max(case.seeds for case in PLAN)):
        for library in libraries:
            for case in PLAN:
                for attack in case.attacks_of(library):
                    if seed < case.seeds_of(library, attack):
                        yield Job(case.model, case.norm, case.eps, attack, library, seed, dtype)


def read() -> dict:
    """The committed file; an empty one where there is none."""
    return (
        store.read_json(RECORDS)
        if RECORDS.exists()
        else {"settings": {}, "weights": {}, "records": []}
    )


def job_of(record: dict) -> Job:
    """What a record is the result of."""
    return Job(**{name: record[name] for name in Job.__dataclass_fields__})


def write(kept: dict) -> None:
    """One line a record, so that a difference can be read."""
    lines = ",\n  ".join(json.dumps(record) for record in kept["records"])
    head = {name: value for name, value in kept.items() if name != "records"}
    store.write_text(
        RECORDS, json.dumps(head, indent=1)[:-2] + f',\n "records": [\n  {lines}\n ]\n}}\n'
    )


def record(todo: list[Job], folder: Path, again: bool = False) -> None:
    """Runs the jobs that the file does not hold in this library's version; writes after each."""
    for job in todo:
        old = {job_of(r): r["version"] for r in read()["records"]}
        if old.get(job) == release(job.library) and not again:
            continue
        weights = hashlib.sha256(MODELS[job.model].file(folder).read_bytes()).hexdigest()
        done = job.run(folder)
        kept = read()  # after the run, so that two processes may record side by side
        if kept["weights"].setdefault(job.model, weights) != weights:
            raise SystemExit(
                f"{MODELS[job.model].file(folder)} holds other weights than those of the records"
            )
        kept["settings"] = SETTINGS | {"torch": torch.__version__}
        kept["records"] = [r for r in kept["records"] if job_of(r) != job] + [done]
        write(kept)
        print(job, done["robust_acc"], f"{done['cpu_seconds']} s", flush=True)


@dataclass(frozen=True)
class Comparison:
    """Robust accuracies of the reference and of ours, one a seed, in [0, 1], on so many images.

    differ: on how many images two seeds of the reference disagree, on average. Two seeds make a
    poor estimate of a standard deviation; this one counts images: the difference of two runs has
    the variance `differ`, each run half.
    """

    reference: tuple[float, ...]
    ours: tuple[float, ...]
    images: int = 10_000
    differ: float = 0.0

    @property
    def verdict(self) -> str:
        """As strong, weaker or suspiciously strong.

        As strong is at most the reference's mean plus the largest of 0.2 points, one image, and two
        of its standard deviations.
        """
        spread = stdev(self.reference) if len(self.reference) > 1 else 0.0
        spread = max(spread, (self.differ / 2) ** 0.5 / self.images)
        difference = mean(self.ours) - mean(self.reference)
        if difference > max(0.002, 1 / self.images, 2 * spread) + 1e-9:
            return "weaker"
        return (
            "suspiciously strong"
            if difference < -max(0.01, 2 / self.images, 3 * spread) - 1e-9
            else "as strong"
        )


Key = tuple[str, str, str, str]  # model, norm, eps, attack


def by_library(records: list[dict], dtype: str) -> dict[Key, dict[str, list[float]]]:
    """Key -> library -> robust accuracies, one a seed; ours as found by a search in `dtype`."""
    found: dict[Key, dict[str, list[float]]] = {}
    for r in records:
        if r["library"] != "crat" or r["dtype"] == dtype:
            libraries = found.setdefault((r["model"], r["norm"], r["eps"], r["attack"]), {})
            libraries.setdefault(r["library"], []).append(r["robust_acc"])
    return found


def comparisons(records: list[dict], dtype: str = "float32") -> dict[Key, Comparison]:
    """Ours against the first of REFERENCES that has the attack."""
    pairs = {}
    for key, libraries in by_library(records, dtype).items():
        name = next((name for name in REFERENCES if name in libraries), None)
        if name and "crat" in libraries:
            fields = ("model", "norm", "eps", "attack")
            runs = [
                r
                for r in records
                if r["library"] == name and tuple(r[field] for field in fields) == key
            ]
            images = runs[0]["images"]
            outcomes = [unpacked(r["robust"], images) for r in runs]
            apart = [float((a != b).sum()) for a, b in combinations(outcomes, 2)]
            differ = mean(apart) if apart else 0.0
            pairs[key] = Comparison(
                tuple(libraries[name]), tuple(libraries["crat"]), images, differ
            )
    return pairs


def table(records: list[dict], dtype: str) -> str:
    """Markdown: one row an attack; in percent, mean and standard deviation over seeds."""

    def told(accuracies: list[float] | None) -> str:
        if not accuracies:
            return ""
        spread = f" ({100 * stdev(accuracies):.2f})" if len(accuracies) > 1 else ""
        return f"{100 * mean(accuracies):.2f}{spread}"

    lines = [
        f"Search in {dtype}. Robust accuracy in percent of the images, "
        "mean (standard deviation) over seeds.\n",
        f"| model | norm | eps | attack | {' | '.join(REFERENCES)} | crat | verdict |",
        f"|{'---|' * 9}",
    ]
    libraries, pairs = by_library(records, dtype), comparisons(records, dtype)
    for key, pair in pairs.items():
        columns = [told(libraries[key].get(name)) for name in (*REFERENCES, "crat")]
        lines.append(f"| {' | '.join([*key, *columns])} | {pair.verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Records the reference, or ours and then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument(
        "--weights", type=Path, required=True, help="the folder of the foreign weights files"
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--norms", nargs="+", default=["Linf", "L2", "L1"])
    parser.add_argument("--attacks", nargs="+", help="names of attacks; all if not given")
    parser.add_argument("--seeds", type=int, default=99, help="only the first so many")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of our search"
    )
    parser.add_argument("--again", action="store_true", help="run what is recorded once more")
    parser.add_argument("--out", type=Path, help="write the table here too")
    asked = parser.parse_args()
    ours = asked.what == "compare"
    todo = list(jobs(("crat",), asked.dtype) if ours else jobs(REFERENCES))
    todo = [job for job in todo if job.model in asked.models and job.norm in asked.norms]
    todo = [
        job
        for job in todo
        if job.seed < asked.seeds and job.attack in (asked.attacks or [job.attack])
    ]
    record(todo, asked.weights, asked.again)
    if ours:
        text = table(read()["records"], asked.dtype)
        print(text)
        if asked.out:
            store.write_text(asked.out, text)


if __name__ == "__main__":
    main()
