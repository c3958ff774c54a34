"""The identity of a user's class and functions is their code and all that it reaches, wherever
they were written.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crat.keys import ours
from crat.keys.identity import identity

# a class, the line that is edited in it, and what it becomes
SOURCE = """
import torch
import torch.nn.functional as F
from dataclasses import dataclass, field
from pathlib import Path
from crat import defenses
from crat.attacks.objectives import full

FACTOR, WEIGHTS, NAMES = 2.0, torch.ones(3), {"a", "b"}


def helper(losses):
    return inner(losses)


def inner(losses):
    return losses * FACTOR


def wrapped(function):
    return lambda *args: function(*args)


class Base(defenses.Defense):
    shift = 0.0

    @property
    def doubled(self):
        return self.shift * 2

    @staticmethod
    def sized(x):
        return len(x)


@dataclass
class Mine(Base):
    strength: float = 1.0
    made: list = field(default_factory=lambda: [1])

    @wrapped
    def loss(self, model, x, x_adv, y):
        logits = full(model(x_adv))
        losses = helper(F.cross_entropy(logits, y, reduction="none", weight=WEIGHTS))
        return losses.mean() if "a" in NAMES else None, defenses.ClassStats.of(y, losses, logits)

    @torch.no_grad()
    def after_step(self, model, x, y):
        self.strength += 1
"""
EDITS = {
    "loss": ('reduction="none"', 'reduction="sum"'),
    "helper of a helper": ("losses * FACTOR", "losses + FACTOR"),
    "a global number": ("FACTOR, WEIGHTS, NAMES = 2.0", "FACTOR, WEIGHTS, NAMES = 3.0"),
    "a global tensor": ("torch.ones(3)", "torch.zeros(3)"),
    "a global set": ('{"a", "b"}', '{"a", "c"}'),
    "a base's attribute": ("shift = 0.0", "shift = 0.1"),
    "a base's property": ("self.shift * 2", "self.shift * 3"),
    "a static method": ("return len(x)", "return len(x) + 1"),
    "an option's default": ("strength: float = 1.0", "strength: float = 2.0"),
    "a default that is made": ("lambda: [1]", "lambda: [2]"),
    "a decorator": ("lambda *args: function(*args)", "lambda *args: function(*args[::-1])"),
    "inside a library's wrapper": ("self.strength += 1", "self.strength += 2"),
    "one for 1.0": ("shift = 0.0", "shift = 0"),
}


def made(source, how, folder):
    """The class Mine of a source: of a module's file, run in __main__'s way, or by exec with
    nothing around it.
    """
    if how == "exec":
        return _run(source, {})
    if how == "main":
        return _run(source, {"__name__": "__main__"})
    (folder / "users_own.py").write_text(source)
    sys.modules.pop("users_own", None)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        import users_own
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = before
    return users_own.Mine


def _run(source, names):
    exec(compile(source, "<cell>", "exec"), names)
    return names["Mine"]


@pytest.mark.parametrize("how", ["file", "main", "exec"])
def test_a_users_class_is_its_code(how, tmp_path):
    same = identity(made(SOURCE, how, tmp_path))
    assert same == identity(made("# moved down\n\n" + SOURCE, how, tmp_path))
    assert same.unread == ()
    for name, (old, new) in EDITS.items():
        assert SOURCE.count(old) == 1, name
        assert identity(made(SOURCE.replace(old, new), how, tmp_path)).text != same.text, name


def test_the_same_code_has_the_same_key_in_another_process(tmp_path):
    (tmp_path / "own.py").write_text(SOURCE)
    code = "import own\nfrom crat.keys.identity import identity\nprint(identity(own.Mine).text)"
    env = os.environ | {
        "PYTHONPATH": str(Path(ours.__file__).parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    run = functools.partial(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (
        run(cwd=tmp_path, env=env).stdout
        == run(cwd=tmp_path, env=env | {"PYTHONHASHSEED": "7"}).stdout
        != ""
    )


def test_a_helper_in_another_module_is_read_as_far_as_it_is_used(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    asks = "import {0}\ndef f(z, y):\n    return {0}.used(z)"
    texts = []
    for name, body in (("tools_a", "z + 1"), ("tools_b", "z + 1"), ("tools_b", "z + 2")):
        source = f"import threading\nLOCK = threading.Lock()\ndef used(z):\n    return {body}"
        (tmp_path / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)
        names = {}
        exec(asks.format(name), names)
        texts.append(identity(names["f"]))
        assert texts[-1].unread == ()  # the lock is not used
    # the module's name is part of it, and the body
    assert len({found.text for found in texts}) == 3


def test_a_helper_that_is_imported_when_it_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = []
    for body in ("z + 1", "z + 2"):
        (tmp_path / "late.py").write_text(f"def used(z):\n    return {body}")
        sys.modules.pop("late", None)
        names = {}
        exec("def f(z, y):\n    from late import used\n    return used(z)\nimport late", names)
        found.append(identity(names["f"]))
    assert found[0] != found[1]
