"""The examinee: a process that runs the cells of one notebook, each when it is sent.

Its starter sends a cell in a line on standard input, with a word made for it alone, and the answer
must begin with this word: what ran before could not know it. A check runs in names of the
exercise's own, over which the student's code cannot write, and with the functions of the
libraries as they were before the student's first cell. This ends what happens by accident and the
usual tricks. It is no sandbox: all is one process, and code that looks for it finds its way.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import json
import os
import re
import sys
import threading
import types
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any

from crat.batch import children

LONGEST = 300  # characters of an error
# libraries whose functions a check relies on
GUARDED = ("builtins", "crat", "json", "math", "numpy", "torch")
MAGIC = re.compile(r"^([ \t]*)[%!].*$", re.MULTILINE)
LARGEST_FILE = 2**28  # bytes
PROCESSES = 1000  # and threads, more than this user has now


class Names:
    """The names of a notebook, twice: the student's, and the exercise's own."""

    def __init__(self) -> None:
        main = types.ModuleType("__main__")  # which a class of the notebook calls its module
        sys.modules["__main__"] = main
        self.own: dict[str, Any] = vars(main)
        self.own |= {"display": print, "__builtins__": builtins}
        self.given = dict(self.own)
        self.bound = {*self.own, *dir(builtins)}  # by the exercise, or Python's own

    def run_own(self, code: types.CodeType) -> None:
        """Runs a cell of the student's, which sees all names."""
        exec(code, self.own)

    def run_given(self, code: types.CodeType) -> None:
        """Runs a cell of the exercise's, which sees the student's names that are not its own."""
        self.given.update({k: v for k, v in self.own.items() if k not in self.bound})
        before = dict(self.given)
        try:
            exec(code, self.given)
        finally:
            for name, value in self.given.items():
                if name not in before or before[name] is not value:
                    self.bound.add(name)
                    self.own[name] = value


class Library:
    """The functions and classes of some libraries as they are now, to be put back later."""

    def __init__(self) -> None:
        self.owners: dict[int, tuple[Any, dict[str, Any]]] = {}  # with what they have now
        self.functions: dict[types.FunctionType, tuple[Any, ...]] = {}
        for name, module in list(sys.modules.items()):
            first, _, rest = name.partition(".")
            if first in GUARDED and (first != "torch" or rest in ("", "nn.functional")):
                self._keep(module)
        if torch := sys.modules.get("torch"):
            self._keep(torch.Tensor)

    def _keep(self, owner: Any) -> None:
        if id(owner) in self.owners:
            return
        names = _functions(owner)
        self.owners[id(owner)] = owner, names
        for value in names.values():
            if isinstance(value, types.FunctionType):
                parts = value.__code__, value.__defaults__, value.__kwdefaults__
                self.functions[value] = parts
            elif isinstance(value, type) and value.__module__.startswith("crat."):
                self._keep(value)

    def put_back(self) -> None:
        """Undoes what was assigned since: names of modules and classes, the code of functions."""
        for owner, names in self.owners.values():
            now = vars(owner)
            for name in [name for name in names if now.get(name) is not names[name]]:
                setattr(owner, name, names[name])
            if isinstance(owner, type):
                for name in _functions(owner).keys() - names.keys():
                    delattr(owner, name)
        for function, (code, defaults, keywords) in self.functions.items():
            if function.__code__ is not code:
                function.__code__ = code
            function.__defaults__, function.__kwdefaults__ = defaults, keywords


def _functions(owner: Any) -> dict[str, Any]:
    """What can be called, or is a property or a method, of a module or a class."""
    names = vars(owner).items()
    return {name: value for name, value in names if callable(value) or hasattr(value, "__get__")}


def listen() -> tuple[SimpleQueue[bytes], Callable[[bytes], object]]:
    """The lines of standard input, and a function that writes to standard output.

    The cells get neither: they read nothing, and what they print is thrown away. The process ends
    with its starter, by which the input is closed.
    """
    asked = os.fdopen(os.dup(0), "rb")
    answers = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    lines: SimpleQueue[bytes] = SimpleQueue()

    def wait() -> None:
        for line in asked:
            lines.put(line)
        children.kill(children.descendants(os.getpid()))
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    write = os.write
    return lines, lambda data: write(answers, data)


def limit(seconds: float, memory: float) -> None:
    """Sets the limits that the system keeps: CPU time, memory, file size, processes.

    A system without them (Windows) sets none: there the starter's looks at time, memory and files
    are all.
    """
    try:
        resource = importlib.import_module("resource")
    except ImportError:
        return
    import psutil

    user = psutil.Process().username()
    running = [p.info for p in psutil.process_iter(["username", "num_threads"])]
    threads = sum(info["num_threads"] or 0 for info in running if info["username"] == user)
    for name, value in {
        "RLIMIT_CPU": seconds * (os.cpu_count() or 1),
        "RLIMIT_DATA": memory * 2**30,
        "RLIMIT_FSIZE": LARGEST_FILE,
        "RLIMIT_NPROC": threads + PROCESSES,
        "RLIMIT_CORE": 0,
    }.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            limits = int(value) if hard < 0 else min(int(value), hard)
            resource.setrlimit(kind, (limits, limits))


def imported(sources: Iterable[str]) -> None:
    """Imports what cells import, before the student's code could put itself in between."""
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            for module in modules:
                with contextlib.suppress(ImportError):
                    importlib.import_module(module)


def without_magic(source: str) -> str:
    """The code without lines of IPython's own (`%time`, `!pip`), which are no Python."""
    return MAGIC.sub(r"\1pass", source) if _fails(source) else source


def _fails(source: str) -> bool:
    try:
        compile(source, "<cell>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return True
    return False


def error_line(error: BaseException) -> str:
    """An error in one line of signs that a terminal shows, such as "ValueError: no image"."""
    try:
        text = str(error)[: 10 * LONGEST]
    except BaseException:  # a class of the student's
        text = "its text cannot be made"
    if isinstance(error, SyntaxError):
        text = f"{error.msg} (line {error.lineno})"
    line = " ".join(f"{type(error).__name__}: {text}".split()).removesuffix(":")
    return "".join(sign if sign.isprintable() else "?" for sign in line)[:LONGEST]


def main() -> None:
    """Answers each line (word, kind, source) with the word and the error, null where none was."""
    lines, answer = listen()
    first = json.loads(lines.get())
    imported(first["sources"])
    limit(*first["limits"])
    # what is needed below is in names of this function: a cell cannot put others in their place
    names, library = Names(), Library()
    run = {"own": names.run_own, "given": names.run_given, "check": names.run_given}
    load, dump, line_of, translate, put_back = (
        json.loads,
        json.JSONEncoder().encode,
        error_line,
        compile,
        library.put_back,
    )
    answer(f"{first['word']} null\n".encode())
    while True:
        cell = load(lines.get())
        error = None
        try:
            source = cell["source"]
            if cell["kind"] == "own":
                source = without_magic(source)
            else:
                put_back()
            code = translate(source, "<cell>", "exec", dont_inherit=True, optimize=0)
            run[cell["kind"]](code)
        except BaseException as raised:  # SystemExit and KeyboardInterrupt are a cell's, too
            error = line_of(raised)
        put_back()
        if "matplotlib.pyplot" in sys.modules:
            with contextlib.suppress(Exception):
                sys.modules["matplotlib.pyplot"].close("all")
        answer(f"{cell['word']} {dump(error)}\n".encode())


if __name__ == "__main__":
    main()
