"""`crat reproduce`: the plan (which notebooks, which runs), the notebooks one after another, the report."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import crat
from crat import store
from crat.config import PROFILES, ConfigError, RunConfig
from crat.notebook import NotebookError, choose_parameters, declared, execute
from crat.originals import DataError, data_home
from crat.plans import LIVE, PLANS

if TYPE_CHECKING:  # torch and pandas take seconds to import: what is done already needs neither
    import torch

    from crat.run import Run

ROOT = Path(crat.__file__).parents[1]


@dataclass(frozen=True)
class Job:
    """A notebook, the parameters it is run with, the folder for all it writes, and the runs it will ask for."""

    notebook: Path
    folder: Path
    parameters: dict[str, Any]
    runs: dict[str, RunConfig]
    made_from: dict[str, Any]  # everything that decides the outcome, for the success record

    @property
    def output(self) -> Path:
        """The executed notebook."""
        return self.folder / self.notebook.name

    @property
    def record(self) -> dict[str, Any]:
        """What the success record says; {} where there is none."""
        path = self.folder / "success.json"
        return store.read_json(path) if path.exists() else {}

    @property
    def done(self) -> bool:
        """Whether it ran to its end from the same sources, and all it wrote is still there."""
        record = self.record
        same = record.get("made_from") == self.made_from
        return same and all((self.folder / name).exists() for name in record["files"])

    def perform(self) -> str:
        """Runs it anew; returns "" or what went wrong. The record is written after a clean return only."""
        for name in [*self.record.get("files", ()), "success.json", "claims.json"]:
            (self.folder / name).unlink(missing_ok=True)
        env = {  # absolute: the notebook works in its own folder
            "CRAT_FIGURES": str(self.folder.parent.absolute()),
            "CRAT_RUNS": str(store.home().absolute()),
            "CRAT_DATA": str(data_home().absolute()),
        }
        began = time.time()
        error = execute(self.notebook.absolute(), self.output.absolute(), self.parameters, env)
        if not error:
            written = [p for p in self.folder.rglob("*") if p.is_file() and p.stat().st_mtime > began - 2]
            files = sorted(str(p.relative_to(self.folder)) for p in written)
            record = {"made_from": self.made_from, "seconds": round(time.time() - began, 1), "files": files}
            store.write_json(self.folder / "success.json", record)
        return error


def run(
    numbers: Sequence[str] = (),
    profile: str = "quick",
    settings: Sequence[str] = (),
    *,
    recompute: bool = False,
    dry_run: bool = False,
    notebooks: Path = ROOT / "notebooks",
    figures: Path = ROOT / "figures",
) -> int:
    """Shows the plan, runs what of it is not done, reports; returns the exit code, 1 where a notebook failed.

    numbers: which notebooks ("01"; all where none is named). settings: parameters as "name=value".
    recompute: train everything again, in a store of its own; a recomputation that was stopped goes on.
    Raises ConfigError before anything runs on an unknown notebook, profile or parameter; NotebookError.
    """
    if profile not in PROFILES:
        raise ConfigError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    chosen = choose(notebooks, numbers)
    parameters = choose_parameters(chosen, profile, settings)
    again = _start_over(dry_run) if recompute else ""
    jobs = [_job(notebook, figures / profile, profile, parameters[notebook], again) for notebook in chosen]
    show_plan(jobs)
    sys.stdout.flush()
    if dry_run:
        return 0
    failed = [job for job in jobs if not job.done and not _performed(job)]
    if recompute and not failed:
        (store.home() / "unfinished").unlink()
    _report(jobs, figures / profile)
    if failed:
        print(f"failed: {', '.join(job.notebook.stem for job in failed)}")
    return 1 if failed else 0


def choose(notebooks: Path, numbers: Sequence[str]) -> list[Path]:
    """The notebooks NN_*.ipynb with these numbers (or names), in order; all of them where none is named."""
    if importlib.util.find_spec("papermill") is None:
        raise NotebookError("running notebooks needs papermill: pip install 'crat[notebooks]'")
    known = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not known:
        raise NotebookError(f"no notebooks in {notebooks}: they come with a clone of the repository")
    for number in numbers:
        if not any(number in (path.stem, path.stem[:2]) for path in known):
            raise ConfigError(f"no notebook {number!r}; known: {', '.join(path.stem for path in known)}")
    return [path for path in known if not numbers or path.stem in numbers or path.stem[:2] in numbers]


def _start_over(dry_run: bool) -> str:
    """Turns to the store of recomputed runs, emptied unless the last recomputation was stopped; returns its start."""
    home = store.home().absolute() / "recomputed"
    marker = home / "unfinished"
    began = marker.read_text() if marker.exists() else datetime.now().isoformat()
    if dry_run and not marker.exists():
        home = home / began  # nothing is there, as it will be
    elif not marker.exists():
        shutil.rmtree(home, ignore_errors=True)
        store.write_text(marker, began)
    os.environ.update(CRAT_RUNS=str(home), CRAT_RECOMPUTE="1")
    return began


def _job(notebook: Path, figures: Path, profile: str, parameters: dict[str, Any], again: str) -> Job:
    """A notebook's number says which runs it asks for."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    plan = PLANS.get(notebook.stem[:2])
    seed = parameters.get("seed", declared(notebook).get("seed", 0))
    made_from = {
        "notebook": store.digest([(cell["cell_type"], "".join(cell["source"])) for cell in cells]),
        "parameters": parameters,
        "package": store.digest([path.read_text(encoding="utf-8") for path in sorted((ROOT / "crat").rglob("*.py"))]),
        "results": store.digest(
            [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((ROOT / "results").rglob("*")) if p.is_file()]
        ),
        "recomputation": again,
    }
    return Job(notebook, figures / notebook.stem, parameters, plan(profile, seed) if plan else {}, made_from)


def show_plan(jobs: Sequence[Job]) -> None:
    """Prints what is done and what will be run, then the runs those ask for, with the time that training will take."""
    rows = [(job.notebook.stem, f"done: {shown(job.folder)}" if job.done else "to be run") for job in jobs]
    print(aligned(("notebook", "state"), rows), end="\n\n")
    configs = dict.fromkeys(config for job in jobs if not job.done for config in job.runs.values())
    if configs:
        _show_runs(configs, {c for j in jobs for key, c in j.runs.items() if key in LIVE.get(j.notebook.stem[:2], ())})


def _show_runs(configs: Iterable[RunConfig], live: set[RunConfig]) -> None:
    import torch

    from crat.device import describe, pick_device
    from crat.run import Run

    device = pick_device()
    rows, total = [], 0.0
    notes: list[str] = []
    measured: dict[RunConfig, float] = {}  # seconds an epoch, shared by runs that differ little
    for config in configs:
        state, epochs = _state(asked := Run.of(config, device), config in live)
        alike, cost = asked.config.but(seed=0, drop_classes=()), "-"
        if epochs:
            try:
                seconds = epochs * measured.setdefault(alike, measured.get(alike) or _measure_epoch(asked, device))
                total, cost = total + seconds, tqdm.format_interval(round(seconds))
            except DataError as error:
                cost = "no data"
                notes.append(str(error))
        rows.append((asked.name, state, cost))
    torch.cuda.empty_cache()  # what was measured with is the notebooks' now; does nothing without a GPU
    about = "at least" if notes else "about"
    rows.append(("all training", f"on {describe(device)}", f"{about} {tqdm.format_interval(round(total))}"))
    print(aligned(("run", "state", "training"), rows), *dict.fromkeys(notes), sep="\n", end="\n\n")


def _state(run: Run, live: bool) -> tuple[str, int]:
    """What is there of a run, in words, and how many epochs are left; live: its weights are needed."""
    if run.trained_here:
        return "cached", 0
    if run.published and not live:
        return f"read from results/{run.config.data.name}", 0
    done, epochs = run.here.card().get("epochs_done", 0), run.config.train.epochs
    return f"to be trained, from epoch {done + 1}" if done else "to be trained", epochs - done


def _measure_epoch(run: Run, device: torch.device) -> float:
    """Seconds an epoch takes, by one step and one attack on validation images in a batch as small as will tell."""
    import torch

    from crat.attacks.judge import as_images, attacked_logits
    from crat.train import Trainer

    trainer = Trainer(run, device)
    images, c = trainer.images, trainer.config
    generator = torch.Generator(device).manual_seed(0)
    trainer.judged.eval()

    def step(n: int) -> None:
        loss, _ = trainer.step(as_images(images.x_train[:n]), images.y_train[:n], 0.0, 1.0, generator)
        loss.item()  # waits for the device

    def judge(n: int) -> None:
        x, y = images.x_valid[:n], images.y_valid[:n]
        attacked_logits(trainer.judged, x, y, trainer.valid_attack, seed=0, dtype=c.dtype).sum().item()

    judged, most = len(images.x_valid) + c.trace_per_class * images.n_classes, min(c.batch_size, len(images.x_valid))
    return len(images.x_train) * _seconds_an_image(step, most) + judged * _seconds_an_image(judge, most)


def _seconds_an_image(work: Callable[[int], None], most: int) -> float:
    """The work of n images is timed for growing n until it takes long enough to be told from noise."""
    n = min(4, most)
    work(n)  # sets up
    while True:
        began = time.perf_counter()
        work(n)
        spent = time.perf_counter() - began
        if spent > 0.2 or n == most:
            return spent / n
        n = min(4 * n, most)


def _performed(job: Job) -> bool:
    began, error = time.monotonic(), job.perform()
    took = tqdm.format_interval(round(time.monotonic() - began))
    print(f"{job.notebook.stem}: " + (f"failed after {took}: {error}" if error else f"done in {took}"), flush=True)
    if error:
        print(f"  what it did until then: {shown(job.output)}")
    return not error


def _report(jobs: Sequence[Job], figures: Path) -> None:
    """Tells where the figures are, and the claims of all that is done: in the terminal, claims.csv and claims.md."""
    import pandas as pd

    from crat import claims

    for job in jobs:
        if job.done:
            n = Counter(Path(name).suffix for name in job.record["files"])
            print(f"{shown(job.folder)}: figures as {n['.png']} PNG, {n['.pdf']} PDF, {n['.csv']} CSV")
    folders = [path.parent for path in sorted(figures.glob("*/claims.json")) if (path.parent / "success.json").exists()]
    if not folders:
        print("no claims: none of the notebooks that are done makes any")
        return
    table = pd.concat([claims.read(folder / "claims.json").assign(notebook=folder.name) for folder in folders])
    short = {"statement": "claim", "number": "the paper's number", "value": "ours", "low": "low", "high": "high"}
    columns = ["notebook", "paper", "where", *short, "functional", "verdict", "setting", "p_holm", "detectable"]
    store.write_text(figures / "claims.csv", table[columns].rename(columns=short).to_csv(index=False))
    markdown = claims.markdown(table)
    store.write_text(figures / "claims.md", markdown)
    lines = [line for line in markdown.splitlines() if not line.startswith("|---")]
    cells = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    print("\n" + aligned(cells[0], cells[1:], (44, 14, 26, 11, 15)))
    print(f"claims: {shown(figures / 'claims.csv')} and claims.md")


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]], widest: Sequence[int] = ()) -> str:
    """A table for the terminal: columns two spaces apart, cells wrapped to `widest` (78 where it says nothing)."""
    table = [[str(cell) for cell in row] for row in (header, *rows)]
    limits = [*widest, *[78] * (len(header) - len(widest))]
    widths = [min(max(map(len, column)), limit) for column, limit in zip(zip(*table, strict=True), limits, strict=True)]
    lines = []
    for row in table:
        wrapped = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*wrapped, fillvalue=""):
            lines.append("  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip())
    return "\n".join(lines)


def shown(path: Path) -> str:
    """A path as a person would type it here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
