"""Publishing: the small and lasting files of a run go to results/."""

from __future__ import annotations

from pathlib import Path

from crat import store
from crat.outcomes import margins
from crat.store import manifest
from crat.training.run import WEIGHTS, Run

LARGEST = 5_000_000  # bytes of a file of published weights


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


def publish_weights(run: Run, folder: Path | None = None) -> Path:
    """Adds the network of the best epoch to the files of a published run, which stay as they are.

    The weights are float32, as they were trained: rounded ones would be another network.
    Parameters and result as for `publish`.
    Raises StoreError where the run is not finished here, is not published, or was published with
    other weights, and where the file is larger than LARGEST.
    """
    target = _place(run, folder)
    if not (target / "card.json").exists():
        raise store.StoreError(f"{run.name} is not published: `crat publish {run.name}` does it")
    content = (run.folder / WEIGHTS).read_bytes()
    if len(content) > LARGEST:
        size = f"{len(content) / 1e6:.1f} MB"
        raise store.StoreError(
            f"the network of {run.name} has {size}; results/ takes {LARGEST / 1e6:.0f} MB at most"
        )
    tensors, _ = store.read_tensors(run.folder / WEIGHTS)
    if store.fingerprint(tensors) != store.read_json(target / "card.json")["best"]["weights"]:
        raise store.StoreError(f"{run.folder / WEIGHTS} has other weights than its card says")
    if not (target / WEIGHTS).exists():
        with store.written_whole(target / WEIGHTS) as temporary:
            temporary.write_bytes(content)
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
