"""Runs the authors' code and ours in float64, and writes the authors' numbers: see harness.py.

python benchmarks/parity/record.py cfa --theirs PATH_OF_A_CLONE
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness

WITHIN = 1e-9
KINDS = ("x_adv", "loss", "gradient", "buffers", "state")


def record(name: str, folder: Path) -> dict[str, float]:
    """Writes the case's fixture; the largest relative difference of each item."""
    case = importlib.import_module(name)
    theirs = {item: value.detach().clone() for item, value in case.theirs(folder).items()}
    ours = case.ours(torch.float64)
    if theirs.keys() != ours.keys():
        raise SystemExit(f"{name}: {sorted(theirs)} there, {sorted(ours)} here")
    differences = {item: harness.difference(theirs[item], ours[item]) for item in theirs}
    if bad := {item: d for item, d in differences.items() if not d <= WITHIN}:
        raise SystemExit(f"{name} differs: {bad}; nothing written")
    text = json.dumps(
        {
            "code": case.CODE,
            "differences": {item: float(f"{d:.2g}") for item, d in differences.items()},
            "numbers": {item: harness.digest(value) for item, value in theirs.items()},
        }
    )
    (harness.HERE / f"{name}.json").write_text(text.replace('], "', '],\n"') + "\n")
    return differences


def table() -> str:
    """A row for each case: the authors' commit, and the largest relative differences."""
    lines = ["| case | authors' code | largest relative difference |", "|---|---|---|"]
    for path in sorted(harness.HERE.glob("*.json")):
        kept, kinds = json.loads(path.read_text()), {}
        for item, value in kept["differences"].items():
            kind = next((part for part in item.split("/") if part in KINDS), item.split("/")[-1])
            kinds[kind] = max(value, kinds.get(kind, 0.0))
        told = ", ".join(f"{kind} {value:.0e}" for kind, value in kinds.items())
        lines.append(f"| {path.stem} | {kept['code']} | {told} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="?")
    parser.add_argument(
        "--theirs", type=Path, metavar="FOLDER", help="a clone of the authors' code"
    )
    parser.add_argument("--table", action="store_true", help="print the table of all records")
    asked = parser.parse_args()
    if asked.table:
        return print(table(), end="")
    if not asked.case or not asked.theirs:
        parser.error("name a case and --theirs FOLDER, or ask for the --table")
    for item, value in record(asked.case, asked.theirs).items():
        print(f"{item:40s} {value:.1e}")


if __name__ == "__main__":
    main()
