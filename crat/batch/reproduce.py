"""`crat reproduce`: the plan (notebooks, runs, times), the batch, the report."""

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
from crat.batch import plan as batch
from crat.batch.executors import Local, Place, gpu_line, perform, slots
from crat.batch.notebook import ROOT, NotebookError
from crat.batch.parameters import choose_parameters, declared, from_file
from crat.batch.plan import Entry
from crat.batch.report import report
from crat.batch.tasks import Job
from crat.config import PROFILES, ConfigError, Selection
from crat.names import did_you_mean, one_of
from crat.store import Store
from crat.text import aligned, shown

AS_PLANNED = Selection()  # each plan's own data set and seeds


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
    """Shows the plan, does the rest of it, and reports; returns the exit code, 1 after a fault.

    numbers: the notebooks (`choose`). profile: None is that of the parameter file, else quick.
    settings: parameters as "name=value"; parameters: a YAML file of them. selection: data set of
    all runs, seeds of repeated ones. workers: processes at a time here; dask: address or file of a
    scheduler that does the runs instead. shard: "i/n", a part of the runs and no notebook.
    recompute: trains all again in another store. figures: None is CRAT_FIGURES or the checkout's.
    Raises ConfigError before anything runs; NotebookError, ClusterError, StoreError.
    """
    home = figures or store.figures_home()
    values = from_file(parameters) if parameters else {}
    profile = one_of("profile", profile or str(values.get("profile", "quick")), PROFILES)
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is at least 1, not {workers}")
    part = _part(shard) if shard else None
    chosen = choose(notebooks, numbers)
    flags = _as_parameters(selection, recompute or bool(values.get("recompute")))
    given = choose_parameters(chosen, profile, settings, values, flags)
    fresh = Recomputation.of(profile, given) if "recompute" in flags else None
    began = fresh.began if fresh else ""
    jobs = [batch.job(path, home / profile, profile, given[path], began) for path in chosen]
    for job in jobs:
        _check_reach(job, flags)
    place = fresh.start(dask, dry_run, part is not None) if fresh else Store.usual()
    todo = [job for job in jobs if part or not job.is_done]
    runs = batch.entries(todo, profile == "quick", place) if todo else []
    todo = batch.linked(todo, runs)
    if part:
        runs = batch.share(runs, *part)
        jobs = todo = []
    show_plan(jobs, runs, place, workers, timed=dry_run or not dask)
    if dry_run:
        return 0
    if not part:
        store.must_be_writable(home / profile, "CRAT_FIGURES")
    errors = _perform(runs, todo, place, workers, dask)
    if not part:
        if fresh and not errors:
            fresh.marker.unlink(missing_ok=True)
        report(jobs, home / profile)
        if figures is None:
            _pages(home / profile, anew=bool(todo))
    if errors:
        print(f"failed: {', '.join(errors)}")
    return 1 if errors else 0


def choose(notebooks: Path, names: Sequence[str]) -> list[Path]:
    """The notebooks NN_*.ipynb of these numbers, names or papers, in order; without a name, all.

    A word of the file's name means a paper: "cfa", "tian2021", "tian". Raises ConfigError on an
    unknown name, NotebookError where papermill or the notebooks are missing.
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
            near = did_you_mean(name, [word for p in known for word in (p.stem, *_words(p))])
            listed = ", ".join(path.stem for path in known)
            raise ConfigError(f"no notebook {name!r}; known: {listed}{near}")
    return [p for p in known if not names or any(_is_called(p, name) for name in names)]


def _is_called(path: Path, name: str) -> bool:
    """Whether a name means a notebook: its file, its number with or without the 0, or a word."""
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
    """The numbers (2, 8) of a shard "2/8"; raises ConfigError."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--shard is i/n with i from 1 to n, such as 1/4, not {shard!r}")
    return int(match[1]), int(match[2])


def _as_parameters(selection: Selection, recompute: bool) -> dict[str, Any]:
    """The flags --data, --seeds, --defense, --start-from, --recompute as parameters, if given."""
    flags: dict[str, Any] = {}
    if selection.data:
        flags["data"] = selection.data
    if selection.seeds:
        flags["seeds"] = " ".join(map(str, selection.seeds))
    if selection.further:
        flags["further"] = " ".join(selection.further)
    if selection.start_from:
        flags["start_from"] = selection.start_from
    if recompute:
        flags["recompute"] = True
    return flags


def _check_reach(job: Job, flags: Mapping[str, Any]) -> None:
    """Raises ConfigError unless data set, seeds and recomputation reach every run of a notebook."""
    given = {**job.parameters, **flags}
    data = given.get("data")
    stray = {config.data.name for config in job.runs.values()} - {data}
    if data and stray:
        listed = ", ".join(sorted(stray))
        raise ConfigError(f"--data {data}: {job.name} has runs that stay on {listed}")
    seeds = {config.train.seed for config in job.runs.values()} - {job.parameters.get("seed", 0)}
    stray_seeds = seeds - {0, *map(int, given.get("seeds", "").split())}
    if given.get("seeds") and stray_seeds:
        listed = ", ".join(map(str, sorted(stray_seeds)))
        raise ConfigError(f"--seeds: {job.name} has runs of the seeds {listed}")
    unknown = sorted(flags.keys() - declared(job.notebook).keys())
    if job.runs and unknown:
        flag = {"further": "defense", "start_from": "start-from"}.get(unknown[0], unknown[0])
        raise ConfigError(f"--{flag}: {job.name} has no parameter {unknown[0]}")


@dataclass(frozen=True)
class Recomputation:
    """A request to train everything again.

    marker: a file in its store until all is done. began: the time in that file.
    """

    place: Store
    marker: Path
    began: str

    @classmethod
    def of(cls, profile: str, given: Mapping[Path, dict[str, Any]]) -> Recomputation:
        """The request for these notebooks and parameters: new, or stopped before and going on."""
        place = Store(Store.recomputed().root.absolute())
        chosen = {path.stem: parameters for path, parameters in given.items()}
        marker = place.root / f"unfinished-{store.digest([profile, chosen])}"
        began = (
            marker.read_text(encoding="utf-8") if marker.exists() else datetime.now().isoformat()
        )
        return cls(place, marker, began)

    def start(self, dask: str | None, dry_run: bool, part: bool) -> Store:
        """The store of the request, emptied unless this or another one is unfinished there.

        part: a shard, which empties nothing, as the others use the store. Raises ClusterError
        before anything is removed, StoreError where something cannot be removed.
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
    jobs: Sequence[Job], runs: Sequence[Entry], place: Store, workers: int | None, timed: bool
) -> None:
    """Prints the notebooks and the runs with their states.

    timed: with the times of the runs, as far as runs of their kind are known.
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
        _show_runs(left, place, workers, _all_small(runs))
    elif left:  # other machines do it
        rows = [(entry.run.name, " ".join(entry.notebooks), entry.state) for entry in left]
        print(aligned(("run", "for", "state"), rows, (72, 11)), end="\n\n")
    sys.stdout.flush()


def _all_small(runs: Sequence[Entry]) -> bool:
    """Whether several processes may share a GPU; a large run has it to itself, and with it all."""
    return all(entry.small for entry in runs)


def _state(job: Job) -> tuple[str, str]:
    state = f"done: {shown(job.folder)}" if job.is_done else "to be run"
    seconds = job.record.get("seconds")
    return state, tqdm.format_interval(round(seconds)) if seconds else "-"


def _show_runs(runs: Sequence[Entry], place: Store, workers: int | None, small: bool) -> None:
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
    at_a_time = len(slots(workers, small))
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


def _duration(seconds: float) -> str:
    if seconds < 2 * 86_400:
        return tqdm.format_interval(round(seconds))
    return f"{seconds / 86_400:.0f} days"


def _pages(folder: Path, anew: bool) -> None:
    """Builds the report as pages, where they are missing or old; else prints what to install."""
    from crat.batch import site

    try:
        index = site.index_of(folder)
        if anew or not index.exists():
            site.build(folder.name, figures=folder.parent)
        print(f"report: {shown(index)}")
    except site.SiteError as error:
        print(error)


def _perform(
    runs: Sequence[Entry], todo: Sequence[Job], place: Store, workers: int | None, dask: str | None
) -> dict[str, str]:
    """Does the notebooks, and the runs that none of them trains itself; returns faults by name."""
    if runs or todo:
        store.must_be_writable(place.root, "CRAT_RUNS")
    here = Store(place.root.absolute(), place.published)
    tasks = [entry.task(here) for entry in runs if entry.state and not entry.live]
    if not tasks and not todo:
        return {}
    local = Local(workers, _all_small(runs))
    if way := gpu_line(local.slots):
        print(way, end="\n\n", flush=True)
    runs_on: Place = local
    if dask and tasks:
        from crat.batch.cluster import Cluster

        runs_on = Cluster(dask, here.root)
    return perform([*tasks, *todo], runs_on, local)
