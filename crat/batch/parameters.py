"""The parameters of notebooks: their declarations, and the values from flags and a file.

A notebook's cell is read as Python: papermill.inspect_notebook reads lines by regular expressions,
and takes three seconds to import.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crat.batch.notebook import NotebookError
from crat.config import ConfigError
from crat.names import did_you_mean

FLAGS = ("profile", "recompute")  # parameters that have a flag, so --set does not take them


def declared(notebook: Path) -> dict[str, Any]:
    """The names and defaults in the cell tagged "parameters", literals such as `seed: int = 0`.

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
    """The names and values of a YAML file, as for `papermill -f`; raises ConfigError."""
    try:
        values = _yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--parameters {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"--parameters {path} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--parameters {path}: it holds lines such as seed: 1")
    return {str(name): value for name, value in values.items()}


def _yaml(text: str) -> Any:
    """The value of a text in YAML; raises ValueError on another text."""
    try:
        import yaml
    except ImportError:
        line = "parameters are read by PyYAML: pip install 'crat[notebooks]'"
        raise NotebookError(line) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from None


def choose_parameters(
    notebooks: Sequence[Path],
    profile: str,
    settings: Sequence[str],
    values: Mapping[str, Any] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> dict[Path, dict[str, Any]]:
    """The parameters of each notebook, as far as it declares them.

    values: from a file. settings: "name=value" each, before values. asked: from flags, before both;
    no notebook need declare them. Raises ConfigError on a name that no notebook declares, and on a
    value of another type.
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
        listed = ", ".join(sorted(names))
        near = did_you_mean(name, names)
        raise ConfigError(f"no chosen notebook has a parameter {name!r}; known: {listed}{near}")
    given |= {"profile": profile, **(asked or {})}
    return {
        notebook: {n: _value(n, given[n], of) for n, of in defaults.items() if n in given}
        for notebook, defaults in known.items()
    }


class _Typed(str):
    """A value typed on the command line: YAML, unless the parameter is a text."""


def _value(name: str, given: Any, default: Any) -> Any:
    """The value with the default's type (an integer serves as a float); raises ConfigError."""
    kind = type(default)
    value = given
    if isinstance(given, _Typed):
        value = str(given)
        if kind is not str:
            with contextlib.suppress(ValueError):
                value = _yaml(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is kind:
        return value
    what = f"{name}: {given!r} in the file"
    if isinstance(given, _Typed):
        what = f"--set {name}={given}"
    raise ConfigError(f"{what}: {name} is of type {kind.__name__}, such as {default!r}")
