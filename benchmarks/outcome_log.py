"""A pytest plugin: a line of JSON for each test that begins and ends, as it happens.

    PYTHONPATH=benchmarks pytest -p outcome_log --outcomes FILE

So the names are there even where the session is killed. A line has the keys test, outcome (began,
passed, failed, skipped) and error (of a failure, its first line). With xdist the controller writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class OutcomeLog:
    """Writes the lines of one session."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, test: str, outcome: str, error: str = "") -> None:
        """Appends a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"test": test, "outcome": outcome, "error": error}) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self.note(nodeid, "began")

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test passed, or one of its phases did not."""
        if report.when == "call" or report.outcome != "passed":
            self.note(report.nodeid, report.outcome, first_line(report))

    def pytest_collectreport(self, report: Any) -> None:
        """A file could not be read."""
        if report.failed:
            self.note(report.nodeid, "failed", first_line(report))


def first_line(report: Any) -> str:
    """The error of a failed report in a line; "" where it did not fail."""
    if not report.failed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = (crash.message if crash else str(report.longrepr)).strip().splitlines()
    if not lines:
        return "no error is told"
    return (lines[0] if crash else lines[-1])[:300]


def pytest_addoption(parser: Any) -> None:
    """Adds --outcomes."""
    parser.addoption("--outcomes", help="a file to append a line of JSON to for each test")


def pytest_configure(config: Any) -> None:
    """Registers the log in the session's own process."""
    path = config.getoption("--outcomes")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(OutcomeLog(Path(path)))


def last_outcomes(path: Path) -> dict[str, tuple[str, str]]:
    """Test -> its outcome and error; a failure in any phase counts. {} where there is no file."""
    found: dict[str, tuple[str, str]] = {}
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the session was killed within a line
            continue
        if found.get(entry["test"], ("",))[0] != "failed":
            found[entry["test"]] = (entry["outcome"], entry["error"])
    return found
