"""`crat reproduce`: the plan (which notebooks, which runs, how long), the batch, the report."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crat import store
from crat.batch import jobs as batch
from crat.batch.executors import Local, Place, perform, slots
from crat.batch.jobs import ROOT, Entry, Job
from crat.batch.notebook import NotebookError
from crat.batch.parameters import choose_parameters, declared, from_file
from crat.batch.report import report
from crat.config import PROFILES, ConfigError, Selection
from crat.names import did_you_mean, one_of
from crat.store import Store
from crat.text import aligned, shown

AS_PLANNED = Selection()  # each plan's own data set, and the usual seeds


def run(
    numbers: Sequence[str] = (),
    profile: str | None = None,
    settings: Sequence[str] = (),
    *,
    selection: Selection = AS_PLANNED,
    parameters: Path | None = None,
    workers: int | None = None,
    dask: str | None = None,
    shard: str | None = None,
    recompute: bool = False,
    dry_run: bool = False,
    notebooks: Path = ROOT / "notebooks",
    figures: Path | None = None,
) -> int:
    """Shows the plan, does what of it is not done, reports.

    Returns the exit code, 1 where something failed. Raises ConfigError before anything runs on what
    is asked wrongly; NotebookError, ClusterError, StoreError.
    numbers: which notebooks (`choose`). profile: quick, unless the parameter file says more.
    settings: parameters as "name=value"; parameters: a YAML file of them. selection: the data set
    of all runs, and the seeds of those that are repeated. workers: processes at a time here; dask:
    a scheduler's address or file, which does the runs instead. shard: "i/n", this part of the runs
    and no notebook. recompute: train everything again, in a store of its own, where the same
    request goes on if it was stopped. figures: None is CRAT_FIGURES, else the checkout's own.
    """
    home = figures or store.figures_home()
    values = from_file(parameters) if parameters else {}
    profile = one_of("profile", profile or str(values.get("profile", "quick")), PROFILES)
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is at least 1, not {workers}")
    part = _part(shard) if shard else None
    chosen = choose(notebooks, numbers)
    asked = _asked(selection, recompute or bool(values.get("recompute")))
    given = choose_parameters(chosen, profile, settings, values, asked)
    fresh = Recomputation.of(profile, given) if "recompute" in asked else None
    again = fresh.began if fresh else ""
    jobs = [batch.job(path, home / profile, profile, given[path], again) for path in chosen]
    for job in jobs:
        _refuse_what_is_not_heeded(job, asked)
    place = fresh.start(dask, dry_run, part is not None) if fresh else Store.usual()
    left = [job for job in jobs if part or not job.is_done]
    runs = batch.entries(left, profile == "quick", place) if left else []
    left = batch.linked(left, runs)
    if part:
        runs = batch.share(runs, *part)
        jobs = left = []
    show_plan(jobs, runs, place, workers, timed=dry_run or not dask)
    sys.stdout.flush()
    if dry_run:
        return 0
    if not part:
        store.must_be_writable(home / profile, "CRAT_FIGURES")
    errors = _perform(runs, left, place, workers, dask)
    if not part:
        if fresh and not errors:
            fresh.marker.unlink(missing_ok=True)
        report(jobs, home / profile)
        if figures is None:
            _pages(home / profile, anew=bool(left))
    return _told(errors)


def choose(notebooks: Path, names: Sequence[str]) -> list[Path]:
    """The notebooks NN_*.ipynb of these numbers, names, or papers, in order; all without a name.

    A paper is called by a word of the file's name: "cfa", "tian2021", "tian".
    """
    if importlib.util.find_spec("papermill") is None:
        raise NotebookError("running notebooks needs papermill: pip install 'crat[notebooks]'")
    known = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not known:
        line = f"no notebooks in {notebooks}: they come with a clone of the repository"
        raise NotebookError(line)
    for name in names:
        if not any(_is_called(path, name) for path in known):
            near = did_you_mean(name, [word for p in known for word in (p.stem, *_words(p))])
            listed = ", ".join(path.stem for path in known)
            raise ConfigError(f"no notebook {name!r}; known: {listed}{near}")
    return [p for p in known if not names or any(_is_called(p, name) for name in names)]


def _is_called(path: Path, name: str) -> bool:
    """By the whole name or file, the number with or without its 0, or a word without the year."""
    name = name.lower()
    if name.endswith(".ipynb"):
        name = Path(name).stem
    by_number = name.isdecimal() and f"{int(name):02}" == path.stem[:2]
    return by_number or name in (path.stem.lower(), *_words(path))


def _words(path: Path) -> list[str]:
    """The short names of a notebook: 04, wei2023, cfa, wei."""
    words = path.stem.lower().split("_")
    return [*words, *(re.sub(r"\d{4}$", "", word) for word in words[1:])]


def _part(shard: str) -> tuple[int, int]:
    """ "2/8" as (2, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--shard is i/n with i from 1 to n, such as 1/4, not {shard!r}")
    return int(match[1]), int(match[2])


def _asked(selection: Selection, recompute: bool) -> dict[str, Any]:
    """What the flags --data, --seeds and --recompute say, as parameters of notebooks."""
    asked: dict[str, Any] = {}
    if selection.data:
        asked["data"] = selection.data
    if selection.seeds != AS_PLANNED.seeds:
        asked["seeds"] = " ".join(map(str, selection.seeds))
    if recompute:
        asked["recompute"] = True
    return asked


def _refuse_what_is_not_heeded(job: Job, asked: Mapping[str, Any]) -> None:
    """Another data set, other seeds, a recomputation must reach every run that is planned."""
    given = {**job.parameters, **asked}
    data = given.get("data")
    stray = {config.data.name for config in job.runs.values()} - {data}
    if data and stray:
        line = f"--data {data}: {job.name} has runs that stay on {', '.join(sorted(stray))}"
        raise ConfigError(line)
    seeds = {config.train.seed for config in job.runs.values()} - {job.parameters.get("seed", 0)}
    stray_seeds = seeds - {0, *map(int, given.get("seeds", "").split())}
    if given.get("seeds") and stray_seeds:
        listed = ", ".join(map(str, sorted(stray_seeds)))
        raise ConfigError(f"--seeds: {job.name} has runs of the seeds {listed}")
    unknown = sorted(asked.keys() - declared(job.notebook).keys())
    if job.runs and unknown:
        raise ConfigError(f"--{unknown[0]}: {job.name} has no parameter {unknown[0]}")


@dataclass(frozen=True)
class Recomputation:
    """A request to train everything again.

    marker: a file in its store, which is left until all of it is done. began: what it says.
    """

    place: Store
    marker: Path
    began: str

    @classmethod
    def of(cls, profile: str, given: Mapping[Path, dict[str, Any]]) -> Recomputation:
        """The request for these notebooks and parameters: new, or the one that was stopped."""
        place = Store(Store.recomputed().root.absolute())
        chosen = {path.stem: parameters for path, parameters in given.items()}
        marker = place.root / f"unfinished-{store.digest([profile, chosen])}"
        began = marker.read_text() if marker.exists() else datetime.now().isoformat()
        return cls(place, marker, began)

    def start(self, dask: str | None, dry_run: bool, part: bool) -> Store:
        """Its store, emptied unless this or another request is unfinished there.

        part: one shard of several, which empties nothing, for the others are at it. Raises
        ClusterError before anything is removed, StoreError where something cannot be.
        """
        root = self.place.root
        new = not self.marker.exists()
        others = [path for path in root.glob("unfinished-*") if path != self.marker]
        if new and others:
            again = f"remove {shown(others[0])} to train that again, too"
            line = f"another recomputation is unfinished, and what it trained is used: {again}"
            print(line, end="\n\n")
        empties = new and not others and not part
        if dry_run:
            return Store(root / self.began) if empties else self.place  # a folder that is not there
        if new:
            if dask:
                from crat.batch.cluster import Cluster

                Cluster(dask).close()
            if empties:
                self._empty()
            store.write_text(self.marker, self.began)
        return self.place

    def _empty(self) -> None:
        try:
            if self.place.root.exists():
                shutil.rmtree(self.place.root)
        except OSError as error:
            line = f"what was trained before cannot be removed: {error}"
            raise store.StoreError(line) from None


def show_plan(
    jobs: Sequence[Job],
    runs: Sequence[Entry],
    place: Store,
    workers: int | None,
    timed: bool = True,
) -> None:
    """Prints which notebooks are done, and which will be run after which runs.

    timed: and how long those take, as far as runs of their kind are known.
    """
    if jobs:
        rows = [(job.name, *_state(job)) for job in jobs]
        print(aligned(("notebook", "state", "last time"), rows), end="\n\n")
    left = [entry for entry in runs if entry.state]
    ready = len(runs) - len(left)
    if ready:
        n = sum(entry.published for entry in runs)
        print(f"{n} runs are read from results/, {ready - n} more are in the store", end="\n\n")
    if left and timed:
        _show_runs(left, place, workers)
    elif left:  # other machines do it
        rows = [(entry.run.name, " ".join(entry.notebooks), entry.state) for entry in left]
        print(aligned(("run", "for", "state"), rows, (72, 11)), end="\n\n")


def _state(job: Job) -> tuple[str, str]:
    state = f"done: {shown(job.folder)}" if job.is_done else "to be run"
    seconds = job.record.get("seconds")
    return state, tqdm.format_interval(round(seconds)) if seconds else "-"


def _show_runs(runs: Sequence[Entry], place: Store, workers: int | None) -> None:
    from crat.batch.estimates import Rates, lacking
    from crat.device import describe, pick_device

    device = describe(pick_device())
    rates = Rates(Store(place.root, store.published_home()), device)
    rows = []
    known = []
    of_devices = set()
    for entry in runs:
        takes = rates.of(entry.run.config, entry.epochs_left)
        if takes:
            known.append(takes[0])
            of_devices.add(takes[1])
        time = _duration(takes[0]) if takes else "not known"
        rows.append((entry.run.name, " ".join(entry.notebooks), entry.state, time))
    at_a_time = len(slots(workers))
    wall = max(*known, sum(known) / at_a_time) if known else 0.0
    least = "" if len(known) == len(runs) else "over "
    total = f"{least or 'about '}{_duration(wall)}" if known else "not known"
    rows.append(("all of it", "", f"{min(at_a_time, len(runs))} at a time on {device}", total))
    notes = dict.fromkeys(filter(None, (lacking(entry.run.config) for entry in runs)))
    print(aligned(("run", "for", "state", "takes"), rows, (72, 11)), *notes, sep="\n")
    if known:
        devices = " and ".join(sorted(of_devices))
        print(f"times of training, by finished runs of the same kind on {devices}")
    print()


def _told(errors: Mapping[str, str]) -> int:
    """The exit code."""
    if errors:
        print(f"failed: {', '.join(errors)}")
    return 1 if errors else 0


def _duration(seconds: float) -> str:
    if seconds < 2 * 86_400:
        return tqdm.format_interval(round(seconds))
    return f"{seconds / 86_400:.0f} days"


def _pages(folder: Path, anew: bool) -> None:
    """The report as pages, where something was run or they are missing; or what to install."""
    from crat.batch import site

    try:
        index = site.index_of(folder)
        if anew or not index.exists():
            site.build(folder.name, figures=folder.parent)
        print(f"report: {shown(index)}")
    except site.SiteError as error:
        print(error)


def _perform(
    runs: Sequence[Entry], left: Sequence[Job], place: Store, workers: int | None, dask: str | None
) -> dict[str, str]:
    """The runs that are no notebook's own, and the notebooks; returns what failed, and why."""
    if runs or left:
        store.must_be_writable(place.root, "CRAT_RUNS")
    here = Store(place.root.absolute(), place.published)
    tasks = [entry.task(here) for entry in runs if entry.state and not entry.live]
    if not tasks and not left:
        return {}
    local = Local(workers)
    runs_on: Place = local
    if dask and tasks:
        from crat.batch.cluster import Cluster

        runs_on = Cluster(dask, here.root)
    return perform([*tasks, *left], runs_on, local)
