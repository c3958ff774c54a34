"""The end of `crat reproduce`: where the figures are, and the claims table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from crat import store
from crat.batch import Job
from crat.text import aligned, shown


def report(jobs: Sequence[Job], figures: Path) -> None:
    """Tells where the figures are, and the claims of all that is done: in the terminal,
    claims.csv and claims.md.
    """
    import pandas as pd

    from crat.analysis import claims

    for job in jobs:
        if job.is_done:
            n = Counter(Path(name).suffix for name in job.record["files"])
            print(
                f"{shown(job.folder)}: figures as {n['.png']} PNG, {n['.pdf']} PDF, {n['.csv']} CSV"
            )
    folders = [
        path.parent
        for path in sorted(figures.glob("*/claims.json"))
        if (path.parent / "success.json").exists()
    ]
    if not folders:
        print("no claims: none of the notebooks that are done makes any")
        return
    table = pd.concat(
        [claims.read(folder / "claims.json").assign(notebook=folder.name) for folder in folders]
    )
    short = {
        "statement": "claim",
        "number": "the paper's number",
        "value": "ours",
        "low": "low",
        "high": "high",
    }
    columns = [
        "notebook",
        "paper",
        "where",
        *short,
        "functional",
        "verdict",
        "setting",
        "p_holm",
        "detectable",
    ]
    store.write_text(
        figures / "claims.csv", table[columns].rename(columns=short).to_csv(index=False)
    )
    markdown = claims.markdown(table)
    store.write_text(figures / "claims.md", markdown)
    lines = [line for line in markdown.splitlines() if not line.startswith("|---")]
    cells = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
    ]
    print("\n" + aligned(cells[0], cells[1:], (44, 14, 26, 11, 15)))
    print(f"claims: {shown(figures / 'claims.csv')} and claims.md")
