"""The comparison: the sides' work is counted, verdicts are ours, absent libraries are named."""

import copy
import sys
from dataclasses import replace
from types import SimpleNamespace

import attacks
import peers
import pytest
import subjects
import torch
from measuring import peak_memory

from crat.attacks import PGD, AutoAttack
from crat.config import ConfigError, ModelConfig
from crat.device import describe, pick_device
from crat.nets import models
from crat.outcomes import precision

EPS = 0.03


@pytest.fixture(scope="module")
def subject():
    """A tiny network, images and its own answers."""
    model = models.build(ModelConfig("small_cnn", width=4), 10, seed=0).eval()
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return model, x, subjects.predicted(model, x)


def in_double(subject):
    """A copy of the subject in float64."""
    model, x, y = subject
    return copy.deepcopy(model).double(), x.double(), y


def shortened(attack):
    """The same attack with next to nothing to do."""
    settings = {"steps": 2, "queries": 3, "targets": 2}
    return replace(
        attack, **{name: n for name, n in settings.items() if getattr(attack, name, 0) > n}
    )


@pytest.fixture
def short(monkeypatch):
    """AutoAttack and the attacks of the precision table, shortened."""
    whole, all_attacks = AutoAttack.attacks, precision.precision_attacks
    monkeypatch.setattr(
        AutoAttack,
        "attacks",
        lambda self, n_classes: {k: shortened(a) for k, a in whole(self, n_classes).items()},
    )
    monkeypatch.setattr(
        precision,
        "precision_attacks",
        lambda eps: {k: shortened(a) for k, a in all_attacks(eps).items()},
    )


def fake_pgd(model, eps, steps):
    """A library that looks at the model `steps` times and moves every pixel up."""

    def craft(x, y):
        for _ in range(steps):
            model(x)
        return (x + eps).clamp(0, 1)

    return craft


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins for the libraries: torchattacks leaves a step early, art looks twice more."""
    ignored = dict.fromkeys(("APGD", "APGDT", "FAB", "Square"), lambda model, **settings: model)
    stubs = {
        "torchattacks": SimpleNamespace(
            PGD=lambda model, eps, alpha, steps: fake_pgd(model, eps, steps - 1),
            MultiAttack=lambda models: fake_pgd(models[0], EPS, 5),
            **ignored,
        ),
        "foolbox": SimpleNamespace(
            PyTorchModel=lambda model, bounds, device: model,
            criteria=SimpleNamespace(Misclassification=lambda y: y),
            attacks=SimpleNamespace(
                LinfPGD=lambda abs_stepsize, steps: SimpleNamespace(
                    run=lambda model, x, y, epsilon: fake_pgd(model, epsilon, steps)(x, y)
                )
            ),
        ),
        "pyautoattack": SimpleNamespace(
            AutoAttack=lambda model, eps, seed, device: SimpleNamespace(
                run_standard_evaluation=lambda x, y, batch_size: (
                    fake_pgd(model, 2 * eps, 7)(x, y),
                    y,
                )
            )
        ),
        "adv_lib": SimpleNamespace(),
        "adv_lib.attacks": SimpleNamespace(
            pgd_linf=lambda model, x, y, eps, steps, absolute_step_size: fake_pgd(
                model, eps, steps
            )(x, y),
            apgd=lambda model, x, y, eps, norm, loss_function: x + eps,
            apgd_targeted=lambda model, x, y, eps, norm: x + 2 * eps,
            fab=lambda model, x, y, norm, targeted_restarts: x,
            fmn=lambda model, x, y, norm, steps: x,
        ),
        "art": SimpleNamespace(),
        "art.attacks": SimpleNamespace(),
        "art.estimators": SimpleNamespace(),
        "art.attacks.evasion": SimpleNamespace(
            ProjectedGradientDescentPyTorch=lambda model, eps, max_iter, **settings: (
                SimpleNamespace(
                    generate=lambda x, y: fake_pgd(model, eps, max_iter + 2)(
                        torch.from_numpy(x), y
                    ).numpy()
                )
            )
        ),
        "art.estimators.classification": SimpleNamespace(
            PyTorchClassifier=lambda model, *given, **settings: model
        ),
    }
    stubs["adv_lib"].attacks = stubs["adv_lib.attacks"]
    for name, stub in stubs.items():
        monkeypatch.setitem(sys.modules, name, stub)


def test_absent_libraries_are_named(monkeypatch):
    for name in ("torchattacks", "foolbox", "art", "pyautoattack", "adv_lib"):
        monkeypatch.setitem(sys.modules, name, None)
    present, absent = peers.releases()
    assert present == {}
    assert set(absent) == {"torchattacks", "foolbox", "art", "pyautoattack", "adv-lib"}
    assert absent["torchattacks"] == absent["art"] == absent["adv-lib"] == "not installed"
    with pytest.raises(ConfigError, match="unknown peer 'cleverhans'; known: torchattacks"):
        peers.releases(["cleverhans"])


def test_a_library_that_lacks_a_part_is_not_called_absent(monkeypatch, tmp_path):
    (tmp_path / "foolbox.py").write_text("import a_part_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "foolbox", raising=False)
    _, absent = peers.releases(["foolbox"])
    assert absent == {"foolbox": "cannot be imported (No module named 'a_part_that_nobody_has')"}


def test_steps_are_counted_and_the_rate_is_of_those_executed(subject, libraries):
    present, absent = peers.releases()
    assert set(present) == set(peers.PEERS)
    assert absent == {}
    rows = attacks.pgd_rows(
        *subject, EPS, 3, peers.pgd_sides("bfloat16", tuple(present)), seconds=60
    )
    by_side = {row["side"]: row for row in rows}
    expert = "channels last, autocast bfloat16"
    passed = {
        "crat bfloat16": 18,
        "crat float32": 18,
        "crat, as the README calls it": "",  # not counted
        "textbook": 18,
        "torchattacks": 12,
        "foolbox": 18,
        "adv-lib": 18,
        "art": 30,
        f"textbook, {expert}": 18,
        f"torchattacks, {expert}": 12,
        f"adv-lib, {expert}": 18,
    }
    assert {name: row["images passed"] for name, row in by_side.items()} == passed
    for row in rows:
        assert row["image-steps asked"] == 18
        assert row["steps"] == 3
        assert row["ratio"] > 0
        assert row["best"] >= row["image-steps/s"] > 0
        assert row["ratio of best"] > 0
        assert row["matrix TFLOP/s"] >= 0
        assert 0 <= row["robust_acc"] <= 1
        assert 1 <= row["turns"] <= attacks.TURNS
    assert rows[0]["ratio"] == rows[0]["ratio of best"] == 1


def test_steps_are_cut_where_no_turn_fits(subject):
    rows = attacks.pgd_rows(*subject, EPS, 50, peers.pgd_sides("float32"), seconds=1e-9)
    asked = [(row["steps"], row["image-steps asked"], row["turns"]) for row in rows]
    assert asked == [(1, 6, 1)] * len(rows)


def test_work_is_what_was_asked_and_executed():
    images = torch.zeros(1)
    done = [peers.Measured(images, 1.0, passed) for passed in (30, 12, None)]
    assert [attacks.executed(18, one) for one in done] == [18, 12, 18]


def test_the_work_of_a_gradient_by_hand():
    """A linear layer of 12 inputs and 5 outputs: a product forwards, one back to the image."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)).eval()
    x, y = torch.rand(3, 3, 2, 2), torch.arange(3)
    assert attacks.gradient_flops(model, x, y) == 2 * (2 * 3 * 12 * 5)


def test_an_expert_runs_channels_last_inside_autocast(subject):
    model, x, y = subject
    seen = []

    def make(model, x, eps, steps):
        counted = peers.Counted(model)

        def craft(x, y):
            counted(x)
            weights = next(p for p in model.parameters() if p.ndim == 4)
            memory = torch.channels_last
            seen.append(
                (
                    torch.is_autocast_enabled("cpu"),
                    x.is_contiguous(memory_format=memory),
                    weights.is_contiguous(memory_format=memory),
                )
            )
            return x.bfloat16()

        return peers.Side(craft, (counted,))

    side = peers.by_an_expert(make, "bfloat16")(model, x, EPS, 3)
    done = peers.measure(side, x, y)
    assert seen == [(True, True, True)]
    assert done.x_adv.dtype == torch.float32
    assert done.passed == len(x)
    assert not torch.is_autocast_enabled("cpu")
    assert next(p for p in model.parameters() if p.ndim == 4).is_contiguous()  # the user's own
    peers.measure(peers.by_an_expert(make, "float32")(model, x, EPS, 3), x, y)
    assert seen[1] == (False, True, True)


def test_the_face_is_called_on_the_plain_model(subject):
    model, x, y = subject
    done = peers.measure(peers.as_called(model, x, EPS, 2), x, y)
    assert done.passed is None
    assert ((done.x_adv - x).abs() <= EPS + subjects.SLACK).all()
    assert done.x_adv.shape == x.shape


def test_one_attack_at_a_time(subject, libraries, short):
    present = ("adv-lib", "pyautoattack")
    known = attacks.LIBRARIES | {"pyautoattack": lambda *given: given[1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacks, "LIBRARIES", known)
        table = attacks.single_table(*subject, EPS, present, "float32")
    sides = list(zip(table["attack"], table["library"], strict=True))
    assert sides == [
        *((name, lib) for name in ("apgd-ce", "apgd-t", "fab-t") for lib in ("crat", *present)),
        ("fmn", "adv-lib"),
    ]
    assert (table["ratio"][table["library"] == "crat"] == 1).all()
    assert table["ratio"].isna().tolist() == [False] * 9 + [True]
    of_adv_lib = table[table["library"] == "adv-lib"].set_index("attack")["robust_acc"]
    assert of_adv_lib["apgd-t"] == of_adv_lib["fmn"] == 1  # outside the ball; unmoved
    alone = attacks.single_table(*subject, EPS, (), "float32")
    assert list(alone["library"]) == ["crat"] * 3


def test_the_textbook_and_ours_take_the_same_steps(subject):
    model, x, y = in_double(subject)
    textbook = peers.textbook_pgd(model, x, y, EPS, 3, torch.Generator().manual_seed(1))

    class Noise(PGD):
        def _start(self, images, eps, generator):
            return (
                images + torch.empty_like(images).uniform_(-EPS, EPS, generator=generator)
            ).clamp(0, 1)

    ours = Noise(EPS, EPS / 4, 3)(model, x, y, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, textbook, rtol=0, atol=1e-12)


def test_a_side_leaves_the_global_generator_alone(subject):
    _, x, y = subject
    draws = peers.Side(lambda x, y: x + torch.rand_like(x), ())
    before = torch.random.get_rng_state()
    first, second = (peers.measure(draws, x, y).x_adv for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_peak_memory_sees_what_a_call_holds():
    peak = peak_memory(lambda: torch.ones(64, 2**18).sum(), torch.device("cpu"))
    assert peak != peak or 50 < peak < 100  # 64 MiB; nan where the system does not say


def test_an_image_outside_the_ball_or_the_box_breaks_nothing(subject):
    model, x, y = subject
    wrong = (y + 1) % 10
    assert subjects.robust_acc(model, x, y, x, EPS) == 1
    assert subjects.robust_acc(model, x, wrong, x, EPS) == 0
    assert subjects.robust_acc(model, x, wrong, x + 2 * EPS, EPS) == 1
    assert subjects.robust_acc(model, x, wrong, x.clamp_min(0.5) + 0.51, 2.0) == 1


def test_the_radius_is_halved_until_enough_survive(subject):
    model, x, y = subject
    eps = subjects.survivable(model, x, y, 0.8, 0.5)
    assert eps < 0.8
    assert (0.8 / eps).is_integer()
    assert subjects.survivable(model, x, y, eps, 0.5) == eps


def test_autoattack_against_the_libraries(subject, libraries, short):
    model, x, y = subject
    sides = peers.autoattack_sides("float32", ("pyautoattack", "torchattacks"))
    table = attacks.autoattack_table(model, x, y, EPS, sides, batch=4)
    assert list(table.columns) == [
        "side",
        "images",
        "eps",
        "seconds",
        "robust_acc",
        "ratio",
        "images passed",
    ]
    assert list(table["side"]) == ["crat float32", "pyautoattack", "torchattacks"]
    assert table["robust_acc"].between(0, 1).all()
    assert table["robust_acc"][1] == 1  # it left the ball
    assert (table["ratio"] > 0).all()
    assert list(table["images passed"][1:]) == [42, 30]
    assert table["images passed"][0] > 6


def test_ours_does_not_depend_on_the_batch(subject, short):
    model, x, y = in_double(subject)
    one, two = (
        peers.our_autoattack("float32")(model, x, EPS, batch).craft(x, y) for batch in (6, 4)
    )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_what_bfloat16_changes_is_told_for_every_attack(subject, short):
    table = precision.precision_table(*subject, EPS, slow_images=2)
    assert list(table.columns) == [
        "attack",
        "images",
        "robust_acc_float32",
        "robust_acc_bfloat16",
        "differ",
        "seed",
    ]
    assert list(table["attack"]) == [
        *("FGSM", "PGD-20", "CW-20", "MI-FGSM", "APGD-CE", "APGD-DLR"),
        *("APGD-T", "FAB-T", "Square", "AutoAttack"),
    ]
    assert list(table["images"]) == [6] * 6 + [2] * 4
    assert table.iloc[:, 2:].stack().between(0, 1).all()
    gap = (table["robust_acc_float32"] - table["robust_acc_bfloat16"]).abs()
    assert (gap <= table["differ"] + 1e-9).all()
    assert table["seed"][0] == 0  # FGSM draws nothing


def test_all_tables_in_one_run(capsys, tmp_path, short):
    out = tmp_path / "attacks.md"
    attacks.main(["small_cnn"], [4, 8], 2, images=6, peers=(), effort=attacks.QUICK, out=out)
    told = capsys.readouterr().out
    assert "torch 2" in told.splitlines()[0]
    assert describe(pick_device()) in told.splitlines()[0]
    for title in (
        "PGD",
        "AutoAttack standard",
        "One attack at a time",
        "How the time of PGD grows",
        "What bfloat16 changes",
    ):
        assert f"\n{title}\n" in told
        assert f"## {title}\n" in out.read_text()
    lines = [line for line in out.read_text().splitlines() if line.startswith("| small_cnn")]
    assert {line.split(" | ")[1] for line in lines} == {"4", "8"}
    assert sum(line.startswith("| steps") for line in out.read_text().splitlines()) == 2


def test_numbers_below_one_are_refused():
    with pytest.raises(ConfigError, match="steps must be at least 1, not 0"):
        attacks.main(["small_cnn"], [128], 0)
