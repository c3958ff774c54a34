"""What a GPU machine can do with crat, in under eight minutes: tests, step, recipe, AutoAttack.

    python benchmarks/gpu.py --out FOLDER [--cfa CLONE] [--weights FILE]
    python benchmarks/gpu.py --out FOLDER --parts step --seconds step=300
    python benchmarks/gpu.py --out FOLDER --quick        # next to nothing, in a minute on a CPU

It needs torch, numpy, pandas, scipy, safetensors, psutil, filelock and pytest; of pytest-xdist and
git it makes use where they are. CIFAR-10 is used where CRAT_DATA has it; else the images that are
shipped, and the report says so. Each part is a process of its own with its own time limit. A piece
of it that fails or hangs is named, and the next goes on. FOLDER/gpu.json and gpu.md are written
anew after each piece, so a script that is killed leaves what was done; FOLDER/PART.log has all that
was printed. gpu.md beside this file has recorded results.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
from gpu_cells import RUNS, Notes, Record
from measuring import markdown, measured, parser
from outcome_log import last_outcomes

from crat import store
from crat.batch.children import descendants, kill
from crat.config import ConfigError

HERE = Path(__file__).resolve().parent
# seconds; the recipe's network is attacked in the last part, its step rate is known from the second
LIMITS = {"tests": 98, "step": 140, "recipe": 150, "autoattack": 74}
QUICK_LIMITS = {"tests": 60, "step": 60, "recipe": 60, "autoattack": 60}
GRACE = 3.0  # seconds after its limit in which a part may end by itself
TITLES = {
    "tests": "Tests that need no notebook",
    "step": "The training step",
    "recipe": "crat train --recipe fast, cut to what fits",
    "autoattack": "AutoAttack standard, by part",
}
STEP_NOTE = (
    "PGD-10 on random images; images/s: median of five rounds of calls that do not wait for the "
    "device in between, best beside it. The textbook and the authors' loop are plain PGD AT in "
    "float32. Share of the matrix rate: the operations of crat's own method, counted, over the "
    "measured bfloat16 rate. first s: set-up and first call, compilation and capture included."
)


def main(asked: Namespace) -> int:
    """Runs the parts; returns 1 where one did not end by itself."""
    out = asked.out
    out.mkdir(parents=True, exist_ok=True)
    for name in asked.parts:
        for old in (
            *out.glob(f"{name}.*"),
            *(out.glob("tests_*.jsonl") if name == "tests" else ()),
        ):
            old.unlink()
    if "recipe" in asked.parts:  # a finished run would be returned at once
        shutil.rmtree(out / RUNS, ignore_errors=True)
    if asked.cfa and not (asked.cfa / "attack.py").is_file():
        raise ConfigError(f"{asked.cfa} is no clone of PKU-ML/CFA: it has no attack.py")
    limits = (QUICK_LIMITS if asked.quick else LIMITS) | dict(asked.seconds)
    report = Report(out, asked.parts, shlex.join([Path(sys.executable).name, *sys.argv]))
    signal.signal(signal.SIGTERM, _interrupted)  # so that the part's process is ended as well
    for name in asked.parts:
        report.how[name] = "it was running when the script ended"
        report.how[name] = run_part(name, limits[name], asked, report)
        report.write()
    print(f"\n{out / 'gpu.md'}", flush=True)
    return int(any(how != "it ended" for how in report.how.values()))


def _interrupted(*_: Any) -> NoReturn:
    raise SystemExit("gpu.py: ended by SIGTERM")


def run_part(name: str, limit: float, asked: Namespace, report: Report) -> str:
    """Runs one part, again where its process was lost within a piece; returns how it ended."""
    notes = Notes(asked.out / f"{name}.jsonl")
    until = time.time() + limit
    print(f"\n== {name}, at most {limit:.0f} s", flush=True)
    while True:
        begun = number_begun(notes)
        code = run_child(name, until, asked, notes, report)
        if code == 0:
            return "it ended"
        limit_reached = time.time() >= until
        why = "the part's limit was reached" if limit_reached else "it hung"
        if code is not None:
            why = f"its process ended (exit code {code})"
        if (cell := running(notes.read())) is not None:
            notes.write("failed", cell=cell, error=f"{why}; see {name}.log")
        report.follow(notes)
        if limit_reached:
            return f"it was ended at its limit of {limit:.0f} s"
        # each process must begin something new, or there is no end
        if number_begun(notes) == begun:
            return f"its process ended (exit code {code}) before it measured: see {name}.log"


def number_begun(notes: Notes) -> int:
    """How many pieces of work have been begun."""
    return sum(record["kind"] == "began" for record in notes.read())


def running(records: list[Record]) -> str | None:
    """The piece of work that has begun and not ended; None where there is none."""
    last = next((record for record in reversed(records) if "cell" in record), None)
    return last["cell"] if last and last["kind"] in ("began", "row") else None


def run_child(
    name: str, until: float, asked: Namespace, notes: Notes, report: Report
) -> int | None:
    """One process of a part, watched; its exit code, None where it was killed in a hung piece."""
    with (asked.out / f"{name}.log").open("ab") as log:
        child = subprocess.Popen(
            command_of(name, until, asked),
            stdin=subprocess.PIPE,  # whose end, by our death too, ends the child
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            while child.poll() is None:
                report.follow(notes)
                late = time.time() > until + GRACE
                if late or hung(notes.read()):
                    return None
                time.sleep(0.2)
            return child.returncode
        finally:
            family = descendants(child.pid)
            child.kill()
            kill(family)
            child.wait()
            report.follow(notes)


def command_of(name: str, until: float, asked: Namespace) -> list[str]:
    """The command line of a part's process."""
    command = [sys.executable, str(HERE / "gpu_parts.py"), name]
    command += ["--out", str(asked.out), "--until", str(until)]
    if asked.quick:
        command.append("--quick")
    if asked.cfa:
        command += ["--cfa", str(asked.cfa)]
    if asked.weights:
        command += ["--weights", str(asked.weights)]
    if asked.tests:
        command += ["--tests", *asked.tests]
    return command


def hung(records: list[Record]) -> bool:
    """Whether the piece of work that was begun last has passed its limit."""
    if running(records) is None:
        return False
    began = next(r for r in reversed(records) if r["kind"] == "began")
    return time.time() - began["at"] > began["limit"]


class Report:
    """gpu.json and gpu.md, written anew whenever there is something new to tell.

    how: part -> how it ended.
    """

    def __init__(self, out: Path, parts: list[str], command: str) -> None:
        self.out, self.parts, self.command = out, parts, command
        self.date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self.how: dict[str, str] = {}
        self.told: dict[Path, int] = {}

    def follow(self, notes: Notes) -> None:
        """Prints the records that are new, and writes both files where there are any."""
        records = notes.read()
        new = records[self.told.get(notes.path, 0) :]
        self.told[notes.path] = len(records)
        for record in new:
            if record["kind"] in ("row", "failed", "left out"):
                print(line_of(record), flush=True)
        if new:
            self.write()

    def write(self) -> None:
        """Writes both files."""
        parts = {name: Notes(self.out / f"{name}.jsonl").read() for name in self.parts}
        heads = [r for records in parts.values() for r in records if r["kind"] == "head"]
        head = {k: v for k, v in (heads or [{}])[0].items() if k not in ("kind", "at")}
        head |= {"date": self.date, "command": self.command}
        tests = tests_by_name(self.out) if "tests" in self.parts else {}
        whole = {"head": head, "how": self.how, "records": parts, "tests": tests}
        store.write_json(self.out / "gpu.json", whole)
        text = [
            f"# benchmarks/gpu.py on {head.get('device', 'a device that is not known yet')}",
            "",
        ]
        text += [f"- {key}: {value}" for key, value in head.items()]
        for name in self.parts:
            if name in self.how:
                text += ["", f"## {TITLES[name]}", "", *self.section(name, parts[name], tests)]
        store.write_text(self.out / "gpu.md", "\n".join(text) + "\n")

    def section(self, name: str, records: list[Record], tests: dict[str, Any]) -> Iterator[str]:
        """The lines of one part."""
        if self.how[name] != "it ended":
            yield f"**Not complete: {self.how[name]}.**\n"
        rows = [r for r in records if r["kind"] == "row"]
        if name == "tests":
            yield from tests_section(tests)
        elif name == "step":
            yield STEP_NOTE + "\n"
            yield from step_section(rows)
        else:
            yield from tables(rows)
        for record in records:
            if record["kind"] in ("failed", "left out"):
                yield "- " + line_of(record)


def line_of(record: Record) -> str:
    """A record in a line."""
    if record["kind"] == "failed":
        return f"{record['cell']}: FAILED, {record['error']}"
    if record["kind"] == "left out":
        return f"{record['cell']}: left out, {record['why']}"
    values = (f"{k} {v}" for k, v in bare(record).items() if v not in (None, ""))
    return f"{record['cell']}: {', '.join(values)}"


def bare(record: Record) -> Record:
    """The measured values of a row."""
    return {k: v for k, v in record.items() if k not in ("kind", "at", "cell")}


def tables(rows: list[Record]) -> Iterator[str]:
    """One table for each run of rows with the same columns; of single rows, lists."""
    while rows:
        columns = list(bare(rows[0]))
        n = next((i for i, r in enumerate(rows) if list(bare(r)) != columns), len(rows))
        if n == 1:
            yield from (f"- {key}: {value}" for key, value in bare(rows[0]).items())
        else:
            yield markdown(pd.DataFrame([bare(row) for row in rows[:n]], dtype=object))
        yield ""
        rows = rows[n:]


def step_section(rows: list[Record]) -> Iterator[str]:
    """The rates, and the table of all sides with ratios and shares."""
    rates = {row["dtype"]: row["TFLOP/s"] for row in rows if "dtype" in row}
    works = [row for row in rows if "GFLOP an image" in row]
    timed = [row for row in rows if "images/s" in row]
    for dtype, rate in rates.items():
        yield f"- matrix rate in {dtype}, random numbers: {rate} TFLOP/s"
    yield ""
    if timed:
        shown = [step_row(row, timed, works, rates.get("bfloat16")) for row in timed]
        yield markdown(pd.DataFrame(shown))
        yield ""


def step_row(
    row: Record, timed: list[Record], works: list[Record], rate: float | None
) -> dict[str, Any]:
    """A row of the step table."""
    peers = [r for r in timed if all(r[k] == row[k] for k in ("model", "shape", "batch"))]
    beside = {r["side"]: r["images/s"] for r in peers if r["side"] in ("textbook", "authors")}
    work = [
        w["GFLOP an image"]
        for w in works
        if all(w[key] == row[key] for key in ("method", "model", "shape"))
    ]
    tflops = row["images/s"] * work[0] / 1000 if work else None

    def times(side: str) -> str:
        return f"{row['images/s'] / beside[side]:.2f}" if side in beside else ""

    grey = row["shape"][0] == 1
    return {
        "network": f"{row['model']} {'x'.join(map(str, row['shape']))}",
        "batch": row["batch"],
        "side": row["side"],
        "method": row["method"],
        "images/s": row["images/s"],
        "best": row["best"],
        "ms": row["ms"],
        "x textbook": times("textbook"),
        "x authors": times("authors"),
        "TFLOP/s": f"{tflops:.3g}" if tflops else "",
        "of matrix rate %": f"{100 * tflops / rate:.1f}" if tflops and rate else "",
        "peak MiB": "" if row["peak MiB"] is None else row["peak MiB"],
        "first s": row["first s"],
        "12 epochs of 20,000, s": f"{240_000 / row['images/s']:.1f}" if grey else "",
        "way": row["way"],
        "told": row["told"].replace("|", "/"),
    }


def tests_by_name(out: Path) -> dict[str, Any]:
    """The tests by outcome: counts, and failures by name with their error."""
    first = last_outcomes(out / "tests_first.jsonl")
    second = last_outcomes(out / "tests_without_gpu.jsonl")
    failed = {test: error for test, (outcome, error) in first.items() if outcome == "failed"}
    again = {test: second.get(test, ("not run", ""))[0] for test in failed}
    return {
        "passed": sum(outcome == "passed" for outcome, _ in first.values()),
        "skipped": sum(outcome == "skipped" for outcome, _ in first.values()),
        "running at the end": [test for test, (outcome, _) in first.items() if outcome == "began"],
        "failed, and passed without a GPU": _of(failed, again, ("passed",)),
        "failed without a GPU, too": _of(failed, again, ("failed",)),
        "failed, and were not run without a GPU": _of(
            failed, again, ("not run", "began", "skipped")
        ),
    }


def _of(failed: dict[str, str], again: dict[str, str], wanted: tuple[str, ...]) -> dict[str, str]:
    return {test: error for test, error in failed.items() if again[test] in wanted}


def tests_section(tests: dict[str, Any]) -> Iterator[str]:
    """The counts, then the failures by name."""
    groups = {name: found for name, found in tests.items() if isinstance(found, dict)}
    failed = sum(map(len, groups.values()))
    yield f"{tests['passed']} passed, {failed} failed, {tests['skipped']} skipped.\n"
    for name, found in groups.items():
        if found:
            yield f"{len(found)} that {name}:\n"
            yield from (f"- `{test}`: {error}" for test, error in found.items())
            yield ""
    if tests["running at the end"]:
        yield "Running when the session ended:\n"
        yield from (f"- `{test}`" for test in tests["running at the end"])
        yield ""


def limit_of(text: str) -> tuple[str, float]:
    """A part's limit such as "step=300"."""
    name, _, value = text.partition("=")
    if name not in LIMITS or not value.isdecimal():
        known = ", ".join(LIMITS)
        raise ArgumentTypeError(f"a limit is PART=SECONDS, PART one of {known}; not {text!r}")
    return name, float(value)


if __name__ == "__main__":
    command = parser(__doc__)
    command.add_argument("--out", type=Path, required=True, help="the folder of the results")
    command.add_argument(
        "--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS), help="only these"
    )
    command.add_argument(
        "--seconds",
        nargs="+",
        type=limit_of,
        default=[],
        metavar="PART=SECONDS",
        help="other limits",
    )
    command.add_argument("--cfa", type=Path, metavar="FOLDER", help="a clone of PKU-ML/CFA")
    command.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="of a PreActResNet-18 for CIFAR-10, for AutoAttack",
    )
    command.add_argument(
        "--tests", nargs="+", metavar="TEST", help="these instead of the chosen files"
    )
    command.add_argument(
        "--quick", action="store_true", help="next to nothing, to see that everything runs"
    )
    given = command.parse_args()
    measured(command, lambda: sys.exit(main(given)))
