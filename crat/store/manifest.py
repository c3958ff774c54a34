"""SHA256SUMS of published files: in each run's folder, and over all of results/.

The one at the top of results/ covers the loose files and the SHA256SUMS of every run. `python -m
crat.store.manifest` writes all of them: every file there then counts as published. Readers:
`store.as_published`.
"""

from __future__ import annotations

from pathlib import Path

from crat import store


def sign(run: Path) -> None:
    """Writes the SHA256SUMS of a published run, and that of its results/."""
    store.write_sums(run, store.files_of_run(run))
    sign_top(run.parents[1])


def sign_top(results: Path) -> None:
    """Writes the SHA256SUMS of results/: tables, claims, and the SHA256SUMS of every run."""
    files = [*store.loose_results(results), *results.glob(f"*/*/{store.SUMS}")]
    store.write_sums(results, [path.relative_to(results).as_posix() for path in files])


def main(results: Path) -> None:
    """Writes the SHA256SUMS of every run and of results/."""
    runs = [card.parent for card in sorted(results.glob("*/*/card.json"))]
    for run in runs:
        store.write_sums(run, store.files_of_run(run))
    sign_top(results)
    print(f"{results / store.SUMS}: {len(runs)} runs")


if __name__ == "__main__":
    main(store.published_home())
