"""ABSLD, Fair-ARD and self-distillation against their formulas written out; AT with smoothed
labels as a preset.
"""

import re

import pytest
import torch
from torch import nn

from crat.attacks import PGD
from crat.attacks.objectives import PlainCrossEntropy
from crat.config import ConfigError
from crat.defenses import ClassStats, Task, preset
from crat.defenses.absld import ABSLD
from crat.defenses.fair_ard import Counting, FairARD
from crat.defenses.losses import soft_divergence
from crat.defenses.self_distillation import SelfDistillation
from crat.nets.models import Classifier, Normalize

EPS, STEP, STEPS = 0.1, 0.04, 3
COUNTS = (5, 40, 9)
KINDS = {"absld": ABSLD, "fair_ard": FairARD, "self_distillation": SelfDistillation}


def network(seed=0, k=3):
    generator = torch.Generator().manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten())
    model = Classifier("tiny", Normalize((0.0,), (1.0,), 1), body, nn.Linear(16, k), k).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model.train()


def teacher():
    return network(1).requires_grad_(False).eval()


def batch(labels=(0, 1, 1, 2, 0, 1, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(len(labels), 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.tensor(labels)


def method(name, epochs=300, learns=True, **options):
    kind = KINDS[name]
    start, mode = kind.crafting(**options)
    made = kind(PGD(EPS, STEP, STEPS, start=start, batch_norm=mode), **options)
    asked = teacher() if learns else None
    made.prepare(Task(torch.tensor(COUNTS), (1, 4, 4), epochs, asked))
    return made


def crafted(defense, model, x, y):
    return defense.craft(model, x, y, generator=torch.Generator().manual_seed(1))


def softmax(z):
    return z.exp() / z.exp().sum(1, keepdim=True)


def divergence(z_t, z):
    """KL of two softmaxes, from exponentials."""
    q, p = softmax(z_t), softmax(z)
    return (q * (q / p).log()).sum(1)


def cross_entropy(z, y):
    return -softmax(z)[torch.arange(len(y)), y].log()


def absld_written_out(model, x, x_adv, y, at, share=0.7, compounds=False):
    z_t, (adv, nat) = teacher()(x), (at[0][y][:, None], at[1][y][:, None])
    adv, nat = (adv * nat, adv * nat) if compounds else (adv, nat)
    attacked, clean = model(x_adv), model(x)
    return share * divergence(z_t / adv, attacked) + (1 - share) * divergence(z_t / nat, clean)


def ard_written_out(model, x, x_adv, y, weight, t=4.0, alpha=0.6):
    far = divergence(teacher()(x) / t, model(x_adv) / t)
    return weight[y] * (alpha * t**2 * far + (1 - alpha) * cross_entropy(model(x), y))


def rslad_written_out(model, x, x_adv, y, weight):
    z_t = teacher()(x)
    parts = 5 * divergence(z_t, model(x_adv)) + divergence(z_t, model(x))
    return weight[y] * parts / 6


def self_written_out(model, x, x_adv, y, share=0.3, t=2.0):
    z, counts = model(x_adv), torch.tensor(COUNTS).double()
    balanced = cross_entropy(z + counts.log(), y)
    return (1 - share) * balanced + share * t**2 * divergence(teacher()(x) / t, z / t)


TEMPERATURES = (
    torch.tensor([0.5, 2.0, 1.0]).double(),
    torch.tensor([1.5, 0.8, 4.0]).double(),
)
WEIGHTS = torch.tensor([5 / 6, 2.5, 1.1]).double()
CASES = {
    "absld": (absld_written_out, {"adversarial_share": 0.7}, {"at": TEMPERATURES}),
    "absld compounds": (
        absld_written_out,
        {"adversarial_share": 0.7, "compounds": True},
        {"at": TEMPERATURES, "compounds": True},
    ),
    "fair_ard": (ard_written_out, {"temperature": 4.0, "alpha": 0.6}, {"weight": WEIGHTS}),
    "fair_ard rslad": (rslad_written_out, {"base": "rslad"}, {"weight": WEIGHTS}),
    "self_distillation": (self_written_out, {"share": 0.3, "temperature": 2.0}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_is_the_formula_with_its_whole_gradient(case):
    written_out, options, values = CASES[case]
    defense, model, (x, y) = method(case.split()[0], **options), network(), batch()
    state = {"temperature_adv": TEMPERATURES[0], "temperature_nat": TEMPERATURES[1]}
    state |= {"weight": WEIGHTS}
    defense.state.update({name: v for name, v in state.items() if name in defense.state})
    x_adv = crafted(defense, model, x, y)
    assert (x_adv - x).abs().max() == pytest.approx(EPS, abs=0.002)
    loss, stats = defense.loss(model, x, x_adv, y)
    expected = written_out(model, x, x_adv, y, **values)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-10, atol=0)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(loss, parameters)
    theirs = torch.autograd.grad(expected.mean(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)
    sums = torch.zeros(3).double().index_add(0, y, expected.detach())
    torch.testing.assert_close(stats.loss, sums, rtol=1e-10, atol=0)
    assert stats.n.tolist() == [2, 3, 2]


@pytest.mark.parametrize("case", ["absld", "fair_ard rslad"])
def test_the_attack_ascends_the_divergence_from_the_teachers_label(case):
    """The attack on the formula itself, from the same start, gives the same images."""
    name, *base = case.split()
    defense, model, (x, y) = method(name, **({"base": base[0]} if base else {})), network(), batch()
    hard = torch.ones(3).double()
    if name == "absld":
        defense.state["temperature_adv"] = hard = TEMPERATURES[0]
    label = teacher()(x) / hard[y][:, None]
    expected = defense.attack.perturb(
        model,
        x,
        y,
        objective=lambda z, _: divergence(label, z),
        generator=torch.Generator().manual_seed(1),
    )
    torch.testing.assert_close(crafted(defense, model, x, y), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_the_teacher_is_left_as_it_was_and_is_no_part_of_the_state(name):
    defense, model, (x, y) = method(name), network(), batch()
    before = {key: value.clone() for key, value in defense.teacher.state_dict().items()}
    loss, stats = defense.loss(model, x, crafted(defense, model, x, y), y)
    loss.backward()
    defense.after_step(model, x, y)
    defense.epoch_end(stats, None)
    after = defense.teacher.state_dict()
    assert all(torch.equal(before[key], value) for key, value in after.items())
    assert not defense.teacher.training
    assert all(p.grad is None and not p.requires_grad for p in defense.teacher.parameters())
    assert not any("teacher" in key for key in defense.state_dict())
    shapes = [tuple(value.shape) for value in defense.state_dict().values()]
    assert set(shapes) <= {(), (3,), (1, 3)}


@pytest.mark.parametrize("name", KINDS)
def test_a_method_without_its_teacher_is_a_line(name):
    defense, model, (x, y) = method(name, learns=False), network(), batch()
    with pytest.raises(ConfigError, match="learns from a teacher, and its task has none"):
        defense.loss(model, x, x, y)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("absld", {"rate": -0.1}, "rate of absld is at least 0 and finite, not -0.1"),
        ("absld", {"coolest": 2.0}, "coolest of absld is in (0, 1], not 2.0"),
        ("fair_ard", {"base": "iad"}, "base of fair_ard is one of ard, rslad, not 'iad'"),
        ("fair_ard", {"alpha": 1.5}, "alpha of fair_ard is in [0, 1], not 1.5"),
        ("self_distillation", {"share": 2.0}, "share of self_distillation is in [0, 1], not 2.0"),
    ],
)
def test_a_wrong_setting_is_a_line(name, options, line):
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
        method(name, **options)


def stats_of(n, clean_loss=(0.0, 0.0, 0.0)):
    """Sums of an epoch: the images of each class and their clean cross-entropy."""
    nothing = torch.zeros(3).double()
    sums = torch.tensor(clean_loss).double()
    square = torch.zeros(3, 3).double()
    counted = torch.tensor(n).double()
    return ClassStats(counted, nothing, nothing, nothing, sums, nothing, square, square)


def test_absld_moves_the_temperatures_by_the_class_mean_losses():
    """Adversarial losses 6 of 2 images, 3 of 3, 2 of 1: means 3, 1, 2, so gaps 1, -1, 0."""
    absld = method("absld")
    absld.state["adversarial_losses"] = torch.tensor([[6.0, 3.0, 2.0]]).double()
    absld.epoch_end(stats_of((2, 3, 1), (2.0, 9.0, 2.0)), None)
    torch.testing.assert_close(
        absld.state["temperature_adv"], torch.tensor([0.9, 1.1, 1.0]).double()
    )
    # clean means 1, 3, 2
    torch.testing.assert_close(
        absld.state["temperature_nat"], torch.tensor([1.1, 0.9, 1.0]).double()
    )
    assert absld.state["adversarial_losses"].tolist() == [[0, 0, 0]]


def test_absld_keeps_the_temperature_of_an_absent_class_and_the_bounds():
    """Of the two present classes one is as far above the mean as the other below."""
    absld = method("absld", rate=3.0, coolest=0.4, warmest=2.5)
    absld.state["adversarial_losses"] = torch.tensor([[6.0, 3.0, 0.0]]).double()
    absld.epoch_end(stats_of((2, 3, 0), (1.0, 1.5, 0.0)), None)
    assert absld.state["temperature_adv"].tolist() == pytest.approx([0.4, 2.5, 1.0])
    assert absld.state["temperature_nat"].tolist() == [1, 1, 1]  # no gap: nothing moves
    absld.epoch_end(stats_of((0, 0, 0)), None)
    assert absld.state["temperature_adv"].isfinite().all()


@pytest.mark.parametrize(
    ("epochs", "rates"), [(300, [1.0] * 4), (6, [1, 1, 1, 0.1, 0.01, 0.001]), (1, [0.001])]
)
def test_abslds_rate_falls_where_the_codes_does_in_proportion(epochs, rates):
    absld, moves = method("absld", epochs=epochs, warmest=1e9), []
    for _ in rates:
        before = absld.state["temperature_adv"]
        absld.state["adversarial_losses"] = torch.tensor([[3.0, 1.0, 2.0]]).double()
        absld.epoch_end(stats_of((1, 1, 1)), None)
        moves.append((absld.state["temperature_adv"] - before)[1].item())
    assert moves == pytest.approx([0.1 * rate for rate in rates])


def test_absld_sums_the_adversarial_losses_of_an_epoch_once_a_step():
    """AWP asks for the loss twice in a step."""
    absld, model, expected = method("absld"), network(), torch.zeros(3).double()
    for labels in ((0, 1, 1, 2, 0, 1, 2), (1, 1, 2)):
        x, y = batch(labels)
        x_adv = crafted(absld, model, x, y)
        absld.loss(model, x, x_adv, y)
        absld.loss(model, x, x_adv, y)
        absld.after_step(model, x, y)
        of_batch = cross_entropy(model(x_adv), y)
        expected = expected.index_add(0, y, of_batch.detach())
    torch.testing.assert_close(absld.state["adversarial_losses"][0], expected)


def test_a_rate_of_zero_leaves_the_temperatures_at_one():
    absld = method("absld", rate=0.0)
    absld.state["adversarial_losses"] = torch.tensor([[6.0, 3.0, 2.0]]).double()
    absld.epoch_end(stats_of((2, 3, 1)), None)
    assert absld.state["temperature_adv"].tolist() == [1, 1, 1]


def test_the_released_divergence_is_over_the_outputs_and_has_room():
    z_t, z = torch.tensor([[0.0, 1.0, 2.0]]).double(), torch.tensor([[1.0, 0.0, 0.5]]).double()
    q = softmax(z_t)
    expected = (q * ((q + 1e-5).log() - softmax(z).log())).sum(1) / 3
    torch.testing.assert_close(soft_divergence(z_t, z, released=True), expected)
    torch.testing.assert_close(soft_divergence(z_t, z), divergence(z_t, z))
    far = torch.tensor([[500.0, 0.0, 0.0]])
    assert soft_divergence(far, -far, released=True).isfinite().all()


def test_the_iterates_that_are_right_are_counted():
    """Two images: right, right, wrong; and wrong, wrong, right."""
    counting = Counting(PlainCrossEntropy(), torch.zeros(2, dtype=torch.long))
    y = torch.tensor([0, 1])
    for first, second in ((0, 2), (0, 0), (1, 1)):
        z = torch.eye(3)[[first, second]] * 3
        torch.testing.assert_close(counting(z, y), PlainCrossEntropy()(z, y))
    assert counting.right.tolist() == [2, 1]


@pytest.mark.parametrize("base", ["ard", "rslad"])
def test_fair_ard_counts_what_its_attack_meets(base):
    """As many iterates as steps: the start among them, the end not."""
    fair, model, expected = method("fair_ard", base=base), network(), torch.zeros(3)
    for labels in ((0, 1, 1, 2, 0, 1, 2), (1, 1, 2)):
        x, y = batch(labels)
        answers = []
        hook = model.register_forward_hook(lambda _, __, z, of=answers: of.append(z.argmax(1)))
        crafted(fair, model, x, y)
        hook.remove()
        assert len(answers) == STEPS
        for answer in answers:
            expected = expected.index_add(0, y, (answer == y).float())
    assert fair.state["right_iterates"][0].tolist() == expected.tolist()


def test_fair_ards_weights_by_hand():
    """kappa 1, 2, 4: inverse squares 16, 4, 1 of 21, times 3: 2.286, 0.571, 0.143; clamped."""
    for base in ("ard", "rslad"):
        fair = method("fair_ard", base=base)
        fair.state["right_iterates"] = torch.tensor([[10.0, 40.0, 20.0]]).double()
        fair.epoch_end(stats_of((10, 20, 5)), None)
        expected = [16 / 7, 5 / 6, 5 / 6]
        assert fair.state["weight"].tolist() == pytest.approx(expected, rel=1e-4)
        assert fair.state["right_iterates"].tolist() == [[0, 0, 0]]
        assert fair.state["weight"].tolist() == fair.class_values()["weight"].tolist()
    flat = method("fair_ard", power=0.0)
    flat.state["right_iterates"] = torch.tensor([[10.0, 40.0, 20.0]]).double()
    flat.epoch_end(stats_of((10, 20, 5)), None)
    assert flat.state["weight"].tolist() == pytest.approx([1, 1, 1])


def test_fair_ard_keeps_the_weight_of_an_absent_class_and_takes_one_never_right():
    """kappa 1 and 3: 9 and 1 of 10, times the two that are there: 1.8 and 0.2, clamped."""
    fair = method("fair_ard", base="rslad")
    fair.state["weight"] = torch.tensor([1.0, 1.0, 2.2]).double()
    fair.state["right_iterates"] = torch.tensor([[10.0, 60.0, 0.0]]).double()
    fair.epoch_end(stats_of((10, 20, 0)), None)
    assert fair.state["weight"].tolist() == pytest.approx([1.8, 5 / 6, 2.2])
    fair.state["right_iterates"] = torch.tensor([[0.0, 60.0, 10.0]]).double()
    fair.epoch_end(stats_of((10, 20, 5)), None)
    assert fair.state["weight"].tolist() == pytest.approx([2.5, 5 / 6, 5 / 6])
    fair.epoch_end(stats_of((0, 0, 0)), None)
    assert fair.state["weight"].tolist() == pytest.approx([2.5, 5 / 6, 5 / 6])


def test_ard_without_clean_weight_passes_the_clean_images_for_batch_norm_only():
    fair, model, (x, y) = method("fair_ard"), network(), batch()
    x_adv = crafted(fair, model, x, y)
    passed = []
    model.register_forward_pre_hook(lambda _, given: passed.append(given[0]))
    loss, stats = fair.loss(model, x, x_adv, y)
    assert [image is x for image in passed] == [False, True]
    expected = 900 * divergence(teacher()(x) / 30, model(x_adv) / 30).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)
    assert stats.clean.isfinite().all()


def test_at_with_smoothed_labels_and_an_average_is_a_preset():
    """The baseline of Pan and Yao 2026; Adv+'s control is as it was."""
    asked = preset("label_smoothing", clean_share=0.0)
    assert asked == {
        "defense": "label_smoothing",
        "average": "ema_update",
        "options": {"delta": 0.4, "clean_share": 0.0},
    }
    released = preset("label_smoothing", "released", clean_share=0.0)
    assert (released["average_decay"], released["batch_norm"]) == (0.9995, "eval")
    assert preset("label_smoothing") == {"defense": "label_smoothing", "options": {}}
    assert preset("label_augmentation") == {"defense": "label_augmentation", "options": {}}
