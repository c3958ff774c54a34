"""Identity of a value: the whole state of an object, and the code that is not crat's.

A key of the store must hold all that decides a result besides the config. Code of crat, of Python
and of installed packages is named (crat.keys.ours); any other code that is reached (a class, its
bases and helpers, globals, closures, hooks; from a file, a notebook or exec) is read as it runs:
bytecode (another Python has another), constants, values, tensors. A value that cannot be read (a
lock, an open file, a compiled callable) is listed in `unread`, and then no stored result is used
again.
"""

from __future__ import annotations

import copyreg
import hashlib
import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import Field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crat.keys import ours

ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
# types whose repr is complete
NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype)
SCALARS = (str, bytes, int, float, complex)
CONTAINERS = (list, dict, tuple, set, frozenset, *SCALARS)

ours.changes()  # records crat's code as it was imported
_PROCESS = os.urandom(8).hex()
_HELD: list[Any] = []  # what could not be read, so that no other object gets its id


class Identity(NamedTuple):
    """Identity of a value: 16 hex digits of a SHA-256 (or its repr), and what could not be read."""

    text: str
    unread: tuple[str, ...] = ()


def identity(value: Any, aside: Iterable[Tensor] = ()) -> Identity:
    """Identity of any value; equal for values that the same code makes, in another process, too.

    aside: tensors of which only the place in this order counts: the caller compares them itself.
    """
    walk = _Walk({(id(tensor),): place for place, tensor in enumerate(aside)})
    try:
        walk.value(value)
    except RecursionError:
        walk.cannot(value)
    return Identity(walk.hash.hexdigest()[:16], tuple(dict.fromkeys(walk.unread)))


def attack_identity(attack: Any) -> Identity:
    """Identity of an attack in keys: its repr where that is complete, else a hash of all of it.

    The repr is complete for crat's attacks with plain settings.
    """
    changes = ours.changes()
    if is_plain(attack) and not changes:
        return Identity(repr(attack))
    text, unread = identity((attack, changes))
    return Identity(f"{type(attack).__qualname__} {text}", unread)


def put_in_place(**values: tuple[Any, Any]) -> dict[str, Identity]:
    """Identities of replaced parts: those that are not crat's, or not as they were imported.

    values: name -> (what stands in crat's table now, what came with crat).
    Returns {} where nothing is replaced. "changes" holds crat's classes and functions that were
    changed in this session.
    """
    foreign = {name: now for name, (now, came) in values.items() if now is not came}
    if changes := ours.changes():
        foreign["changes"] = changes
    return {name: identity(value) for name, value in foreign.items()}


def is_plain(value: Any) -> bool:
    """Whether the repr is complete: a plain value, or a dataclass of crat with plain fields."""
    if isinstance(value, np.generic) or type(value) in ATOMS:
        return True
    if type(value) is tuple:
        return all(map(is_plain, value))
    if not (is_dataclass(value) and ours.of_crat(type(value))):
        return False
    if not vars(value).keys() <= {field.name for field in fields(value)}:
        return False
    return all(is_plain(getattr(value, field.name)) for field in _that_decide(value))


def _that_decide(value: Any) -> list[Field]:
    """The fields of a dataclass of crat without its caches (neither init nor compare)."""
    return [field for field in fields(value) if field.init or field.compare]


class _Walk:
    """One pass over all that a value reaches, each object once, into a hash.

    unread: descriptions of the objects that could not be read.
    """

    def __init__(self, seen: dict[Any, int] | None = None) -> None:
        self.hash = hashlib.sha256()
        self.seen = dict(seen or {})
        self.alive: list[Any] = []  # so that no id is given again during the walk
        self.unread: list[str] = []

    def put(self, *words: str | bytes) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else word.encode("utf-8", "surrogatepass")
            self.hash.update(b"%d:" % len(data) + data)

    def again(self, value: Any, *more: Any) -> bool:
        """Whether an object was met before; if so, its number is put into the hash."""
        key = (id(value), *more)
        if key in self.seen:
            self.put("again", str(self.seen[key]))
            return True
        self.seen[key] = len(self.seen)
        self.alive.append(value)
        return False

    def value(self, value: Any, used: frozenset[str] = frozenset()) -> None:
        """Puts any value into the hash.

        used: attributes that the naming code uses; of a module whose code is read, these are read.
        """
        if type(value) in ATOMS or isinstance(value, NAMED):
            self.put(type(value).__name__, value if isinstance(value, bytes) else repr(value))
        elif type(value) is tuple:
            self.items("tuple", value)
        elif isinstance(value, ModuleType):
            self.module(value, used)
        elif not self.again(value):
            ways = (way for kinds, way in _HOW if isinstance(value, kinds))
            next(ways, _Walk.object)(self, value)

    def items(self, what: str, values: Iterable[Any]) -> None:
        values = list(values)
        self.put(what, str(len(values)))
        for value in values:
            self.value(value)

    def tensor(self, value: Tensor) -> None:
        try:
            plain = value.detach().cpu().resolve_conj().resolve_neg()
            data = plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            self.put("tensor", str(value.dtype), str(tuple(value.shape)), data)
        except (RuntimeError, NotImplementedError, TypeError):
            return self.cannot(value)
        hooks = list((getattr(value, "_backward_hooks", None) or {}).values())
        if vars(value) or hooks or not ours.is_named(type(value)):
            self.items("more", (type(value), vars(value), hooks))

    def array(self, value: np.ndarray | np.generic) -> None:
        value = np.asarray(value)
        self.put("array", str(value.dtype), str(value.shape))
        if value.dtype.hasobject:
            self.items("objects", value.ravel().tolist())
        else:
            self.put(np.ascontiguousarray(value).tobytes())

    def module(self, value: ModuleType, used: frozenset[str]) -> None:
        self.put("module", value.__name__)
        if ours.named_module(value.__name__) or self.again(value, used):
            return
        names = used
        if ours.ANY in used:
            names = frozenset(name for name in vars(value) if not name.startswith("__"))
        for name in sorted(names & vars(value).keys()):
            self.put(name)
            self.value(vars(value)[name], used)

    def function(self, value: FunctionType) -> None:
        closure = [_content(cell) for cell in value.__closure__ or ()]
        if ours.is_named(value):  # a wrapper of a library may hold a function that is not
            version = ours.version(value.__module__)
            self.put("function", str(value.__module__), value.__qualname__, version)
            return self.items("holds", [*closure, getattr(value, "__wrapped__", None)])
        self.code(value.__code__)
        self.items("function", (value.__defaults__, value.__kwdefaults__, vars(value), *closure))
        read, used = ours.globals_of(value.__code__)
        if ours.ANY in read:
            read = {name for name in value.__globals__ if not name.startswith("__")}
        for name in sorted(read & value.__globals__.keys()):
            self.put(name)
            self.value(value.__globals__[name], used)
        for name in sorted(ours.imports_of(value.__code__)):
            self.imported(name, str(value.__globals__.get("__package__") or ""))

    def imported(self, name: str, package: str) -> None:
        """Puts a module that a running function imports: its name, and its file if it is read."""
        file = ours.file_to_read(name, package)
        self.put(name, Path(file).read_bytes() if file else b"")

    def code(self, code: CodeType) -> None:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self.put("code", code.co_name, code.co_code, code.co_exceptiontable, repr((counts, names)))
        self.items("constants", code.co_consts)

    def cls(self, value: type) -> None:
        if ours.is_named(value):
            version = ours.version(value.__module__)
            return self.put("class", value.__module__, value.__qualname__, version)
        self.put("class", value.__qualname__)
        self.items("bases", (type(value), *value.__bases__))
        attributes = {}
        for name, attribute in vars(value).items():
            if name not in ours.NOT_CODE and not _is_slot(attribute):
                attributes[name] = attribute
        for field in attributes.pop("__dataclass_fields__", {}).values():
            defaults = (field.default, field.default_factory)
            self.items("field", (field.name, *defaults, str(field.type), field.init))
        for name in sorted(attributes):
            self.put(name)
            self.value(attributes[name])

    def object(self, value: Any) -> None:
        """Puts any other object: its class, attributes, contents and pickled state in C."""
        cls = type(value)
        self.value(cls)
        named_bases = filter(ours.is_named, cls.__mro__)
        pickles = cls in copyreg.dispatch_table or any(map(_pickles, named_bases))
        if not (pickles and ours.is_named(cls)) or isinstance(value, nn.Module):
            self.items("state", sorted(_state(value).items()))
        if isinstance(value, nn.Module):
            return None
        if isinstance(value, CONTAINERS) and not pickles:
            return self.contents(value)
        by_table: Any = copyreg.dispatch_table.get(cls)
        reduce: Any = (cls if pickles else object).__reduce_ex__
        try:
            reduced = by_table(value) if by_table else reduce(value, 4)
        except Exception:  # each has its own way to say that it cannot be pickled
            return self.cannot(value)
        if isinstance(reduced, str):
            return self.by_name(reduced, value)
        if not pickles:
            reduced = ()
        parts = [list(part) if hasattr(part, "__next__") else part for part in reduced]
        return self.items("pickled", parts)

    def by_name(self, name: str, value: Any) -> None:
        """Puts an object that a pickle would only name.

        A wrapped function is read; an installed object is found by its name.
        """
        self.put(name)
        if hasattr(value, "__wrapped__"):
            self.value(value.__wrapped__)
        elif not ours.found_by_name(value) and getattr(np, name, None) is not value:
            self.cannot(value)

    def contents(self, value: Any) -> None:
        if isinstance(value, (set, frozenset)):
            self.unordered(value)
        elif isinstance(value, dict):
            self.items("dict", dict.items(value))
        elif isinstance(value, (list, tuple)):
            self.items("list", value)
        else:
            self.put(next(kind.__repr__(value) for kind in SCALARS if isinstance(value, kind)))

    def unordered(self, values: Iterable[Any]) -> None:
        walks = [(_Walk(self.seen), value) for value in values]
        for walk, value in walks:
            walk.value(value)
            self.unread += walk.unread
        self.put("set", *sorted(walk.hash.hexdigest() for walk, _ in walks))

    def cannot(self, value: Any) -> None:
        """Puts an object that cannot be read: equal only to itself, and in this process only."""
        _HELD.append(value)
        cls = type(value)
        name = getattr(value, "__name__", None) or "an object"
        self.unread.append(f"{name} of type {cls.__module__}.{cls.__name__}")
        self.put("unread", _PROCESS, str(id(value)))


_HOW: tuple[tuple[Any, Callable[[_Walk, Any], None]], ...] = (
    (Tensor, _Walk.tensor),
    ((np.ndarray, np.generic), _Walk.array),
    (type, _Walk.cls),
    (FunctionType, _Walk.function),
    (CodeType, _Walk.code),
    (CellType, lambda walk, cell: walk.value(_content(cell))),
    (MethodType, lambda walk, method: walk.items("method", (method.__func__, method.__self__))),
    (
        (BuiltinFunctionType, MethodWrapperType),
        lambda walk, f: walk.items("builtin", (f.__name__, f.__self__)),
    ),
    (property, lambda walk, p: walk.items("property", (p.fget, p.fset, p.fdel))),
    ((staticmethod, classmethod), lambda walk, m: walk.items(type(m).__name__, (m.__func__,))),
    (cached_property, lambda walk, p: walk.value(p.func)),
    (weakref.ref, lambda walk, ref: walk.items("weak", (ref(),))),
    (RemovableHandle, lambda walk, handle: walk.put("handle")),
    (torch.Generator, lambda walk, g: walk.items("generator", (str(g.device), g.get_state()))),
    (np.random.Generator, lambda walk, g: walk.items("generator", (g.bit_generator.state,))),
)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "an empty cell"


def _is_slot(value: Any) -> bool:
    return type(value).__name__ in ("member_descriptor", "getset_descriptor")


def _pickles(cls: type) -> bool:
    """Whether a class brings its own pickling, as those do that hold state in C."""
    methods = {"__reduce__", "__reduce_ex__", "__getstate__"} & vars(cls).keys()
    return bool(methods) and cls not in (object, *CONTAINERS)


def _state(value: Any) -> dict[str, Any]:
    """Attributes of an object that decide: no caches, and torch's hooks without numbers."""
    cls = type(value)
    state = dict(getattr(value, "__dict__", {}))
    caches = set()
    for base in cls.__mro__:
        for name, attribute in vars(base).items():
            if type(attribute).__name__ == "member_descriptor" and hasattr(value, name):
                state[name] = getattr(value, name)
            if isinstance(attribute, cached_property):
                caches.add(name)
    if is_dataclass(value) and ours.of_crat(cls):
        deciding = _that_decide(value)
        caches |= {field.name for field in fields(value) if field not in deciding}
    state = {name: held for name, held in state.items() if name not in caches}
    if isinstance(value, nn.Module):
        for name, held in state.items():
            if "_hooks" in name and isinstance(held, dict):
                state[name] = list(held.values())
    return state
