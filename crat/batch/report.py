"""The report at the end of `crat reproduce`: the folders of figures, and the claims table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from crat import store
from crat.batch.tasks import Job
from crat.text import aligned, shown

# column of the claims table -> its name in claims.csv
SHORT = {
    "statement": "claim",
    "number": "the paper's number",
    "value": "ours",
    "low": "low",
    "high": "high",
}


def report(jobs: Sequence[Job], figures: Path) -> None:
    """Prints where the figures are, and the claims; writes these to claims.csv and claims.md."""
    for job in jobs:
        if job.is_done:
            n = Counter(Path(name).suffix for name in job.record["files"])
            kinds = f"{n['.png']} PNG, {n['.pdf']} PDF, {n['.csv']} CSV"
            print(f"{shown(job.folder)}: figures as {kinds}")
    done = [path.parent for path in sorted(figures.glob("*/success.json"))]
    folders = [folder for folder in done if (folder / "claims.json").exists()]
    if folders:
        _claims(folders, figures)
    else:
        print("no claims: none of the notebooks that are done makes any")


def _claims(folders: Sequence[Path], figures: Path) -> None:
    import pandas as pd

    from crat.analysis import claims

    tables = [claims.read(f / "claims.json").assign(notebook=f.name) for f in folders]
    table = pd.concat(tables)
    columns = ["notebook", "paper", "where", *SHORT, "functional", "role", "verdict", "setting"]
    csv = (
        table[[*columns, "p_adjusted", "detectable", "price"]]
        .rename(columns=SHORT)
        .to_csv(index=False, lineterminator="\n")
    )
    store.write_text(figures / "claims.csv", csv)
    markdown = claims.markdown(table)
    store.write_text(figures / "claims.md", markdown)
    lines = [line for line in markdown.splitlines() if not line.startswith("|---")]
    header, *rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
    ]
    print("\n" + aligned(header, rows, (44, 14, 26, 16)))
    print(f"claims: {shown(figures / 'claims.csv')} and claims.md")
