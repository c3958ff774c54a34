"""The plan of a batch: which notebooks and which runs are tasks, and what needs what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crat import store
from crat.batch.notebook import ROOT
from crat.batch.parameters import declared
from crat.batch.tasks import Job, RunTask
from crat.config import DATASETS, RunConfig, Selection
from crat.store import Store

if TYPE_CHECKING:  # torch takes seconds to import, which --help need not
    from crat.training.run import Run

# a GPU computes a step of these faster than a process launches it, so several share one
SMALL_NETWORKS = ("small_cnn", "mnist_small_cnn", "lenet5")


def plan_of(
    number: str, profile: str, seed: int, chosen: Selection
) -> tuple[dict[str, RunConfig], Sequence[str]]:
    """The runs of a notebook by key, and the keys whose networks it uses itself."""
    from crat.papers import LIVE, PLANS

    plan = PLANS.get(number)
    return plan(profile, seed, chosen) if plan else {}, LIVE.get(number, ())


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
    def small(self) -> bool:
        """Whether its training leaves a GPU idle: a small network on images of 32 x 32 at most."""
        config = self.run.config
        _, height, width = DATASETS[config.data.name].image_shape
        return config.model.name in SMALL_NETWORKS and max(height, width) <= 32

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
        from crat.outcomes.batteries import usual_battery
        from crat.outcomes.evaluation import judged

        battery = usual_battery(self.run.config.data.name)
        return bool(self.run.published) or judged(self.run, battery)

    def task(self, place: Store) -> RunTask:
        """The run as a task."""
        needs = frozenset(self.run.config.train.earlier)
        return RunTask(self.run.name, self.run.config.as_dict(), place, needs)


def job(path: Path, figures: Path, profile: str, parameters: dict[str, Any], again: str) -> Job:
    """A notebook as a task; its number decides which runs it asks for.

    again: the time at which a recomputation began that it is part of; "" for none.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    seed = parameters.get("seed", declared(path).get("seed", 0))
    given = {name: parameters.get(name, "") for name in ("data", "seeds", "further", "start_from")}
    chosen = Selection.read(**given)
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

    A run from whose weights another one is to be trained is asked for by its notebooks, too, and
    comes before it.
    quick: live runs are trained by the notebook that shows them, epoch by epoch; in a larger
    profile they are tasks.
    """
    from crat.device import pick_device
    from crat.training.run import Run

    device = pick_device()
    asked = [
        (asking, key, Run.of(config, device, place))
        for asking in jobs
        for key, config in asking.runs.items()
    ]
    known = {run.name: run for _, _, run in asked}
    by_name: dict[str, Entry] = {}
    for asking, key, run in asked:
        needed = key in asking.weights
        live = quick and (needed or key == "live")
        trained = needed or not run.published
        for start in _starts(run, known) if trained else ():
            _ask(by_name, start, asking, True, live)
        _ask(by_name, run, asking, needed, live)
    return list(by_name.values())


def _ask(by_name: dict[str, Entry], run: Run, asking: Job, needed: bool, live: bool) -> None:
    """Adds a notebook's wish for a run: its network itself (needed), trained there (live)."""
    entry = by_name.setdefault(run.name, Entry(run))
    entry.weights |= needed
    entry.live &= live
    if asking.number not in entry.notebooks:
        entry.notebooks.append(asking.number)


def _starts(run: Run, known: Mapping[str, Run]) -> list[Run]:
    """The runs of the plan that a run starts or learns from, the first in time first."""
    found: list[Run] = []
    for name in run.config.train.earlier:
        if start := known.get(name):
            found += [*_starts(start, known), start]
    return found


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

    Runs that start from one another, or from the same run, are dealt as one. The shares do not
    depend on what is done, so that all machines deal alike.
    """
    known = {entry.run.name: entry.run for entry in runs}
    families: dict[str, list[Entry]] = {}
    for entry in runs:
        if not entry.published and not entry.live:
            first, *_ = [*_starts(entry.run, known), entry.run]
            families.setdefault(first.name, []).append(entry)
    return [entry for family in [*families.values()][i - 1 :: n] for entry in family]
