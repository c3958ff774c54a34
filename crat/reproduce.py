"""`crat reproduce`: the plan (which notebooks, which runs, what they take), the batch, the
report.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crat import batch, store
from crat.batch import ROOT, Entry, Job
from crat.config import PROFILES, ConfigError, Selection
from crat.executors import Local, Place, perform, shown
from crat.names import did_you_mean, one_of
from crat.notebook import NotebookError
from crat.parameters import choose_parameters, from_file
from crat.report import aligned, report

__all__ = ["aligned", "run", "shown"]


def run(
    numbers: Sequence[str] = (),
    profile: str | None = None,
    settings: Sequence[str] = (),
    *,
    selection: Selection | None = None,
    parameters: Path | None = None,
    workers: int | None = None,
    dask: str | None = None,
    shard: str | None = None,
    recompute: bool = False,
    dry_run: bool = False,
    notebooks: Path = ROOT / "notebooks",
    figures: Path | None = None,
) -> int:
    """Shows the plan, does what of it is not done, reports; returns the exit code, 1 where
    something failed.

    numbers: which notebooks (`choose`; all where none is named). profile: quick, unless the
    parameter file says more.
    settings: parameters as "name=value"; parameters: a YAML file of them. selection: another data
    set, other seeds.
    workers: processes at a time on this machine;
    dask: a scheduler's address or file, which does the runs instead. shard: "i/n", this part of the
    runs and no notebook. recompute: train everything again, in a store of its own; the same request
    goes on where it was stopped.
    figures: None is CRAT_FIGURES, else the checkout's own, where the pages are built, too.
    Raises ConfigError before anything runs on an unknown notebook, profile or parameter;
    NotebookError, ClusterError.
    """
    home = figures or store.figures_home()
    values = from_file(parameters) if parameters else {}
    profile = one_of("profile", profile or str(values.get("profile", "quick")), PROFILES)
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is at least 1, not {workers}")
    part = _part(shard, recompute) if shard else None
    chosen = choose(notebooks, numbers)
    given = choose_parameters(chosen, profile, settings, values)
    fresh = Recomputation.of(profile, given) if recompute else None
    again = fresh.began if fresh else ""
    jobs = [batch.job(path, home / profile, profile, given[path], again) for path in chosen]
    _refuse_what_is_not_heeded(jobs, selection or Selection())
    if fresh:
        fresh.start(dask, dry_run)
    left = jobs if part else [job for job in jobs if not job.is_done]
    runs = batch.entries(left, profile == "quick") if left else []
    runs, left = (batch.share(runs, *part), []) if part else (runs, batch.linked(left, runs))
    show_plan([] if part else jobs, runs, workers, timed=dry_run or not dask)
    sys.stdout.flush()
    if dry_run:
        return 0
    if not part:
        store.must_be_writable(home / profile, "CRAT_FIGURES")
    if runs or left:
        store.must_be_writable(store.home(), "CRAT_RUNS")
    errors = _perform(runs, left, workers, dask)
    if fresh and not errors:
        fresh.marker.unlink(missing_ok=True)
    if not part:
        report(jobs, home / profile)
        if figures is None:
            _pages(home / profile, anew=bool(left))
    if errors:
        print(f"failed: {', '.join(errors)}")
    return 1 if errors else 0


def choose(notebooks: Path, names: Sequence[str]) -> list[Path]:
    """The notebooks NN_*.ipynb of these numbers, names, or papers ("cfa", "tian2021", "tian"),
    in order; else all.
    """
    if importlib.util.find_spec("papermill") is None:
        raise NotebookError("running notebooks needs papermill: pip install 'crat[notebooks]'")
    known = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not known:
        raise NotebookError(
            f"no notebooks in {notebooks}: they come with a clone of the repository"
        )
    for name in names:
        if not any(_is_called(path, name) for path in known):
            near = did_you_mean(
                name, [word for path in known for word in (path.stem, *_words(path))]
            )
            raise ConfigError(
                f"no notebook {name!r}; known: {', '.join(path.stem for path in known)}{near}"
            )
    return [path for path in known if not names or any(_is_called(path, name) for name in names)]


def _is_called(path: Path, name: str) -> bool:
    """By the whole name or file, the number with or without its 0, or a word with or without the
    year.
    """
    name = Path(name).stem.lower() if name.lower().endswith(".ipynb") else name.lower()
    return name in (path.stem.lower(), *_words(path)) or (
        name.isdecimal() and f"{int(name):02}" == path.stem[:2]
    )


def _words(path: Path) -> list[str]:
    """What a notebook may be called in short: 04, wei2023, cfa, wei."""
    words = path.stem.lower().split("_")
    return [*words, *(re.sub(r"\d{4}$", "", word) for word in words[1:])]


def _part(shard: str, recompute: bool) -> tuple[int, int]:
    """ "2/8" as (2, 8)."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--shard is i/n with i from 1 to n, such as 1/4, not {shard!r}")
    if recompute:
        raise ConfigError(
            "--shard with --recompute: set CRAT_RECOMPUTE=1 and CRAT_RUNS to an empty folder "
            "instead"
        )
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class Recomputation:
    """A request to train everything again: its store, and its marker there, which is left until
    all of it is done.
    """

    home: Path
    marker: Path
    began: str

    @classmethod
    def of(cls, profile: str, given: Mapping[Path, dict[str, Any]]) -> Recomputation:
        """The request for these notebooks with these parameters: a new one, or the one that was
        stopped.
        """
        home = store.home().absolute() / "recomputed"
        chosen = {path.stem: parameters for path, parameters in given.items()}
        marker = home / f"unfinished-{store.digest([profile, chosen])}"
        return cls(
            home, marker, marker.read_text() if marker.exists() else datetime.now().isoformat()
        )

    def start(self, dask: str | None, dry_run: bool) -> None:
        """Turns to its store, emptied unless this or another request is unfinished there.

        Raises ClusterError before anything is removed, StoreError where something cannot be.
        """
        home, new = self.home, not self.marker.exists()
        others = [path for path in home.glob("unfinished-*") if path != self.marker]
        if new and others:
            again = f"remove {shown(others[0])} to train that again, too"
            print(
                f"another recomputation is unfinished, and what it trained is used: {again}",
                end="\n\n",
            )
        elif new and dry_run:
            home = home / self.began  # nothing is there, as it will be
        os.environ.update(CRAT_RUNS=str(home), CRAT_RECOMPUTE="1")
        if not new or dry_run:
            return
        if dask:
            from crat.cluster import Cluster

            Cluster(dask).close()
        try:
            if home.exists() and not others:
                shutil.rmtree(home)
        except OSError as error:
            raise store.StoreError(f"what was trained before cannot be removed: {error}") from None
        store.write_text(self.marker, self.began)


def _refuse_what_is_not_heeded(jobs: Sequence[Job], selection: Selection) -> None:
    """Another data set and other seeds must reach every run that is planned."""
    data, seeds = selection.data, set(selection.seeds)
    for job in jobs:
        data = job.parameters.get("data", "")
        seeds = set(map(int, job.parameters.get("seeds", "").split()))
        stray = {config.data.name for config in job.runs.values()} - {data}
        if data and stray:
            raise ConfigError(
                f"--data {data}: {job.name} has runs that stay on {', '.join(sorted(stray))}"
            )
        used = {config.train.seed for config in job.runs.values()} - {
            0,
            job.parameters.get("seed", 0),
        }
        if selection.seeds != Selection.seeds and used - seeds:
            raise ConfigError(
                f"--seeds: {job.name} has runs of the seeds "
                f"{', '.join(map(str, sorted(used - seeds)))}"
            )


def show_plan(
    jobs: Sequence[Job], runs: Sequence[Entry], workers: int | None, timed: bool = True
) -> None:
    """Prints which notebooks are done, which will be run after which runs; timed: and what those
    take here.
    """
    if jobs:
        rows = [(job.name, *_seen(job)) for job in jobs]
        print(aligned(("notebook", "state", "last time"), rows), end="\n\n")
    ready = [entry for entry in runs if not entry.state]
    if ready:
        published = sum(entry.published for entry in ready)
        print(
            f"{published} runs are read from results/, {len(ready) - published} more are in the "
            f"store",
            end="\n\n",
        )
    if len(ready) < len(runs):
        left = [entry for entry in runs if entry.state]
        if timed:
            _show_runs(left, workers)
        else:  # other machines do it
            rows = [(entry.run.name, " ".join(entry.notebooks), entry.state) for entry in left]
            print(aligned(("run", "for", "state"), rows, (72, 11)), end="\n\n")


def _seen(job: Job) -> tuple[str, str]:
    state = f"done: {shown(job.folder)}" if job.is_done else "to be run"
    seconds = job.record.get("seconds")
    return state, tqdm.format_interval(round(seconds)) if seconds else "-"


def _show_runs(runs: Sequence[Entry], workers: int | None) -> None:
    from crat.device import describe, pick_device
    from crat.estimates import SAID, estimate, lacking

    device, local = pick_device(), Local(workers)
    threads = int(local.slots[0].get("OMP_NUM_THREADS", 1))
    rows, total, longest, most = [], 0.0, 0.0, 0.0
    for entry in runs:
        cost = estimate(entry.run.config, device, threads)
        seconds = entry.epochs_left * cost.epoch + (0 if entry.live else cost.judging)
        total, longest, most = total + seconds, max(longest, seconds), max(most, cost.memory)
        took, memory = _duration(seconds), _gigabytes(cost.memory)
        rows.append((entry.run.name, " ".join(entry.notebooks), entry.state, took, memory))
    notes = dict.fromkeys(filter(None, (lacking(entry.run.config) for entry in runs)))
    wall = _duration(max(longest, total / local.workers))
    n = min(local.workers, len(runs))
    rows.append(
        (
            "all of it",
            "",
            f"{n} at a time on {describe(device)}",
            f"about {wall}",
            _gigabytes(n * most),
        )
    )
    print(aligned(("run", "for", "state", "takes", "memory"), rows, (72, 11)), *notes, sep="\n")
    print(f"times by the operations of the networks at the rate of {SAID}", end="\n\n")


def _pages(folder: Path, anew: bool) -> None:
    """The report as pages, where something was run or they are missing; says what to install
    where it cannot.
    """
    from crat import site

    index = folder / "index.html"
    # the leaderboard is of published runs, whatever was recomputed
    os.environ.pop("CRAT_RECOMPUTE", None)
    try:
        if anew or not index.exists():
            site.build(folder.name, figures=folder.parent)
        print(f"report: {shown(index)}")
    except site.SiteError as error:
        print(error)


def _duration(seconds: float) -> str:
    return (
        tqdm.format_interval(round(seconds))
        if seconds < 2 * 86_400
        else f"{seconds / 86_400:.0f} days"
    )


def _gigabytes(n: float) -> str:
    return f"{n / 1e9:.1f} GB"


def _perform(
    runs: Sequence[Entry], left: Sequence[Job], workers: int | None, dask: str | None
) -> dict[str, str]:
    """The runs that are no notebook's own, and the notebooks; returns what failed, and why."""
    tasks = [entry.task for entry in runs if entry.state and not entry.live]
    if not tasks and not left:
        return {}
    local = Local(workers)
    runs_on: Place = local
    if dask and tasks:
        from crat.cluster import Cluster

        runs_on = Cluster(dask)
    return perform([*tasks, *left], runs_on, local)
