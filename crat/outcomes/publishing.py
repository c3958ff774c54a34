"""Publishing: the small and lasting files of a run go to results/."""

from __future__ import annotations

from pathlib import Path

from crat import store
from crat.store import manifest
from crat.training.run import Run


def publish(run: Run, folder: Path | None = None) -> Path:
    """Copies card, history, trace and outcomes (no weights) to results/<data set>/<run>.

    folder: the place of results/ (None: that of the package). Returns the run's folder there, whose
    hashes SHA256SUMS lists, there and at the top of results/.
    Raises StoreError where the run is not finished here.
    """
    if not run.trained_here:
        raise store.StoreError(f"{run.name} is not finished here; only finished runs are published")
    target = (folder or store.results_home()) / run.config.data.name / run.name
    for source in sorted(run.folder.rglob("*")):
        place = source.relative_to(run.folder)
        hidden = any(part.startswith(".") or ".part." in part for part in place.parts)
        if source.suffix in (".json", ".csv", ".npz") and not hidden:
            with store.written_whole(target / place) as temporary:
                temporary.write_bytes(source.read_bytes())
    manifest.sign(target)
    return target
