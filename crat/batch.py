"""The batch: notebooks and the runs they ask for, a graph in which a run that many ask for is one
task.

A task knows what must be done before it (`needs`), what it waits for without needing it (`after`),
and how it is begun as a process. The store is the truth: whatever lies there is no task.
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
from crat import notebook, store
from crat.children import Child
from crat.config import RunConfig
from crat.data.files import data_home
from crat.store.lease import Lease

if TYPE_CHECKING:  # torch takes seconds to import, which a worker of a cluster need not
    from crat.training.run import Run

ROOT = Path(crat.__file__).parents[1]


@dataclass(frozen=True)
class RunTask:
    """One run to be trained and judged by the standard battery; config: as JSON, dtype resolved
    for the driver.
    """

    name: str
    config: dict[str, Any]
    folder: Path
    needs: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()

    @property
    def steps(self) -> int:
        """Its epochs, and one step for judging."""
        return self.config["train"]["epochs"] + 1

    def done(self) -> int:
        """The epochs that are in the store."""
        with contextlib.suppress(store.StoreError, KeyError):
            return store.read_json(self.folder / "card.json")["epochs_done"]
        return 0

    def shown(self) -> str:
        """For the bar: method, seed and epoch."""
        train, done = self.config["train"], self.done()
        what = f"epoch {done + 1}/{train['epochs']}" if done < train["epochs"] else "judged"
        return f"{train['defense']}-s{train['seed']} {what}"

    def begin(self, env: Mapping[str, str]) -> Child:
        """Starts its worker."""
        log = Path(tempfile.gettempdir()) / f"crat-{self.name}-{time.time_ns()}.log"
        where = {"CRAT_RUNS": str(self.folder.parent), "CRAT_DATA": str(data_home().absolute())}
        return Child("crat.worker", json.dumps(self.config), log, {**where, **env})

    def finish(self, child: Child) -> str:
        """ "" or what went wrong."""
        error = child.told()
        return (
            f"{error} (log: {child.log} on {socket.gethostname()})" if child.log.exists() else error
        )


@dataclass(frozen=True)
class Job:
    """A notebook, the parameters it is run with, the folder for all it writes, and the runs it
    will ask for.
    """

    notebook: Path
    folder: Path
    parameters: dict[str, Any]
    runs: dict[str, RunConfig]
    made_from: dict[str, Any]  # everything that decides the outcome, for the success record
    needs: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    began: list[float] = field(default_factory=list, compare=False)  # by time.monotonic
    # what lay in the folder then, as `_files`
    before: dict[Path, int] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """The notebook's."""
        return self.notebook.stem

    @property
    def number(self) -> str:
        """By which papers.PLANS knows it."""
        return self.notebook.stem[:2]

    @property
    def output(self) -> Path:
        """The executed notebook."""
        return self.folder / self.notebook.name

    @cached_property
    def lease(self) -> Lease:
        """Kept while it is run, so that no other driver writes to the folder meanwhile."""
        return Lease(self.folder)

    @property
    def record(self) -> dict[str, Any]:
        """What the success record says; {} where there is none."""
        path = self.folder / "success.json"
        return store.read_json(path) if path.exists() else {}

    @property
    def is_done(self) -> bool:
        """Whether it ran to its end from the same sources, and all it wrote is still there."""
        record = self.record
        same = record.get("made_from") == self.made_from
        return same and all((self.folder / name).exists() for name in record["files"])

    @property
    def steps(self) -> int:
        """Its cells."""
        return len(json.loads(self.notebook.read_text(encoding="utf-8"))["cells"])

    def done(self) -> int:
        """The cells that are done."""
        return min(self.steps, notebook.Progress.read(self.output).done)

    def shown(self) -> str:
        """For the bar: the notebook and the last line that it printed."""
        return f"{self.number} {notebook.Progress.read(self.output).last_line[:40]}".strip()

    def begin(self, env: Mapping[str, str]) -> Child:
        """Starts it anew; nothing of an earlier run is taken for its own."""
        for name in [*self.record.get("files", ()), "success.json", "claims.json"]:
            (self.folder / name).unlink(missing_ok=True)
        # absolute: it works in its own folder
        where = notebook.folders_of_jupyter(store.home().absolute()) | {
            "CRAT_FIGURES": str(self.folder.parent.absolute()),
            "CRAT_RUNS": str(store.home().absolute()),
            "CRAT_DATA": str(data_home().absolute()),
        }
        self.began.append(time.monotonic())
        self.before.update(self._files())
        return notebook.start(
            self.notebook.absolute(), self.output.absolute(), self.parameters, {**where, **env}
        )

    def finish(self, child: Child) -> str:
        """ "" or what went wrong; the record is written after a clean end only. Raises
        StoreError, LeaseLost.
        """
        error = child.told()
        if not error:
            self.lease.confirm()
            written = [
                path for path, time_ns in self._files().items() if self.before.get(path) != time_ns
            ]
            files = sorted(str(path.relative_to(self.folder)) for path in written)
            seconds = round(time.monotonic() - self.began[-1], 1)
            store.write_json(
                self.folder / "success.json",
                dict(made_from=self.made_from, seconds=seconds, files=files),
            )
        return error

    def _files(self) -> dict[Path, int]:
        """The files of its folder with their times in nanoseconds, which are compared with each
        other only.
        """
        found = (
            path for path in self.folder.rglob("*") if path != self.lease.path and path.is_file()
        )
        return {path: path.stat().st_mtime_ns for path in found}


Task = RunTask | Job


@dataclass
class Entry:
    """A run of the plan, with the notebooks that ask for it."""

    run: Run
    notebooks: list[str] = field(default_factory=list)
    weights: bool = False  # its network is used itself: published outcomes are not enough
    live: bool = True  # trained where it is shown, in a notebook, as nobody else asks for it

    @property
    def published(self) -> bool:
        """Whether what is in results/ will do."""
        return bool(self.run.published) and not self.weights

    @property
    def epochs_left(self) -> int:
        """How many are to be trained."""
        epochs = self.run.config.train.epochs
        if self.run.trained_here or self.published:
            return 0
        return min(epochs, max(1, epochs - self.run.here.card().get("epochs_done", 0)))

    @property
    def state(self) -> str:
        """What is there of it, in words; "" where nothing is left to do."""
        if self.published:
            return ""
        left, epochs = self.epochs_left, self.run.config.train.epochs
        if not left:
            return "" if self.live or self.judged else "to be judged"
        place = f" in notebook {self.notebooks[0]}" if self.live else ""
        return f"to be trained{place}" + (
            f", from epoch {epochs - left + 1}" if left < epochs else ""
        )

    @property
    def judged(self) -> bool:
        """Whether the outcomes that every notebook asks for are kept, or published."""
        from crat.outcomes.evaluation import judged
        from crat.worker import usual_battery

        return bool(self.run.published) or judged(
            self.run, usual_battery(self.run.config.data.name)
        )

    @property
    def task(self) -> RunTask:
        """The work of making it."""
        return RunTask(self.run.name, self.run.config.as_dict(), self.run.folder.absolute())


def job(path: Path, figures: Path, profile: str, parameters: dict[str, Any], again: str) -> Job:
    """A notebook as a task; its number says which runs it asks for. again: the recomputation it
    is part of.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    from crat import papers

    plan = papers.PLANS.get(path.stem[:2])
    seed = parameters.get("seed", notebook.declared(path).get("seed", 0))
    selection = Selection.read(parameters.get("data", ""), parameters.get("seeds", "0 1 2"))
    runs = plan(profile, seed, selection) if plan else {}
    made_from = {
        "notebook": store.digest([(cell["cell_type"], "".join(cell["source"])) for cell in cells]),
        "parameters": parameters,
        # by --data and --seeds, too
        "runs": store.digest({key: config.as_dict() for key, config in runs.items()}),
        "package": _package(),
        "results": _results(),
        "recomputation": again,
    }
    return Job(path, figures / path.stem, parameters, runs, made_from)


@cache
def _package() -> str:
    """Once for all notebooks of a batch, as what follows."""
    return store.digest(
        [p.read_text(encoding="utf-8") for p in sorted((ROOT / "crat").rglob("*.py"))]
    )


@cache
def _results() -> str:
    files = [p for p in sorted((ROOT / "results").rglob("*")) if p.is_file()]
    return store.digest([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])


def entries(jobs: Iterable[Job], quick: bool) -> list[Entry]:
    """The runs that notebooks ask for, each once, in the order of the plans.

    quick: live runs are trained by the notebook that shows them, epoch by epoch; in a larger
    profile they are tasks.
    """
    from crat.device import pick_device
    from crat.papers import LIVE
    from crat.training.run import Run

    device = pick_device()
    found: dict[str, Entry] = {}
    for asking in jobs:
        for key, config in asking.runs.items():
            run = Run.of(config, device)
            entry = found.setdefault(run.name, Entry(run))
            needed = key in LIVE.get(asking.number, ())
            entry.weights |= needed
            entry.live &= quick and (needed or key == "live")
            if asking.number not in entry.notebooks:
                entry.notebooks.append(asking.number)
    return list(found.values())


def linked(jobs: Sequence[Job], runs: Iterable[Entry]) -> list[Job]:
    """The notebooks with what each needs: its runs, as far as they are tasks; and of several that
    train the same live run, all but the first wait for the first.
    """
    left = [entry for entry in runs if entry.state]
    numbers = {j.number: j.name for j in reversed(jobs)}

    def link(asking: Job) -> Job:
        own = [entry for entry in left if asking.number in entry.notebooks]
        first = {numbers[e.notebooks[0]] for e in own if e.live and e.notebooks[0] != asking.number}
        return replace(
            asking, needs=frozenset(e.run.name for e in own if not e.live), after=frozenset(first)
        )

    return [link(asking) for asking in jobs]


def share(runs: Sequence[Entry], i: int, n: int) -> list[Entry]:
    """Every n-th of the runs that are made outside notebooks, from the i-th (1-based) on.

    They are dealt before anybody looks at what is done, so that all shards deal alike.
    """
    return [entry for entry in runs if not entry.published and not entry.live][i - 1 :: n]
