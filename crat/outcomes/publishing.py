"""What of a run goes to results/."""

from __future__ import annotations

from pathlib import Path

from crat import store
from crat.store import manifest
from crat.training.run import Run


def publish(run: Run, folder: Path | None = None) -> Path:
    """Copies what is small and lasting (card, history, trace, outcomes; no weights) to
    results/<data set>/<run>.

    SHA256SUMS there and at the top of results/ say what was published.
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
