"""Code that a key names (of crat, Python and installed packages) and code that it reads (the rest).

A method's `revision` and the attacks' REVISION stand for crat's code, as long as nobody has
replaced any of it in this session (`changes`, from when this module was imported on).
"""

from __future__ import annotations

import dis
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

# attributes of a class that are bookkeeping, or follow from the fields of a dataclass
NOT_CODE = {
    "__module__",
    "__dict__",
    "__weakref__",
    "__doc__",
    "__annotations__",
    "__match_args__",
    "__dataclass_params__",
    "__abstractmethods__",
    "_abc_impl",
    "__firstlineno__",
    "__static_attributes__",
    "__parameters__",
    "__slotnames__",
    "_autograd_function_id",
}
DECIDING = (
    "attacks",
    "defenses",
    "nets",
    "data.augment",
    "corruptions",
    "training.averaging",
    "training.awp",
    "training.schedules",
    "training.start",
)
ANY = "*"  # in place of a name: code that looks names up by a string may mean any
LOOK_UP = {"getattr", "vars", "dir", "attrgetter", "methodcaller"}  # in a module or object
LOOK_ABOUT = {"globals", "locals", "eval", "exec"}  # in the code's namespace
HEAP = 1 << 9  # the flag of a class that was made while Python ran


def installed(file: str) -> bool:
    """Whether a source file belongs to crat, to Python or to an installed package."""
    return file.startswith("<frozen ") or _under_roots(file)


@lru_cache(maxsize=4096)
def _under_roots(file: str) -> bool:
    return os.path.realpath(file).startswith(_ROOTS)


def _roots() -> tuple[str, ...]:
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= {str(Path(file).parent) for file in (torch.__file__, np.__file__, os.__file__)}
    places.add(str(Path(__file__).parents[1]))  # crat itself
    return tuple(os.path.realpath(place) + os.sep for place in places if place)


_ROOTS = _roots()


def named_module(name: str | None) -> bool:
    """Whether the code of a module of this name is named, not read."""
    module = sys.modules.get(name or "")
    if module is None or name is None or name == "__main__":
        return False
    if file := getattr(module, "__file__", None):
        return installed(file)
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    built_in = name in sys.builtin_module_names or origin in ("built-in", "frozen")
    return built_in or name.partition(".")[0] == "torch"


def found_by_name(value: Any) -> bool:
    """Whether a class or function stands in its module under its name, which then identifies it."""
    module = str(getattr(value, "__module__", None))
    if not named_module(module):
        return False
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "?")
    place: Any = sys.modules[module]
    for part in str(name).split("."):
        place = getattr(place, part, None)
    return place is value


def is_named(value: Any) -> bool:
    """Whether a function or class is named, not read."""
    if isinstance(value, FunctionType):
        file = value.__code__.co_filename
        return installed(file) or (file.startswith("<") and found_by_name(value))
    return not value.__flags__ & HEAP or found_by_name(value)


def of_crat(cls: type) -> bool:
    """Whether a class belongs to crat."""
    return cls.__module__.startswith("crat.") and is_named(cls)


def version(module: str | None) -> str:
    """The version of an installed package; "" where none matters or a revision stands for it."""
    root = str(module).partition(".")[0]
    if root in ("crat", "torch", "numpy") or root in sys.stdlib_module_names:
        return ""
    return str(getattr(sys.modules.get(root), "__version__", ""))


def _decides(module: str | None) -> bool:
    """Whether a module of crat decides the result of a training or an attack.

    crat.training.trainer does not: it knows epochs only.
    """
    return str(module).startswith(tuple(f"crat.{name}" for name in DECIDING))


def _deciding() -> Iterator[Any]:
    """The modules that decide, and their classes."""
    for name, module in list(sys.modules.items()):
        if _decides(name):
            yield module
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == name:
                    yield value


_CAME: dict[Any, dict[str, Any]] = {}


def changes() -> dict[str, Any]:
    """Replacements of crat's deciding code in this session: name -> what is there now.

    Names are those of a deciding module or class. Returns {} where everything is as it was imported
    (or first seen here).
    """
    changed: dict[str, Any] = {}
    for place in _deciding():
        now = vars(place)
        came = _CAME.setdefault(place, dict(now))
        # a module gains its submodules
        added = set() if isinstance(place, ModuleType) else now.keys() - came.keys()
        for name in (came.keys() | added) - NOT_CODE:
            if came.get(name, ...) is not now.get(name, ...):
                owner = getattr(place, "__qualname__", place.__name__)
                changed[f"{owner}.{name}"] = now.get(name)
    return dict(sorted(changed.items()))


def instructions(code: CodeType) -> Iterable[dis.Instruction]:
    """The instructions of code and of the code inside it."""
    yield from dis.get_instructions(code)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from instructions(inner)


def globals_of(code: CodeType) -> tuple[set[str], frozenset[str]]:
    """The global names that code reads, and all attributes that it uses; inner code included.

    ANY is among them where the code looks names up by strings: then everything there counts.
    """
    read, used = set(), set()
    for step in instructions(code):
        operation = step.opname
        if operation == "LOAD_NAME" or ("LOAD" in operation and "GLOBAL" in operation):
            read.add(str(step.argval))
        if "ATTR" in operation or operation in ("LOAD_METHOD", "IMPORT_FROM"):
            used.add(str(step.argval))
    if read & LOOK_ABOUT:
        read.add(ANY)
    if (read | used) & (LOOK_UP | LOOK_ABOUT | {"__dict__"}):
        used.add(ANY)
    return read, frozenset(used)


def imports_of(code: CodeType) -> set[str]:
    """The modules that code imports when it runs."""
    return {str(s.argval) for s in instructions(code) if s.opname == "IMPORT_NAME"}


def file_to_read(name: str, package: str) -> str | None:
    """The file of a module imported by this name within a package; None if named or fileless."""
    for full in (f"{package}.{name}".strip("."), name):
        module = sys.modules.get(full)
        if module is not None and not named_module(full):
            file = getattr(module, "__file__", None)
            return file if file and Path(file).is_file() else None
    return None
