"""The recorded passes of a search copy, on a CPU whose recordings behave as a GPU's do: every
attack finds what it finds without them, whatever the sizes of its batches.
"""

import copy
import itertools
import warnings

import pytest
import tape
import torch
from torch import nn

from crat import graphs
from crat.attacks import (
    APGD,
    CWL2,
    FAB,
    FGSM,
    MIFGSM,
    PGD,
    AutoAttack,
    Broken,
    DeepFool,
    Square,
    autoattack,
    cw,
    falling_temperature,
    minimal_radius,
    recorded,
    temperature_pgd,
)
from crat.attacks.frozen import frozen
from crat.attacks.judge import attacked_logits
from crat.attacks.looked import SearchWarning
from crat.attacks.search import searcher

ATTACKS = {
    "fgsm": FGSM(0.1),
    "pgd": PGD(0.1, 0.02, 8),
    "pgd-first": PGD(0.1, 0.02, 8, stop="first"),
    "pgd-l2": PGD(1.0, 0.2, 6, norm="L2", restarts=2),
    "temperature": temperature_pgd(PGD(0.1, 0.02, 6), 0.1),
    "temperature-falling": falling_temperature(PGD(0.1, 0.02, 6), 10.0, 0.1),
    "cw": cw(PGD(0.1, 0.02, 6)),
    "mifgsm": MIFGSM(0.1, steps=6),
    "apgd": APGD(0.1, steps=8),
    "apgd-t": APGD(0.1, loss="dlr", steps=6, targets=2),
    "fab": FAB(0.1, steps=5, targets=0),
    "fab-t": FAB(0.1, steps=5, targets=2),
    "square": Square(0.1, queries=20),
    "deepfool": DeepFool(steps=6),
    "cwl2": CWL2(steps=8, search_steps=2),
    "autoattack": AutoAttack(0.05, version="rand"),
}


def net():
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(6 * 36, 5)).double().eval()
    model[1].running_mean.normal_(0, 0.3)
    model[1].running_var.uniform_(0.5, 2)
    return model


def batch(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 2, 6, 6, generator=generator, dtype=torch.float64)
    return x, net()(x).argmax(1)


def images(found):
    return found.x_adv if isinstance(found, Broken) else found


@pytest.fixture(autouse=True)
def recording(monkeypatch):
    """Small sizes, and recordings that are made at once."""
    monkeypatch.setattr(graphs, "can_record", tape.can_record)
    monkeypatch.setattr(graphs, "record", tape.record)
    monkeypatch.setattr(recorded, "SIZES", (4, 8, 16, 32))
    monkeypatch.setattr(recorded, "EAGER_PASSES", 0)


def pair(model=None, x=None):
    """The same copy with and without recordings."""
    model, x = model or net(), batch()[0] if x is None else x
    plain, fast = searcher(model, x[:16]), searcher(model, x[:16])
    plain.recordings = None
    assert fast.recordings is not None
    return plain, fast


def sizes(fast):
    return {key[0] for key, made in fast.recordings.made.items() if made is not None}


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_finds_the_same(name):
    (plain, fast), (x, y) = pair(), batch()
    expected, found = (images(ATTACKS[name](searched, x, y)) for searched in (plain, fast))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert (found != x).any()
    assert sizes(fast), "nothing was recorded"


def test_a_battery_whose_batch_shrinks_uses_few_sizes(monkeypatch):
    """And its verdicts are those of the model itself."""
    monkeypatch.setitem(autoattack.LOOK_EVERY, "cpu", 1)
    (plain, fast), (x, y), model = pair(), batch(30), net()
    lengths = []
    kept = fast.forward
    fast.forward = lambda x: lengths.append(len(x)) or kept(x)
    attack = AutoAttack(0.04, version="rand")
    expected, found = (attack(searched, x, y, judge=model) for searched in (plain, fast))
    torch.testing.assert_close(found.x_adv, expected.x_adv, rtol=0, atol=1e-9)
    assert torch.equal(found.broken_by, expected.broken_by)
    assert len(set(lengths)) > 4, "the batch did not shrink"
    assert sizes(fast) <= {4, 8, 16, 32}
    assert len(sizes(fast)) > 1


def test_several_backward_passes_follow_one_forward_pass():
    (plain, fast), (x, _) = pair(), batch(7)
    gradients = []
    with frozen(plain), frozen(fast):
        for searched in (plain, fast):
            leaf = x.clone().requires_grad_()
            logits = searched(leaf)
            gradients.append(
                [torch.autograd.grad(z.sum(), leaf, retain_graph=True)[0] for z in logits.unbind(1)]
            )
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_passes_that_interleave(order):
    """A backward pass after another forward pass of the same recording does its own one again."""
    (plain, fast), parts = pair(), [batch(n, seed)[0] for n, seed in ((7, 1), (5, 2), (16, 3))]
    with frozen(plain), frozen(fast):
        leaves = [part.clone().requires_grad_() for part in parts]
        logits = [fast(leaf) for leaf in leaves]
        with torch.no_grad():
            fast(parts[0] * 0.5)  # as Square asks
        for number in order:
            leaf = parts[number].clone().requires_grad_()
            answer = plain(leaf)
            torch.testing.assert_close(logits[number], answer)
            (expected,) = torch.autograd.grad(answer.square().sum(), leaf)
            (found,) = torch.autograd.grad(logits[number].square().sum(), leaves[number])
            torch.testing.assert_close(found, expected)


def test_a_pass_of_another_size_spoils_the_activations_too(monkeypatch):
    """Recordings of a network share memory: a backward pass after another size's begins anew."""
    (_, fast), (x, _) = pair(), batch()
    passes = []
    with frozen(fast):
        fast(x[:4]), fast(x[:16])
        plain_pass = recorded.Recording._pass
        monkeypatch.setattr(
            recorded.Recording, "_pass", lambda *args: passes.append(args) or plain_pass(*args)
        )
        small, large = (x[:n].clone().requires_grad_() for n in (4, 16))
        logits = fast(small), fast(large)
        assert len(passes) == 2
        torch.autograd.grad(logits[1].sum(), large)
        assert len(passes) == 2
        torch.autograd.grad(logits[0].sum(), small)
        assert len(passes) == 3


def test_copies_of_two_models_do_not_meet():
    first, second = net(), net()
    second[0].weight.data.mul_(-1)
    x, y = batch(12)
    fast = [pair(model)[1] for model in (first, second)]
    plain = [pair(model)[0] for model in (first, second)]
    attack = PGD(0.1, 0.02, 3)
    for _ in range(2):
        for one, other in zip(fast, plain, strict=True):
            torch.testing.assert_close(attack(one, x, y), attack(other, x, y), rtol=0, atol=1e-9)


def test_the_first_passes_are_made_by_python(monkeypatch):
    monkeypatch.setattr(recorded, "EAGER_PASSES", 3)
    (_, fast), (x, y) = pair(), batch()
    PGD(0.1, 0.02, 3)(fast, x, y)
    assert not sizes(fast)
    PGD(0.1, 0.02, 1)(fast, x, y)
    assert sizes(fast) == {32}


def test_what_is_larger_than_every_size_is_made_by_python():
    (plain, fast), (x, y) = pair(), batch(33)
    attack = PGD(0.1, 0.02, 3)
    assert torch.equal(attack(fast, x, y), attack(plain, x, y))
    assert not sizes(fast)


def failing(change):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            return change(self, x)

    return Odd().double().eval()


def waits(self, x):
    return self.inner(x * (1.0 if float(x.detach().sum()) > -1 else 0.5))


def mixes(self, x):
    return self.inner(x - x.mean(0))


ODD = {
    "waits": (waits, "a recording fails"),
    "mixes": (mixes, "a recording changed the"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_cannot_be_recorded_is_told_in_a_line_and_searched_as_it_was(kind):
    change, told = ODD[kind]
    (plain, fast), (x, y) = pair(failing(change)), batch()
    attack = PGD(0.1, 0.02, 3)
    with pytest.warns(SearchWarning, match=f"the search at 32 images is not recorded: {told}"):
        found = attack(fast, x, y)
    assert torch.equal(found, attack(plain, x, y))
    with warnings.catch_warnings(action="error", category=SearchWarning):
        attack(fast, x, y)  # told once
    assert not sizes(fast)


def test_which_copies_are_not_recorded():
    x, _ = batch()
    assert searcher(net(), x).recordings is not None
    assert searcher(net(), x, fold=False).recordings is None
    hooked = net()
    hooked[0].register_forward_hook(lambda module, args, out: None)
    assert searcher(hooked, x).recordings is None

    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(72, 5)

        def __deepcopy__(self, memo):
            raise RuntimeError("there is only one")

        def forward(self, x):
            return self.inner(x.flatten(1))

    assert searcher(Single().double(), x).recordings is None


def test_outside_eval_mode_nothing_is_replayed():
    (_, fast), (x, _) = pair(), batch()
    fast.train()
    fast(x)
    assert not sizes(fast)


def test_a_copy_of_a_copy_records_anew():
    (plain, fast), (x, y) = pair(), batch()
    attack = PGD(0.1, 0.02, 3)
    attack(fast, x, y)
    again = copy.deepcopy(fast)
    assert not sizes(again)
    torch.testing.assert_close(attack(again, x, y), attack(plain, x, y), rtol=0, atol=1e-9)
    assert again.recordings is not fast.recordings


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluation_and_radii_on_a_recorded_copy(dtype, monkeypatch):
    """In float32 and bfloat16 a recording rounds otherwise, so the statistic is compared."""
    model, (x, y) = net().float(), batch(60)
    x = x.float()
    attack = PGD(0.05, 0.01, 8)
    found = []
    for can in (tape.can_record, lambda device: False):
        monkeypatch.setattr(graphs, "can_record", can)
        wrong = attacked_logits(model, x, y, attack, batch_size=20, dtype=dtype).argmax(1) != y
        fast = searcher(model, x[:16], dtype)
        radius = minimal_radius(attack, fast, x[:20], y[:20], largest=0.3, rounds=5, judge=model)
        found.append((wrong.sum(), radius.median()))
    (wrong, radius), (expected, plain) = found
    assert abs(wrong - expected) <= 3
    assert abs(radius - plain) <= 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_recordings_are_made_and_find_the_same(name, dtype, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(recorded, "EAGER_PASSES", 0)
    model, (x, y) = net().float().cuda(), batch(48)
    x, y = x.float().cuda(), y.cuda()
    plain, fast = searcher(model, x[:16], dtype), searcher(model, x[:16], dtype)
    plain.recordings = None
    with warnings.catch_warnings(action="error", category=SearchWarning):
        found = images(ATTACKS[name](fast, x, y))
    expected = images(ATTACKS[name](plain, x, y))
    assert sizes(fast)
    with torch.no_grad():
        wrong = [(model(made).argmax(1) != y).sum().item() for made in (found, expected)]
    assert abs(wrong[0] - wrong[1]) <= 4
