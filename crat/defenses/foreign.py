"""A training method of yours in a file: `--defense lift.py:Lift`.

    name = register("methods/lift.py:Lift")     # "lift", which then is a method like any other

The place of the file is kept in the store, so that another process, or a later command, finds the
method by its name. The key of a run covers the method's code (crat.keys.identity): an edited method
is another run.
"""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from crat import store
from crat.defenses.base import METHODS, Defense
from crat.names import ConfigError

FOLDER = "methods"  # of the files' places, in the store


def is_file(name: str) -> bool:
    """Whether a method is given as a class in a file."""
    return ".py:" in name


def register(text: str) -> tuple[str, type[Defense]]:
    """The name of a method, its class's in small letters, and the class of "file.py:Class".

    Raises ConfigError where the file or the class is missing, the file fails, the class is no
    Defense, or its name is that of a method of crat's.
    """
    place, _, wanted = text.rpartition(":")
    file = Path(place).expanduser().resolve()
    method = _loaded(file, wanted)
    name = wanted.lower()
    if name in METHODS:
        raise ConfigError(f"{name} is a method of crat's: give the class in {place} another name")
    kept = store.home() / FOLDER / f"{name}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(kept, {"file": str(file), "class": wanted})
    return name, method


def recall(name: str) -> type[Defense] | None:
    """The class of a method that was registered before; None where there is none.

    Raises ConfigError where its file cannot be used any more.
    """
    kept = store.home() / FOLDER / f"{name}.json"
    if not name.isidentifier() or not kept.exists():
        return None
    place = store.read_json(kept)
    return _loaded(Path(place["file"]), place["class"])


def _loaded(file: Path, wanted: str) -> type[Defense]:
    if not file.is_file():
        raise ConfigError(f"there is no file {file}, which has the method {wanted}")
    name = f"method_{file.stem}"
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(file)
    if str(file.parent) not in sys.path:  # for what the file imports beside itself
        sys.path.insert(0, str(file.parent))
    try:
        SourceFileLoader(name, str(file)).exec_module(module)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise ConfigError(f"cannot import {file}: {why}") from error
    method = getattr(module, wanted, None)
    if not (isinstance(method, type) and issubclass(method, Defense)):
        known = [name for name, part in vars(module).items() if _is_own(part, module.__name__)]
        listed = ", ".join(known) or "none"
        raise ConfigError(
            f"{file} has no method {wanted!r}, a subclass of Defense; it has: {listed}"
        )
    return method


def _is_own(part: object, module: str) -> bool:
    """Whether a part of a module is a method that it defines itself."""
    return isinstance(part, type) and issubclass(part, Defense) and part.__module__ == module
