"""What notebooks are given: by --profile, --set and a YAML file, as far as they declare it."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crat.config import ConfigError
from crat.names import did_you_mean
from crat.notebook import NotebookError, declared


def from_file(path: Path) -> dict[str, Any]:
    """The names and values of a YAML file, the same that `papermill -f` takes; raises
    ConfigError where it has none.
    """
    try:
        import yaml
    except ImportError:
        raise NotebookError("parameter files need PyYAML: pip install 'crat[notebooks]'") from None
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
) -> dict[Path, dict[str, Any]]:
    """What each notebook is given: the profile, and of `values` and the settings "name=value" those
    that it knows.

    A setting goes before a value of the file. Raises ConfigError on a name that no notebook knows,
    with the names that are known, and on a value of another type.
    """
    known = {notebook: declared(notebook) for notebook in notebooks}
    given = {name: value for name, value in (values or {}).items() if name != "profile"}
    for setting in settings:
        name, equals, given_text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write it as name=value")
        if name == "profile":
            raise ConfigError("the profile is chosen by --profile")
        given[name] = _Text(given_text)
    for name in given:
        if not any(name in defaults for defaults in known.values()):
            names = sorted({name for defaults in known.values() for name in defaults} - {"profile"})
            near = did_you_mean(name, names)
            raise ConfigError(
                f"no chosen notebook has a parameter {name!r}; known: {', '.join(names)}{near}"
            )
    return {
        notebook: {
            name: _typed(name, given[name], default)
            for name, default in defaults.items()
            if name in given
        }
        | ({"profile": profile} if "profile" in defaults else {})
        for notebook, defaults in known.items()
    }


class _Text(str):
    """A value as it was typed on the command line, its type yet to be found."""


def _typed(name: str, value: Any, default: Any) -> Any:
    """The value that is meant, of the default's type; an integer will do for a float."""
    kind = type(default)
    if not isinstance(value, _Text):
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is kind:
            return value
        raise ConfigError(
            f"{name}: {value!r} in the file, but it is of type {kind.__name__}, such as {default!r}"
        )
    text = str(value)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text) if kind in (int, float, str) else kind(ast.literal_eval(text))
    except (KeyError, ValueError, TypeError, SyntaxError):
        raise ConfigError(
            f"--set {name}={text}: {name} is of type {kind.__name__}, such as {default!r}"
        ) from None
