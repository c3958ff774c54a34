"""Publishing: the small and lasting files of a run go to results/."""

from __future__ import annotations

from pathlib import Path

from crat import store
from crat.outcomes import margins
from crat.store import manifest
from crat.training.run import Run


def publish(run: Run, folder: Path | None = None, *, compact: bool = False) -> Path:
    """Adds card, history, trace and outcomes (no weights) to results/<data set>/<run>.

    A file that is published already stays as it is.
    folder: the place of results/ (None: that of the package).
    compact: all outcomes go into one file without their logits (crat.outcomes.margins), and the
    trace is left out: an eighth of the size.
    Returns the run's folder there, whose hashes SHA256SUMS lists, there and at the top of results/.
    Raises StoreError where the run is not finished here, or was published with other weights.
    """
    target = _place(run, folder)
    kept = _files(run.folder)
    if compact:
        kept = [name for name in kept if name.suffix != ".npz"]
    for name in kept:
        if not (target / name).exists():
            with store.written_whole(target / name) as temporary:
                temporary.write_bytes((run.folder / name).read_bytes())
    outcomes = [run.folder / name for name in _files(run.folder) if name.parts[0] == "eval"]
    margins.write(target, outcomes if compact else [])
    manifest.sign(target)
    return target


def _place(run: Run, folder: Path | None) -> Path:
    """The folder of a run under results/; raises StoreError where it may not be published there."""
    if not run.trained_here:
        raise store.StoreError(f"{run.name} is not finished here; only finished runs are published")
    target = (folder or store.results_home()) / run.config.data.name / run.name
    if (target / "card.json").exists():
        published = store.read_json(target / "card.json")
        here = run.here.card()
        if any(published[which]["weights"] != here[which]["weights"] for which in ("best", "last")):
            raise store.StoreError(
                f"{target} was published with other weights than are here; remove it to publish "
                "these"
            )
    return target


def _files(folder: Path) -> list[Path]:
    """The relative paths of a run's small files, without those that are being written."""
    found = []
    for source in sorted(folder.rglob("*")):
        place = source.relative_to(folder)
        hidden = any(part.startswith(".") or ".part." in part for part in place.parts)
        if source.suffix in (".json", ".csv", ".npz") and not hidden:
            found.append(place)
    return found
