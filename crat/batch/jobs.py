"""The tasks of a batch: notebooks, and the runs that they ask for, each run once.

A task knows the tasks that it needs (`needs`), those that it waits for without needing them
(`after`), and how it begins as a process. The store is the truth: what lies there is no task.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import crat
from crat import store
from crat.batch import notebook
from crat.batch.children import Child
from crat.batch.parameters import declared
from crat.config import RunConfig, Selection
from crat.data.files import data_home
from crat.store import Store
from crat.store.lease import Lease

if TYPE_CHECKING:  # torch takes seconds to import, which a worker of a cluster need not
    from crat.training.run import Run

ROOT = Path(crat.__file__).parents[1]


def plan_of(
    number: str, profile: str, seed: int, chosen: Selection
) -> tuple[dict[str, RunConfig], Sequence[str]]:
    """The runs of a notebook by key, and the keys whose networks it uses itself."""
    from crat.papers import LIVE, PLANS

    plan = PLANS.get(number)
    return plan(profile, seed, chosen) if plan else {}, LIVE.get(number, ())


@dataclass(frozen=True)
class RunTask:
    """A run that is to be trained, and judged by the standard battery.

    config: as JSON, its dtype resolved for the driver. place: its store, by absolute paths.
    """

    name: str
    config: dict[str, Any]
    place: Store
    needs: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    lease = None  # its worker takes one

    @property
    def steps(self) -> int:
        """The number of its epochs, and one step for judging."""
        return self.config["train"]["epochs"] + 1

    def done(self) -> int:
        """The number of epochs in the store."""
        with contextlib.suppress(store.StoreError, KeyError):
            return store.read_json(self.place.root / self.name / "card.json")["epochs_done"]
        return 0

    def shown(self) -> str:
        """The method, seed and epoch, for the bar."""
        train = self.config["train"]
        done = self.done()
        now = f"epoch {done + 1}/{train['epochs']}" if done < train["epochs"] else "judged"
        return f"{train['defense']}-s{train['seed']} {now}"

    def begin(self, env: Mapping[str, str]) -> Child:
        """Starts the worker of the run."""
        log = Path(tempfile.gettempdir()) / f"crat-{self.name}-{time.time_ns()}.log"
        published = str(self.place.published) if self.place.published else None
        job = {"config": self.config, "root": str(self.place.root), "published": published}
        where = {"CRAT_DATA": str(data_home().absolute())}
        return Child("crat.batch.worker", json.dumps(job), log, {**where, **env})

    def finish(self, child: Child) -> str:
        """The fault in a line, with the log where there is one; "" after a clean end."""
        error = child.fault()
        return error + (
            f" (log: {child.log} on {socket.gethostname()})" if child.log.exists() else ""
        )


@dataclass(frozen=True)
class Job:
    """A notebook with its parameters, the folder for its files, and the runs that it asks for.

    weights: keys of runs whose networks it uses itself. made_from: all that decides its outcome.
    """

    notebook: Path
    folder: Path
    parameters: dict[str, Any]
    runs: dict[str, RunConfig]
    made_from: dict[str, Any]
    weights: Sequence[str] = ()
    needs: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    began: list[float] = field(default_factory=list, compare=False)  # by time.monotonic
    before: dict[Path, int] = field(default_factory=dict, compare=False)  # `_files` at that time

    @property
    def name(self) -> str:
        """The name of the notebook."""
        return self.notebook.stem

    @property
    def number(self) -> str:
        """The number of the notebook, by which plans are known."""
        return self.notebook.stem[:2]

    @property
    def output(self) -> Path:
        """The executed notebook."""
        return self.folder / self.notebook.name

    @cached_property
    def lease(self) -> Lease:
        """The lease on the folder, so that two drivers do not write to it at once."""
        return Lease(self.folder)

    @property
    def record(self) -> dict[str, Any]:
        """The record of the last clean end; {} where there is none."""
        path = self.folder / "success.json"
        return store.read_json(path) if path.exists() else {}

    @property
    def is_done(self) -> bool:
        """Whether it ended cleanly from the same sources, and all its files are still there."""
        record = self.record
        same = record.get("made_from") == self.made_from
        return same and all((self.folder / name).exists() for name in record["files"])

    @property
    def steps(self) -> int:
        """The number of its cells."""
        return len(json.loads(self.notebook.read_text(encoding="utf-8"))["cells"])

    def done(self) -> int:
        """The number of cells that are done."""
        return min(self.steps, notebook.Progress.read(self.output).done)

    def shown(self) -> str:
        """The number of the notebook and its last printed line, for the bar."""
        return f"{self.number} {notebook.Progress.read(self.output).last_line[:40]}".strip()

    def begin(self, env: Mapping[str, str]) -> Child:
        """Starts the notebook anew, without the record and files of an earlier run."""
        for name in [*self.record.get("files", ()), "success.json", "claims.json"]:
            (self.folder / name).unlink(missing_ok=True)
        runs = store.home().absolute()  # absolute, as it works in its own folder
        where = notebook.folders_of_jupyter(runs) | {
            "CRAT_FIGURES": str(self.folder.parent.absolute()),
            "CRAT_RUNS": str(runs),
            "CRAT_DATA": str(data_home().absolute()),
        }
        self.began.append(time.monotonic())
        self.before.update(self._files())
        source = self.notebook.absolute()
        return notebook.start(source, self.output.absolute(), self.parameters, {**where, **env})

    def finish(self, child: Child) -> str:
        """The fault in a line, or "" after a clean end, which it records. Raises StoreError."""
        error = child.fault()
        if not error:
            self.lease.confirm()
            written = [path for path, ns in self._files().items() if self.before.get(path) != ns]
            record = {
                "made_from": self.made_from,
                "seconds": round(time.monotonic() - self.began[-1], 1),
                "files": sorted(str(path.relative_to(self.folder)) for path in written),
            }
            store.write_json(self.folder / "success.json", record)
        return error

    def _files(self) -> dict[Path, int]:
        """The files of the folder with their times, which are compared with each other only."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in files if path != self.lease.path}


Task = RunTask | Job


@dataclass
class Entry:
    """A run of the plan, with the numbers of the notebooks that ask for it."""

    run: Run
    notebooks: list[str] = field(default_factory=list)
    weights: bool = False  # its network is used itself: published outcomes are not enough
    live: bool = True  # trained in the notebook that shows it, as no other needs it before

    @property
    def published(self) -> bool:
        """Whether the published outcomes are enough."""
        return bool(self.run.published) and not self.weights

    @property
    def epochs_left(self) -> int:
        """The number of epochs to be trained."""
        epochs = self.run.config.train.epochs
        if self.run.trained_here or self.published:
            return 0
        return min(epochs, max(1, epochs - self.run.here.card().get("epochs_done", 0)))

    @property
    def state(self) -> str:
        """The work that remains, in words; "" for none."""
        if self.published:
            return ""
        epochs = self.run.config.train.epochs
        left = self.epochs_left
        if not left:
            return "" if self.live or self.judged else "to be judged"
        place = f" in notebook {self.notebooks[0]}" if self.live else ""
        begun = f", from epoch {epochs - left + 1}" if left < epochs else ""
        return f"to be trained{place}{begun}"

    @property
    def judged(self) -> bool:
        """Whether the outcomes that every notebook asks for are in the store, or published."""
        from crat.outcomes.evaluation import judged
        from crat.papers.common import usual_battery

        battery = usual_battery(self.run.config.data.name)
        return bool(self.run.published) or judged(self.run, battery)

    def task(self, place: Store) -> RunTask:
        """The run as a task."""
        return RunTask(self.run.name, self.run.config.as_dict(), place)


def job(path: Path, figures: Path, profile: str, parameters: dict[str, Any], again: str) -> Job:
    """A notebook as a task; its number decides which runs it asks for.

    again: the time at which a recomputation began that it is part of; "" for none.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    seed = parameters.get("seed", declared(path).get("seed", 0))
    chosen = Selection.read(parameters.get("data", ""), parameters.get("seeds", "0 1 2"))
    runs, weights = plan_of(path.stem[:2], profile, seed, chosen)
    made_from = {
        "notebook": store.digest([(cell["cell_type"], "".join(cell["source"])) for cell in cells]),
        "parameters": parameters,
        "runs": store.digest({key: config.as_dict() for key, config in runs.items()}),
        "package": _package(),
        "results": _results(),
        "recomputation": again,
    }
    return Job(path, figures / path.stem, parameters, runs, made_from, tuple(weights))


@cache
def _package() -> str:
    """The digest of the package's sources."""
    sources = sorted((ROOT / "crat").rglob("*.py"))
    return store.digest([path.read_text(encoding="utf-8") for path in sources])


@cache
def _results() -> str:
    """The digest of the published results."""
    files = [path for path in sorted((ROOT / "results").rglob("*")) if path.is_file()]
    return store.digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])


def entries(jobs: Iterable[Job], quick: bool, place: Store) -> list[Entry]:
    """The runs that notebooks ask for, each once and as a store has it, in the order of the plans.

    quick: live runs are trained by the notebook that shows them, epoch by epoch; in a larger
    profile they are tasks.
    """
    from crat.device import pick_device
    from crat.training.run import Run

    device = pick_device()
    by_name: dict[str, Entry] = {}
    for asking in jobs:
        for key, config in asking.runs.items():
            run = Run.of(config, device, place)
            entry = by_name.setdefault(run.name, Entry(run))
            needed = key in asking.weights
            entry.weights |= needed
            entry.live &= quick and (needed or key == "live")
            if asking.number not in entry.notebooks:
                entry.notebooks.append(asking.number)
    return list(by_name.values())


def linked(jobs: Sequence[Job], runs: Iterable[Entry]) -> list[Job]:
    """The notebooks, each needing those of its runs that are tasks.

    Of several notebooks that train the same live run, all but the first wait for the first.
    """
    left = [entry for entry in runs if entry.state]
    numbers = {j.number: j.name for j in reversed(jobs)}

    def link(asking: Job) -> Job:
        own = [entry for entry in left if asking.number in entry.notebooks]
        needs = frozenset(entry.run.name for entry in own if not entry.live)
        shown_in = {entry.notebooks[0] for entry in own if entry.live} - {asking.number}
        return replace(asking, needs=needs, after=frozenset(numbers[n] for n in shown_in))

    return [link(asking) for asking in jobs]


def share(runs: Sequence[Entry], i: int, n: int) -> list[Entry]:
    """Every n-th of the runs that are trained outside notebooks, from the i-th (1-based) on.

    The shares do not depend on what is done, so that all machines deal alike.
    """
    return [entry for entry in runs if not entry.published and not entry.live][i - 1 :: n]
