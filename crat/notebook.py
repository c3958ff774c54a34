"""One notebook: the parameters it declares, and its run by papermill in a process that ends with whoever started it."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from crat.config import ConfigError

GRACE = 5.0  # seconds for the child to end its kernel when it is told to
GLANCE = 0.5  # seconds between looks at the output notebook


class NotebookError(RuntimeError):
    """Notebooks that are not there, or cannot be read or run: one line with what to do."""


@dataclass(frozen=True)
class Progress:
    """How far an output notebook is: cells done, cells in all, and the last line that its cells printed."""

    done: int = 0
    cells: int = 0
    last_line: str = ""

    @classmethod
    def read(cls, output: Path) -> Progress:
        """From the notebook as papermill last saved it; nothing done where it is not there or half written."""
        try:
            cells = json.loads(output.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError, KeyError):
            return cls()
        states = [cell["metadata"].get("papermill", {}).get("status") for cell in cells]
        outputs = [out for cell in cells for out in cell.get("outputs", []) if out.get("name") == "stdout"]
        return cls(states.count("completed"), len(cells), _last_line("".join("".join(out["text"]) for out in outputs)))


def declared(notebook: Path) -> dict[str, Any]:
    """Names and default values of the cell tagged "parameters", annotated literals such as `seed: int = 0`.

    Raises NotebookError where a value is none. (papermill's own inspection reads lines by regular expressions.)
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        nodes = [node for cell in tagged for node in ast.parse("".join(cell["source"])).body]
        typed = [node for node in nodes if isinstance(node, ast.AnnAssign)]
        return {ast.unparse(node.target): ast.literal_eval(node.value or node) for node in typed}
    except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
        raise NotebookError(f"{notebook}: no notebook with a cell of literal parameters ({error})") from None


def choose_parameters(notebooks: Sequence[Path], profile: str, settings: Sequence[str]) -> dict[Path, dict[str, Any]]:
    """What each notebook is given: the profile, and of the settings "name=value" those that it knows.

    Raises ConfigError on a name that no notebook knows, with the names that are known, and on a value of another type.
    """
    known = {notebook: declared(notebook) for notebook in notebooks}
    given = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write it as name=value")
        if name == "profile":
            raise ConfigError("the profile is chosen by --profile")
        if not any(name in defaults for defaults in known.values()):
            names = sorted({name for defaults in known.values() for name in defaults} - {"profile"})
            raise ConfigError(f"no chosen notebook has a parameter {name!r}; known: {', '.join(names)}")
        given[name] = text
    return {
        notebook: {name: _typed(name, given[name], default) for name, default in defaults.items() if name in given}
        | ({"profile": profile} if "profile" in defaults else {})
        for notebook, defaults in known.items()
    }


def _typed(name: str, text: str, default: Any) -> Any:
    """The value that is meant, of the default's type."""
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text) if kind in (int, float, str) else kind(ast.literal_eval(text))
    except (KeyError, ValueError, TypeError, SyntaxError):
        raise ConfigError(f"--set {name}={text}: {name} is of type {kind.__name__}, such as {default!r}") from None


def execute(notebook: Path, output: Path, parameters: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """Runs a notebook in its own folder and saves it to `output` as it goes; returns "" or what went wrong, in a line.

    env is added to the environment. However this process ends (even by SIGKILL), the child, its kernel and the kernel's
    processes end with it. The log beside the output is kept where something went wrong.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    log = output.with_suffix(".log")
    job = json.dumps({"input_path": str(notebook), "output_path": str(output), "parameters": dict(parameters)})
    with log.open("w") as noise:
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, job], stdin=subprocess.PIPE, stdout=noise, stderr=subprocess.STDOUT,
            cwd=notebook.parent, env={**os.environ, **env}, process_group=0,  # Ctrl-C is ours to pass on
        )  # fmt: skip
    family = {psutil.Process(child.pid)}
    try:
        with tqdm(desc=notebook.stem, unit="cell", dynamic_ncols=True, disable=None, leave=False) as bar:
            while child.poll() is None:
                family |= _descendants(child.pid)
                _show(bar, Progress.read(output))
                time.sleep(GLANCE)
    finally:
        assert child.stdin is not None
        child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        _end(family)
    if child.returncode == 0:
        log.unlink()
        return ""
    said = _last_line(log.read_text(encoding="utf-8", errors="replace")) or "it ended without a word"
    return said if child.returncode == 1 else f"{said} (exit code {child.returncode})"


def _show(bar: tqdm, progress: Progress) -> None:
    bar.total, bar.n = progress.cells, progress.done
    bar.set_postfix_str(progress.last_line, refresh=True)


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2].strip()


def _descendants(pid: int) -> set[psutil.Process]:
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _end(processes: Iterable[psutil.Process]) -> None:
    """Kills what is left of them; psutil knows a number that was given to another process since."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _end_with_driver() -> None:
    """Waits until the driver closes our standard input, which its death does too, however it came.

    A raw read, as a thread that waits in sys.stdin would block the interpreter's end.
    """
    os.read(0, 1)
    _end(_descendants(os.getpid()))  # a killed kernel would leave its own processes behind
    os._exit(1)


def by_papermill(input_path: str, output_path: str, parameters: dict[str, Any]) -> str:
    """Executes a notebook in this process; returns "" or what went wrong. papermill's own word is not enough."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    try:
        notebook = papermill.execute_notebook(
            input_path, output_path, parameters, progress_bar=False, autosave_cell_every=5
        )
    except papermill.PapermillExecutionError as error:
        return f"In [{error.exec_count}]: {error.ename}: {_last_line(str(error.evalue))}"
    except DeadKernelError:
        cells = json.loads(Path(output_path).read_text(encoding="utf-8"))["cells"]
        # it calls all cells completed, but only those that it started know whether there was an exception
        started = [c for c in cells if c["cell_type"] == "code" and c["metadata"]["papermill"]["exception"] is not None]
        return f"In [{len(started)}]: the kernel died (out of memory?)"
    left = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source and not cell.execution_count]
    # a cell that exits is no error to it
    return f"it ended early: {len(left)} of its cells were not run" if left else ""


if __name__ == "__main__":
    threading.Thread(target=_end_with_driver, daemon=True).start()
    sys.exit(by_papermill(**json.loads(sys.argv[1])) or 0)  # a text goes to the log as its last line, and means code 1
