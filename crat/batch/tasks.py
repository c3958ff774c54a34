"""The tasks of a batch: notebooks, and the runs that they ask for, each run once.

A task knows the tasks that it needs (`needs`), those that it waits for without needing them
(`after`), and how it begins as a process. The store is the truth: what lies there is no task.
"""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from crat import store
from crat.batch import notebook
from crat.batch.children import Child
from crat.config import RunConfig
from crat.data.files import data_home
from crat.store import Store
from crat.store.lease import Lease


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
