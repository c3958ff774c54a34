"""One notebook's run: it ends with its starter, and tells how far it is."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crat.batch.children import Child, end_with_starter, last_line


class NotebookError(RuntimeError):
    """Notebooks that are not there, or cannot be read or run: one line with what to do."""


@dataclass(frozen=True)
class Progress:
    """How far an output notebook is: cells done, cells in all, and the last line printed."""

    done: int = 0
    cells: int = 0
    last_line: str = ""

    @classmethod
    def read(cls, output: Path) -> Progress:
        """From the notebook as papermill last saved it; nothing is done in a broken one."""
        try:
            cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError, KeyError):
            return cls()
        states = [cell["metadata"].get("papermill", {}).get("status") for cell in cells]
        outputs = [
            out for cell in cells for out in cell.get("outputs", []) if out.get("name") == "stdout"
        ]
        return cls(
            states.count("completed"),
            len(cells),
            last_line("".join("".join(out["text"]) for out in outputs)),
        )


def folders_of_jupyter(instead: Path) -> dict[str, str]:
    """The variables of Jupyter's and Matplotlib's own folders, if the home folder is read-only."""
    home = Path.home()
    if os.access(home, os.W_OK):
        return {}
    names = (
        "IPYTHONDIR",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "MPLCONFIGDIR",
    )
    return {
        name: str(instead / ".jupyter" / name.lower()) for name in names if name not in os.environ
    }


def start(
    notebook: Path, output: Path, parameters: Mapping[str, Any], env: Mapping[str, str]
) -> Child:
    """Begins to run a notebook in its own folder; papermill saves it to `output` as it goes.

    However the caller ends (even by SIGKILL), the child, its kernel and the kernel's processes end.
    """
    output.unlink(missing_ok=True)
    job = json.dumps(
        {"input_path": str(notebook), "output_path": str(output), "parameters": dict(parameters)}
    )
    return Child(__name__, job, output.with_suffix(".log"), env, cwd=notebook.parent)


def by_papermill(input_path: str, output_path: str, parameters: dict[str, Any]) -> str:
    """Executes a notebook in this process; returns "" or what went wrong.

    papermill's own word is not enough: it takes a kernel that died, or a cell that exits, for done.
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
        # all cells are called completed, but only those that were started know of an exception
        started = [
            c
            for c in cells
            if c["cell_type"] == "code" and c["metadata"]["papermill"]["exception"] is not None
        ]
        return f"In [{len(started)}]: the kernel died (out of memory?)"
    left = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source and not cell.execution_count
    ]
    return f"it ended early: {len(left)} of its cells were not run" if left else ""


if __name__ == "__main__":
    end_with_starter()
    sys.exit(
        by_papermill(**json.loads(sys.argv[1])) or 0
    )  # a text goes to the log as its last line, and means code 1
