"""The parameters of notebooks: what they declare, and what --profile, --set and a file give them.

A notebook's cell is read as Python: papermill.inspect_notebook reads lines by regular expressions,
and takes three seconds to import.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crat.batch.notebook import NotebookError
from crat.config import ConfigError, Selection
from crat.names import did_you_mean

FLAGS = ("profile", "recompute")  # parameters that a flag of their own chooses


def declared(notebook: Path) -> dict[str, Any]:
    """Names and defaults of the cell tagged "parameters", literals such as `seed: int = 0`.

    Raises NotebookError where a default is no literal.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        nodes = [node for cell in tagged for node in ast.parse("".join(cell["source"])).body]
        typed = [node for node in nodes if isinstance(node, ast.AnnAssign)]
        return {ast.unparse(node.target): ast.literal_eval(node.value or node) for node in typed}
    except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
        said = f"no notebook with a cell of literal parameters ({error})"
        raise NotebookError(f"{notebook}: {said}") from None


def from_file(path: Path) -> dict[str, Any]:
    """The names and values of a YAML file, as `papermill -f` takes it; raises ConfigError."""
    try:
        import yaml
    except ImportError:
        line = "parameter files need PyYAML: pip install 'crat[notebooks]'"
        raise NotebookError(line) from None
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--parameters {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--parameters {path} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--parameters {path}: it holds lines such as seed: 1")
    return {str(name): value for name, value in values.items()}


def choose_parameters(
    notebooks: Sequence[Path],
    profile: str,
    settings: Sequence[str],
    values: Mapping[str, Any] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> dict[Path, dict[str, Any]]:
    """The parameters of each notebook, as far as it declares them.

    settings: "name=value" each; they go before values (a file's). asked: what flags say; it goes
    before both, and need not be declared by any. Raises ConfigError on a name that no notebook
    declares, and on a value of another type.
    """
    known = {notebook: declared(notebook) for notebook in notebooks}
    given = {name: value for name, value in (values or {}).items() if name not in FLAGS}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write it as name=value")
        if name in FLAGS:
            raise ConfigError(f"the {name} is chosen by --{name}")
        given[name] = _Typed(text)
    names = {name for defaults in known.values() for name in defaults} - set(FLAGS)
    for name in sorted(given.keys() - names):
        near = did_you_mean(name, names)
        listed = ", ".join(sorted(names))
        raise ConfigError(f"no chosen notebook has a parameter {name!r}; known: {listed}{near}")
    given |= {"profile": profile, **(asked or {})}
    return {
        notebook: {
            name: _value(name, given[name], default)
            for name, default in defaults.items()
            if name in given
        }
        for notebook, defaults in known.items()
    }


class _Typed(str):
    """A value as it was typed on the command line, its type yet to be read."""


def _value(name: str, value: Any, default: Any) -> Any:
    """The value in the default's type; an integer will do for a float."""
    kind = type(default)
    if isinstance(value, _Typed):
        return _parsed(name, str(value), default)
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    such = f"it is of type {kind.__name__}, such as {default!r}"
    raise ConfigError(f"{name}: {value!r} in the file, but {such}")


def _parsed(name: str, text: str, default: Any) -> Any:
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text) if kind in (int, float, str) else kind(ast.literal_eval(text))
    except (KeyError, ValueError, TypeError, SyntaxError):
        such = f"{name} is of type {kind.__name__}, such as {default!r}"
        raise ConfigError(f"--set {name}={text}: {such}") from None


def selection(parameters: Mapping[str, Any]) -> Selection:
    """The data set and seeds among a notebook's parameters: data "cifar10", seeds "0 1 2"."""
    words = str(parameters.get("seeds") or "0 1 2").split()
    if not all(word.isdecimal() for word in words):
        line = "seeds are numbers, 0 among them for what is run once: 0 1 2"
        raise ConfigError(f"{line}, not {' '.join(words)}")
    return Selection(parameters.get("data", ""), tuple(map(int, words)))
