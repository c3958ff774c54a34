"""The execution of one notebook in a child process, and its progress."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crat
from crat.batch.children import Child, end_with_starter, last_line

ROOT = Path(crat.__file__).parents[1]  # the checkout: notebooks/, docs/ and results/


class NotebookError(RuntimeError):
    """Notebooks that are not there, or cannot be read or run: one line with what to do."""


@dataclass(frozen=True)
class Progress:
    """The progress of an output notebook: cells done, cells in all, the last line printed."""

    done: int = 0
    cells: int = 0
    last_line: str = ""

    @classmethod
    def read(cls, output: Path) -> Progress:
        """The progress as papermill last saved it; none in a broken notebook."""
        try:
            cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError, KeyError):
            return cls()
        states = [cell["metadata"].get("papermill", {}).get("status") for cell in cells]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        printed = ["".join(out["text"]) for out in outputs if out.get("name") == "stdout"]
        return cls(states.count("completed"), len(cells), last_line("".join(printed)))


def folders_of_jupyter(instead: Path) -> dict[str, str]:
    """The variables of Jupyter's and Matplotlib's folders, where the home folder is read-only."""
    if os.access(Path.home(), os.W_OK):
        return {}
    jupyter = (f"JUPYTER_{kind}_DIR" for kind in ("CONFIG", "DATA", "RUNTIME"))
    unset = {"IPYTHONDIR", "MPLCONFIGDIR", *jupyter} - os.environ.keys()
    return {name: str(instead / ".jupyter" / name.lower()) for name in unset}


def start(
    notebook: Path, output: Path, parameters: Mapping[str, Any], env: Mapping[str, str]
) -> Child:
    """Starts a notebook in its own folder; papermill saves it to `output` as it goes.

    However the caller ends (even by SIGKILL), the child, its kernel and the kernel's processes end.
    """
    output.unlink(missing_ok=True)
    job = json.dumps([str(notebook), str(output), dict(parameters)])
    return Child(__name__, job, output.with_suffix(".log"), env, cwd=notebook.parent)


def by_papermill(input_path: str, output_path: str, parameters: dict[str, Any]) -> str:
    """Executes a notebook in this process; returns the fault in a line, or "".

    papermill alone takes a kernel that died, or a cell that exits, for done.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    try:
        notebook = papermill.execute_notebook(
            input_path, output_path, parameters, progress_bar=False, autosave_cell_every=5
        )
    except papermill.PapermillExecutionError as error:
        return f"In [{error.exec_count}]: {error.ename}: {last_line(str(error.evalue))}"
    except DeadKernelError:
        cells = json.loads(Path(output_path).read_text(encoding="utf-8"))["cells"]
        states = [cell["metadata"]["papermill"] for cell in cells if cell["cell_type"] == "code"]
        # all cells are called completed, but only those that were started know of an exception
        started = [state for state in states if state["exception"] is not None]
        return f"In [{len(started)}]: the kernel died (out of memory?)"
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
    skipped = sum(not cell.execution_count for cell in code)
    return f"it ended early: {skipped} of its cells were not run" if skipped else ""


if __name__ == "__main__":
    end_with_starter()
    # sys.exit prints a text as the last line of the log, and exits with code 1
    sys.exit(by_papermill(*json.loads(sys.argv[1])) or 0)
