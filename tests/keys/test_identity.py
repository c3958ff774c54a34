"""A key holds everything that decides: state that a repr hides, code that is not ours; what
cannot be read is told.
"""

import enum
import functools
import random
import re
import sys
import threading
import types
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from crat import attacks, defenses
from crat.attacks import FGSM, PGD, AutoAttack, Square, cw
from crat.attacks.objectives import DLR, CrossEntropy, KLFrom, TargetedDLR, Toward
from crat.attacks.universal import Universal
from crat.config import RunConfig
from crat.corruptions import Corruption
from crat.keys import ours
from crat.keys.identity import attack_identity, identity, is_plain
from crat.training.run import put_in_place

LABELS = torch.arange(4)
SCALE = 2.0


def pgd(objective):
    return PGD(0.1, 0.05, 2, objective=objective)


@dataclass(frozen=True)
class Hidden:
    """An attack of a user's, of which the repr says nothing."""

    weights: torch.Tensor = field(repr=False, compare=False, default_factory=lambda: torch.ones(3))
    name: str = field(repr=False, default="a")


def test_our_own_plain_attacks_are_named_by_their_repr():
    """The names of all published outcomes hang on it."""
    universal = Universal(0.1, "fashion_mnist_mini")
    for attack in (
        None,
        FGSM(0.1),
        pgd(DLR()),
        cw(PGD(0.1, 0.1)),
        AutoAttack(0.1),
        Square(0.1),
        universal,
        Corruption("fog", 3),
        PGD(np.float64(0.1), 0.1),
    ):
        assert attack_identity(attack) == (repr(attack), ())
    universal._fitted[nn.Linear(1, 1)] = ("", torch.ones(1))  # a cache decides nothing
    assert attack_identity(universal).text == repr(universal)


OTHERS = {
    "target": lambda i: pgd(Toward(torch.full((4,), i))),
    "dlr": lambda i: pgd(TargetedDLR(torch.full((4,), i))),
    "clean logits": lambda i: pgd(KLFrom(torch.full((4, 3), float(i)))),
    "nested": lambda i: pgd(Toward(LABELS, Toward(LABELS + i))),
    "hidden tensor": lambda i: Hidden(torch.full((3,), i)),
    "hidden name": lambda i: Hidden(torch.ones(3), name=str(i)),
    "array": lambda i: pgd(functools.partial(max, np.full(3, i))),
    "partial": lambda i: pgd(functools.partial(int.__add__, i)),
    "closure": lambda i: pgd(lambda z, y: z[:, 0] * i),
    "bound method": lambda i: pgd(Hidden(torch.full((3,), i)).__repr__),
    "module": lambda i: pgd(
        nn.Linear(2, 2, bias=False).requires_grad_(False).apply(lambda m: m.weight.fill_(i))
    ),
    "attribute set from outside": lambda i: _with_attribute(pgd(CrossEntropy()), i),
    "regular expression": lambda i: pgd(re.compile(str(i)).match),
    "random state": lambda i: pgd(random.Random(i)),
    "numpy's random state": lambda i: pgd(np.random.default_rng(i)),
    "torch's random state": lambda i: pgd(torch.Generator().manual_seed(i)),
    "frozen set": lambda i: pgd(frozenset({"a", "b", i})),
    "cached function": lambda i: pgd(functools.lru_cache(lambda z, y: z * i)),
}


def _with_attribute(attack, value):
    object.__setattr__(attack, "scale", value)
    return attack


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_what_a_repr_hides_is_in_the_key(make):
    assert attack_identity(make(5)) == attack_identity(make(5))
    assert attack_identity(make(5)) != attack_identity(make(8))
    assert attack_identity(make(5)).unread == ()


UNREAD = {
    "lock": threading.Lock,
    "file": lambda: open(__file__),  # noqa: SIM115
    "generator": lambda: (i for i in range(3)),
    "compiled": lambda: np.frompyfunc(lambda z: z, 1, 1),
}


@pytest.mark.parametrize("make", UNREAD.values(), ids=UNREAD)
def test_what_cannot_be_read_equals_nothing_and_is_told(make):
    one, other = make(), make()
    assert attack_identity(pgd(one)).text != attack_identity(pgd(other)).text
    assert len(attack_identity(pgd(one)).unread) >= 1
    assert type(one).__name__ in attack_identity(pgd(one)).unread[-1]


def test_crats_and_the_libraries_code_is_named():
    assert ours.is_named(PGD)
    assert ours.is_named(nn.Linear)
    assert ours.is_named(torch.nn.functional.relu)
    assert not ours.is_named(Hidden)
    assert not ours.is_named(pgd)
    assert is_plain(PGD(0.1, 0.1))
    assert not is_plain(type("PGD", (PGD,), {"__module__": "crat.attacks.gradient"})(0.1, 0.1))


class MyTrades(defenses.DEFENSES["trades"]):
    pass


def test_what_stands_in_crats_tables(monkeypatch):
    assert all(put_in_place(RunConfig().but(defense=name)) == {} for name in defenses.DEFENSES)
    monkeypatch.setitem(defenses.DEFENSES, "trades", MyTrades)
    assert put_in_place(RunConfig().but(defense="trades")).keys() == {"method"}
    # ours, under another's name
    monkeypatch.setitem(defenses.DEFENSES, "trades", defenses.DEFENSES["mart"])
    assert put_in_place(RunConfig().but(defense="trades")).keys() == {"method"}


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (defenses.DEFENSES["trades"], "start", "none"),
        (defenses.DEFENSES["trades"], "loss", lambda *args: None),
        (defenses.DEFENSES["pgd_at"], "epoch_end", lambda *args: None),
        (attacks.gradient, "ascend", lambda *args: None),
    ],
)
def test_what_a_session_changes_in_crats_own_is_in_every_key(place, name, value, monkeypatch):
    assert put_in_place(RunConfig().but(defense="trades")) == {}
    with monkeypatch.context() as patch:
        patch.setattr(place, name, value)
        (found,) = put_in_place(RunConfig().but(defense="trades")).values()
        assert found.unread == ()
        assert attack_identity(FGSM(0.1)).text != repr(FGSM(0.1))
    assert put_in_place(RunConfig().but(defense="trades")) == {}
    assert attack_identity(FGSM(0.1)).text == repr(FGSM(0.1))


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Rounded(nn.Module):
    def __init__(self, levels=1):
        super().__init__()
        self.linear, self.levels = nn.Linear(2, 2), levels
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        return self.linear(Straight.apply(x * self.levels))


def hooked(by):
    net = Rounded()
    net.linear.register_forward_hook(lambda module, given, out: out * by)
    return net


def test_a_model_is_its_code_state_and_hooks(monkeypatch):
    assert identity(Rounded()) == identity(Rounded())
    assert identity(Rounded(1)) != identity(Rounded(2))
    # its number, which torch counts up, is none of it
    assert identity(hooked(1)) == identity(hooked(1))
    assert len({identity(net).text for net in (Rounded(), hooked(1), hooked(2))}) == 3
    same = identity(Rounded())
    monkeypatch.setattr(Straight, "backward", staticmethod(lambda ctx, gradient: gradient * 0))
    assert identity(Rounded()) != same
    bound = Rounded()
    bound.forward = lambda x: x
    assert identity(bound) != identity(Rounded())


def test_usual_networks_are_read_whole():
    from crat.nets import models

    nets = [
        nn.LSTM(2, 2),
        nn.MultiheadAttention(4, 2),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    ]
    nets += [models.build(models.ModelConfig("preact_resnet18"), 10, (3, 32, 32), seed=0)]
    for net in nets:
        assert identity(net).unread == ()
        assert identity(net) == identity(net)


class Kind(enum.Enum):
    A, B = "a", "b"


def test_names_that_are_values_and_cycles_are_read():
    assert identity(Kind.A) != identity(Kind.B)
    ring: list = [1]
    ring.append(ring)
    other: list = [2]
    other.append(other)
    assert identity(ring) != identity(other)
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    assert identity(deep).unread == ("an object of type builtins.list",)  # too deep to walk


def test_numbers_of_another_type_differ():
    texts = [
        identity(value).text
        for value in (1, 1.0, True, "1", b"1", np.float64(1), np.int64(1), (1,), [1], {1: 1})
    ]
    assert len(set(texts)) == len(texts)
    assert identity(0.0) != identity(-0.0)
    assert identity(torch.zeros(2, 3)) != identity(torch.zeros(3, 2))
    assert identity(torch.zeros(2)) != identity(torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    "look", ["getattr(losses, 'own')(z)", "vars(losses)['own'](z)", "losses.__dict__['own'](z)"]
)
def test_a_function_that_is_looked_up_by_a_string_is_in_the_key(look, monkeypatch):
    """A module of a user's: which of its names `getattr` means is not in the code, so all of it
    counts.
    """
    found = []
    for factor in (1, 2):
        losses = types.ModuleType("losses_of_a_user")
        exec(f"def own(z):\n    return {factor} * z", vars(losses))
        monkeypatch.setitem(sys.modules, losses.__name__, losses)
        names = {"losses": losses, "__name__": "__main__"}
        exec(f"def loss(z):\n    return {look}", names)
        found.append(identity(names["loss"]))
    assert found[0].text != found[1].text
    assert not found[0].unread


@pytest.mark.parametrize("look", ["globals()['own'](z)", "eval('own(z)')"])
def test_so_is_one_among_a_functions_own_globals(look):
    found = []
    for factor in (1, 1, 2):
        names = {"__name__": "__main__"}
        exec(f"def own(z):\n    return {factor} * z\ndef loss(z):\n    return {look}", names)
        found.append(identity(names["loss"]))
    assert found[0] == found[1] != found[2]
