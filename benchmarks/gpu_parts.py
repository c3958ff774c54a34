"""The four parts of gpu.py, each in a process of its own that gpu.py starts, watches and ends.

    python benchmarks/gpu_parts.py step --out FOLDER --until UNIX_TIME [--quick] [--cfa CLONE]

What is measured goes to FOLDER/PART.jsonl as it is measured (gpu_cells.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_cells import RUNS, Cell, Context, Notes, Record, run_cells
from gpu_step import step_cells
from measuring import parser
from outcome_log import last_outcomes
from subjects import grey_subject, trained
from torch import Tensor, nn

import crat
from crat import data, store
from crat.analysis import metrics
from crat.attacks.autoattack import AutoAttack
from crat.attacks.hunt import Hunted
from crat.attacks.judge import attacked_batches
from crat.batch.children import descendants, end_with_starter, kill
from crat.cli.recipes import recipe
from crat.config import ModelConfig, number
from crat.data import DataError
from crat.data.images import classes_in_turn
from crat.device import describe, pick_device, pick_dtype
from crat.nets import models
from crat.training.run import Run, card_config

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# images in a batch of AutoAttack, as an evaluation takes them
JUDGED_AT_ONCE = {"cpu": 500, "cuda": 2000}
# folders of tests that need no GPU, or a notebook, a browser, another package
TESTS_WITHOUT = ("analysis", "batch", "cli", "house", "papers", "plots", "store")
TESTS_WITH = ("house/test_bench_attacks.py", "house/test_bench_training.py")


def head(device: torch.device) -> Record:
    """What was measured on."""
    return {
        "device": describe(device),
        "torch": torch.__version__,
        "driver": driver(),
        "crat": version(),
        "python": sys.version.split()[0],
    }


def driver() -> str:
    """The GPU driver's version, or that there is none."""
    return said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "none"


def version() -> str:
    """The package's version, and the commit where git knows it."""
    commit = said_by("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    return f"{crat.__version__}, commit {commit or 'not known'}"


def said_by(*command: str) -> str:
    """The first line that a command prints; "" where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout.splitlines() or [""])[0].strip() if done.returncode == 0 else ""


# The tests


def files_of_tests(tests: Path = ROOT / "tests") -> list[str]:
    """The test files that need no notebook and may meet a GPU."""
    found = [tests / name for name in TESTS_WITH]
    for path in sorted(tests.glob("*/test_*.py")):
        if path.parent.name not in TESTS_WITHOUT:
            found.append(path)
    return [str(path) for path in found]


def tests_cells(here: Context) -> list[Cell]:
    """Two looks: all tests where the device is, then those that failed, without a GPU."""
    out = here.asked.out

    def first() -> Iterator[Record]:
        files = here.asked.tests or files_of_tests()
        if here.quick and not here.asked.tests:
            files = [str(ROOT / "tests" / "attacks" / "test_noise.py")]
        yield pytest(files, out / "tests_first.jsonl", 0.7 * here.left, gpu=True)

    def second() -> Iterator[Record]:
        outcomes = last_outcomes(out / "tests_first.jsonl")
        failed = [test for test, (outcome, _) in outcomes.items() if outcome == "failed" and test]
        if failed:
            yield pytest(failed, out / "tests_without_gpu.jsonl", here.left - 3, gpu=False)

    # pytest is ended by its own limit before the cell counts as hung
    return [Cell("all", here.left + 9, first), Cell("failed, without a GPU", here.left + 9, second)]


def pytest(tests: list[str], outcomes: Path, limit: float, gpu: bool) -> Record:
    """Runs tests in a session whose outcomes are noted as they come; ends it at its limit."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    paths = (str(ROOT), str(HERE), os.environ.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "--tb=short"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    command += ["--continue-on-collection-errors"]
    command += ["-p", "no:cacheprovider", "-p", "no:warnings", "-p", "no:nbval"]
    command += ["-p", "outcome_log", "--outcomes", str(outcomes)]
    workers = min(14, max(1, (os.cpu_count() or 1) - 1), len(tests))
    # a bare machine may lack pytest-xdist
    alone = said_by(sys.executable, "-c", "import xdist; print('here')") != "here"
    if not alone and workers > 1:
        command += ["-n", str(workers)]
    began = time.monotonic()
    session = subprocess.Popen(
        [*command, *tests], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL
    )
    ended = "it ended"
    try:
        session.wait(max(limit, 1))
    except subprocess.TimeoutExpired:
        ended = f"it was ended at its limit of {limit:.0f} s"
    finally:
        family = descendants(session.pid)
        session.kill()
        kill(family)
        session.wait()
    return {
        "device": str(pick_device()) if gpu else "cpu",
        "seconds": round(time.monotonic() - began, 1),
        "processes": 1 if alone else workers,
        "how": ended,
    }


# AutoAttack


class TimedPart(Hunted):
    """A part of a battery that adds the seconds of its runs, verdicts included, to `spent`."""

    def __init__(self, part: Hunted, name: str, spent: dict[str, float], device: torch.device):
        self.part, self.name, self.spent, self.device = part, name, spent, device

    def runs(self, n_classes: int) -> Iterator[Any]:
        """The part's own runs; a battery asks for the next when the verdict has been passed."""
        for run in self.part.runs(n_classes):
            began = now(self.device)
            try:
                yield run
            finally:
                self.spent[self.name] = self.spent.get(self.name, 0) + now(self.device) - began


def now(device: torch.device) -> float:
    """The time when the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class TimedAutoAttack(AutoAttack):
    """AutoAttack that adds the seconds of its parts to `spent`; quick: cut to next to nothing."""

    spent: dict[str, float] = field(default_factory=dict, compare=False, repr=False)
    device: torch.device = field(default=torch.device("cpu"), compare=False, repr=False)
    quick: bool = False

    def attacks(self, n_classes: int) -> dict[str, Hunted]:
        """The parts, timed."""
        parts = super().attacks(n_classes)
        if self.quick:
            parts = {name: shortened(part) for name, part in parts.items()}
        return {
            name: TimedPart(part, name, self.spent, self.device) for name, part in parts.items()
        }


def shortened(part: Any) -> Any:
    """The same attack with next to nothing to do."""
    few = {"steps": 3, "queries": 10, "targets": 2}
    fewer = {name: n for name, n in few.items() if getattr(part, name, 0) > n}
    return replace(part, **fewer)


class Judged(NamedTuple):
    """A trained network, the images and labels to attack it on, the radius, and what they are."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    what: str


def autoattack_cells(here: Context) -> list[Cell]:
    """The network is made ready once; then a battery for each number of images."""
    numbers = (8, 12) if here.quick else (1000, 2000)
    cells = [
        Cell("network", 1800 if here.quick else 90, lambda: iter([{"network": network(here).what}]))
    ]
    for n in numbers:
        cells.append(Cell(f"{n} images", here.left, battery(here, n), 1 if here.quick else 15))
    return cells


def battery(here: Context, n: int) -> Callable[[], Iterator[Record]]:
    """The work of a cell: AutoAttack standard on the first n images, one row a part."""

    def work() -> Iterator[Record]:
        model, x, y, eps, _ = network(here)
        x, y = x[:n], y[:n]
        spent: dict[str, float] = {}
        attack = TimedAutoAttack(eps, spent=spent, device=here.device, quick=here.quick)
        began = now(here.device)
        broken_by = []
        for judged in attacked_batches(
            model,
            x,
            y,
            attack,
            batch_size=JUDGED_AT_ONCE[here.device.type],
            dtype=pick_dtype("auto", here.device),
        ):
            assert judged.broken_by is not None
            broken_by.append(judged.broken_by)
        total = now(here.device) - began
        broken = torch.cat(broken_by).tolist()
        common = {"images": len(x), "eps": round(eps, 5)}
        for i, name in enumerate(attack.names):
            spent_here = spent.get(name)
            seconds_of = None if spent_here is None else round(spent_here, 2)
            yield {**common, "part": name, "seconds": seconds_of, "broke": broken.count(i)}
        rest = round(total - sum(spent.values()), 2)
        yield {**common, "part": "set-up and the rest", "seconds": rest, "broke": None}
        total = round(total, 2)
        yield {**common, "part": "all", "seconds": total, "broke": len(x) - broken.count(-1)}

    return work


def network(here: Context) -> Judged:
    """The network that --weights names, else the recipe's of this run, else one trained here."""
    made = here.asked.out / "autoattack.safetensors"
    colour = images_at_hand()
    if here.asked.weights:
        if colour is None:
            raise DataError("--weights is a network for CIFAR-10, which is not here (CRAT_DATA)")
        model = models.build(ModelConfig("preact_resnet18"), 10)
        models.load_checkpoint(model, here.asked.weights)
        return _on_cifar10(model, colour, here, str(here.asked.weights))
    if not here.quick and colour is not None and (run := recipe_run(here)):
        return _on_cifar10(run.model("best"), colour, here, f"the recipe's run {run.name}")
    if here.quick or colour is None or here.device.type == "cpu":
        grey = grey_subject(here.device, 4 if here.quick else None, 2 if here.quick else 165)
        what = "a small_cnn trained here on the shipped Fashion-MNIST, its answers as labels"
        return Judged(grey.model, grey.x, grey.y, grey.eps, what)
    updates, eps = 1000, 8 / 255
    if made.exists():
        model = models.build(ModelConfig("preact_resnet18"), 10)
        model.load_state_dict(store.read_tensors(made)[0])
    else:
        x, y = colour.x_train.to(here.device), colour.y_train.to(here.device)
        model = trained(ModelConfig("preact_resnet18"), x, y, eps, updates)
        tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
        store.write_tensors(made, tensors, {})
    return _on_cifar10(model, colour, here, f"PreActResNet-18 after {updates} updates here")


def _on_cifar10(model: nn.Module, images: data.Dataset, here: Context, what: str) -> Judged:
    model = model.to(here.device).eval()
    x, y = images.x_test.to(here.device), images.y_test.to(here.device)
    return Judged(model, x, y, 8 / 255, f"{what}, CIFAR-10")


def images_at_hand() -> data.Dataset | None:
    """CIFAR-10 where it is, split as the recipe splits it; else None. Nothing is fetched."""
    try:
        return data.load(recipe("fast").data)
    except DataError:
        return None


# The recipe


def recipe_cells(here: Context) -> list[Cell]:
    """A training by the command line, then its classes under AutoAttack."""
    return [
        Cell("train", here.left + 9, lambda: train(here)),
        Cell("judge", here.left + 9, lambda: judge(here), 1 if here.quick else 10),
    ]


def train(here: Context) -> Iterator[Record]:
    """`crat train --recipe fast`, cut to what fits."""
    judging = 0.3 * here.left
    limit = here.left - judging - 5
    settings = ["--recipe", "fast", "--progress", "line", "--seed", "0"]
    environment = os.environ | {"CRAT_RUNS": str(here.asked.out / RUNS)}
    paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if here.quick or here.device.type == "cpu" or images_at_hand() is None:
        settings += ["--data", "fashion_mnist_mini", "--model", "small_cnn"]
    if here.quick:
        settings += ["--train-per-class", "8", "--valid-per-class", "4", "--steps", "2"]
        settings += ["--width", "4", "--batch-size", "16", "--eps-warmup", "0"]
        environment["TORCHDYNAMO_DISABLE"] = "1"  # a compilation takes longer than all the rest
    epochs = epochs_that_fit(here, limit)
    settings += ["--epochs", str(epochs), "--max-minutes", f"{max(limit - 10, 1) / 60:.2f}"]
    command = [sys.executable, "-m", "crat", "train", *settings]
    began = time.monotonic()
    subprocess.run(
        command, cwd=ROOT, env=environment, check=True, timeout=limit, stdin=subprocess.DEVNULL
    )
    passed = time.monotonic() - began
    run = recipe_run(here)
    card = run.here.card() if run else {}
    yield {
        "command": "crat " + " ".join(command[3:]),
        "seconds": round(passed, 1),
        "epochs": f"{card.get('epochs_done')} of {epochs}",
        "of the recipe's": recipe("fast").train.epochs,
        "run": run.name if run else "",
        "best epoch": card.get("best", {}).get("epoch"),
    }


def epochs_that_fit(here: Context, limit: float) -> int:
    """Epochs of the recipe that fit, by the measured step, where it was; the recipe's at most."""
    whole = recipe("fast").train
    if here.quick or here.device.type == "cpu":
        return 1
    measured = Notes(here.asked.out / "step.jsonl").rows(
        side="crat", method="pgd_at", model="preact_resnet18"
    )
    by_batch = {row["batch"]: row["images/s"] for row in measured}
    rate = by_batch.get(whole.batch_size, max(by_batch.values(), default=5000))
    # set-up, capture or compilation; a validation and what else an epoch has
    training = max(limit - 30, 5)
    return max(1, min(whole.epochs, int(training * rate / (1.2 * 50_000))))


def recipe_run(here: Context) -> Run | None:
    """The run that the recipe part has trained, finished or not; None where there is none."""
    for card in (here.asked.out / RUNS).glob("*/card.json"):
        if (card.parent / "best.safetensors").exists():
            return Run(card_config(store.read_json(card), card.parent), card.parent)
    return None


def judge(here: Context) -> Iterator[Record]:
    """A row for each class: accuracy on clean images and under AutoAttack, on the test images."""
    run = recipe_run(here)
    if run is None:
        raise store.StoreError("the training left no weights")
    images = data.load(run.config.data).to(here.device)
    n = 10 if here.quick else 1000
    chosen = classes_in_turn(images.y_test)[:n]
    x, y = images.x_test[chosen], images.y_test[chosen]
    model = run.model("best", here.device)
    eps = radius_of(run)
    right = {}
    for name, attack in (
        ("clean %", None),
        ("AutoAttack %", TimedAutoAttack(eps, device=here.device, quick=here.quick)),
    ):
        batches = attacked_batches(
            model,
            x,
            y,
            attack,
            batch_size=JUDGED_AT_ONCE[here.device.type],
            dtype=pick_dtype("auto", here.device),
        )
        logits = torch.cat([batch.logits for batch in batches])
        right[name] = (logits.argmax(1) == y).cpu().numpy()
    labels = y.cpu().numpy()
    by_class = {
        name: 100 * metrics.class_accuracy(labels, correct, images.n_classes)
        for name, correct in right.items()
    }
    for k, name in enumerate(images.classes):
        row = {column: round(float(values[k]), 1) for column, values in by_class.items()}
        yield {"class": name, "images": int((labels == k).sum()), **row}
    for word, summary in (("average", "mean"), ("worst class", "min")):
        row = {name: round(float(getattr(v, summary)()), 1) for name, v in by_class.items()}
        yield {"class": word, "images": n, **row}


def radius_of(run: Run) -> float:
    """The radius that a run was trained with."""
    eps = run.config.resolved().train.eps
    assert eps is not None
    return number(eps)


PARTS = {
    "tests": tests_cells,
    "step": step_cells,
    "recipe": recipe_cells,
    "autoattack": autoattack_cells,
}


def main(asked: Namespace) -> None:
    """Runs the cells of one part that no earlier process has begun."""
    asked.out = asked.out.resolve()  # pytest and crat run in another folder
    asked.out.mkdir(parents=True, exist_ok=True)
    notes = Notes(asked.out / f"{asked.part}.jsonl")
    device = pick_device()
    if not any(record["kind"] == "head" for record in notes.read()):
        notes.write("head", **head(device))
    here = Context(asked, notes, device)
    run_cells(PARTS[asked.part](here), notes, asked.until, device)


if __name__ == "__main__":
    command = parser(__doc__)
    command.add_argument("part", choices=tuple(PARTS))
    command.add_argument("--out", type=Path, required=True, help="the folder of the results")
    command.add_argument("--until", type=float, required=True, help="when to end, in Unix time")
    command.add_argument("--cfa", type=Path, metavar="FOLDER", help="a clone of PKU-ML/CFA")
    command.add_argument("--weights", type=Path, metavar="FILE", help="of a PreActResNet-18")
    command.add_argument("--tests", nargs="*", metavar="TEST", help="instead of the chosen files")
    command.add_argument("--quick", action="store_true", help="next to nothing of everything")
    given = command.parse_args()
    end_with_starter()
    main(given)
