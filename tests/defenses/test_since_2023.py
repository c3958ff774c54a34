"""CSR, FAIR-TAT and HAM: each loss against its formula written out, each class-wise update
against numbers by hand.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crat import distributed
from crat.attacks import PGD
from crat.config import ConfigError, RunConfig, profile
from crat.defenses import ClassStats, Task, make_defense, preset
from crat.defenses.csr import CSR, first_singular_pair, spectral_weights
from crat.defenses.fair_tat import FairTAT
from crat.defenses.ham import HAM
from crat.training.run import Run

K = 3


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, K)
    ).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(9, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(9) % K


def ready(method, *, eps=0.1, step=0.03, steps=5, epochs=8, **options):
    attack = PGD(eps, step, steps, start=method.start, batch_norm=method.batch_norm)
    defense = method(attack, **options)
    defense.prepare(Task(torch.tensor((30, 20, 10)), (1, 6, 6), epochs))
    return defense


def crafted(defense, model, x, y):
    return defense.craft(model.train(), x, y, generator=torch.Generator().manual_seed(1))


def agree(model, loss, expected):
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    ours, theirs = (torch.autograd.grad(v, list(model.parameters())) for v in (loss, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)


def answers(predictions):
    """Logits (N, K) of which the predicted class has 2 and the others 1."""
    return 1 + F.one_hot(torch.tensor(predictions), K).double()


def sums(n, robust=(0.0, 0.0, 0.0), confusion=None):
    """Statistics of an epoch, of which a policy reads the number, the right ones, the confusion."""
    stats = ClassStats.zeros(K, torch.zeros((), dtype=torch.float64))
    stats.n, stats.robust = (torch.tensor(v, dtype=torch.float64) for v in (n, robust))
    if confusion is not None:
        stats.confusion = torch.tensor(confusion, dtype=torch.float64)
    return stats


# CSR


def test_csr_loss_is_the_formula(model, batch):
    """Image by image, with a weight for each pair of label and prediction."""
    x, y = batch
    csr = ready(CSR, beta=4.0, share=0.2)
    weights = torch.arange(1, 10, dtype=torch.float64).view(K, K) / 5
    csr.state |= {"epoch": torch.tensor(1), "pair_weight": weights}
    x_adv = crafted(csr, model, x, y)
    loss, stats = csr.loss(model, x, x_adv, y)
    p, q = model(x).softmax(1), model(x_adv).softmax(1)
    parts = []
    for i, label in enumerate(y.tolist()):
        g = weights[label, q[i].argmax()]
        target = torch.zeros(K, dtype=torch.float64)
        target[label] = g  # KL(one-hot times g || p(x')), of which the zeros have no part
        errors = target[label] * (target[label] / q[i, label]).log()
        kl = sum(p[i, k] * (p[i, k] / q[i, k]).log() for k in range(K))
        parts.append(-0.8 * p[i, label].log() + 4 * kl + 0.2 * errors)
    agree(model, loss, torch.stack(parts).mean())
    assert stats.n.tolist() == [3, 3, 3]


def test_csr_crafts_as_trades(model, batch):
    x, y = batch
    trades = make_defense(
        Run.of(RunConfig().but(defense="trades", eps=0.1, step_size=0.03, steps=5)).config.train,
        Task(torch.ones(K), (1, 6, 6), 8),
    )
    assert crafted(ready(CSR), model, x, y).equal(crafted(trades, model, x, y))


def test_csr_weighs_a_pair_by_its_part_in_the_norm():
    """Errors 0.3 and 0.4 into class 1: u = (0.6, 0, 0.8), v = (0, 1, 0), whatever the counts."""
    counts = torch.tensor([[7.0, 3, 0], [0, 5, 0], [0, 8, 12]], dtype=torch.float64)
    expected = torch.full((K, K), 0.01, dtype=torch.float64)
    expected[:, 1] += torch.tensor([2 * 0.6 / 0.8, 0, 2], dtype=torch.float64)
    torch.testing.assert_close(spectral_weights(counts), expected, rtol=1e-12, atol=0)
    # a class that no batch showed has no errors; without any, all weights are the least
    absent = counts.clone()
    absent[2] = 0
    assert spectral_weights(absent)[2].tolist() == [0.01] * 3
    assert spectral_weights(absent)[0].tolist() == pytest.approx([0.01, 2.01, 0.01])
    assert spectral_weights(torch.eye(K)).unique().tolist() == pytest.approx([0.01])
    assert spectral_weights(torch.zeros(K, K)).unique().tolist() == pytest.approx([0.01])


@pytest.mark.parametrize("size", [2, 3, 10, 100])
def test_the_first_singular_pair_is_the_decompositions(size):
    generator = torch.Generator().manual_seed(size)
    matrix = torch.rand(size, size, generator=generator, dtype=torch.float64).pow(4)
    u, v = first_singular_pair(matrix)
    left, _, right = torch.linalg.svd(matrix)
    assert u.min() >= 0
    assert v.min() >= 0
    torch.testing.assert_close(u, left[:, 0].abs(), rtol=0, atol=1e-10)
    torch.testing.assert_close(v, right[0].abs(), rtol=0, atol=1e-10)
    # the outer product is the gradient of the norm
    matrix.requires_grad_()
    norm = torch.linalg.matrix_norm(matrix, 2)
    (gradient,) = torch.autograd.grad(norm, matrix)
    torch.testing.assert_close(gradient, u[:, None] * v[None, :], rtol=0, atol=1e-10)
    assert norm.item() == pytest.approx((u @ matrix.detach() @ v).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("logits", "label", "plain", "lowered"),
    [
        ([2.0, 1.9, 0.0], 0, 0, 1),  # 1.8 against 1.9
        ([0.0, 2.0, 1.7], 1, 1, 1),  # 1.8 against 1.7
        ([-2.0, -1.9, -3.0], 0, 1, 0),  # a negative logit rises, as in the code
    ],
)
def test_csr_counts_what_is_predicted_once_the_true_logit_has_lost_a_tenth(
    logits, label, plain, lowered
):
    given = torch.tensor([logits], dtype=torch.float64), torch.tensor([label])
    for margin, predicted in ((0.0, plain), (0.1, lowered)):
        counts = ready(CSR, margin=margin).counted(*given)
        assert counts.nonzero().tolist() == [[label, predicted]]
        assert counts.sum() == 1


def test_csr_over_two_epochs():
    """The first epoch weighs by its batches so far; the second by the first; counts begin anew."""
    csr, images = ready(CSR, margin=0.0), torch.empty(0)
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    first, second = [1, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1]

    def step(predictions):
        csr.batch_counts = csr.counted(answers(predictions), y)
        weights = csr.pair_weights()
        csr.after_step(nn.Identity(), images, y)
        return weights.tolist()

    assert step(first)[0] == pytest.approx([0.01, 2.01, 0.01])
    both = step(second)  # errors 1/4 and 2/4 into class 1
    assert [row[1] for row in both] == pytest.approx([1.01, 0.01, 2.01])
    csr.epoch_end(sums([4, 4, 4]), None)
    assert csr.state["pair_weight"].tolist() == [pytest.approx(row) for row in both]
    assert not csr.state["counts"].any()
    assert step(first)[2][1] == pytest.approx(2.01)  # still those of the first epoch
    csr.epoch_end(sums([2, 2, 2]), None)
    assert step(second)[0][1] == pytest.approx(2.01)


def test_csr_counts_a_step_once_whatever_asks_for_its_loss(model, batch):
    x, y = batch
    csr = ready(CSR)
    for _ in range(2):  # adversarial weight perturbation asks twice
        csr.loss(model, x, x, y)
    csr.after_step(model, x, y)
    assert csr.state["counts"].sum(1).tolist() == [3, 3, 3]


def test_csrs_released_preset_tunes_a_network_for_two_epochs():
    start = Run.of(RunConfig().but(defense="trades"))
    laptop = profile("laptop")  # which warms up for two epochs
    run = Run.of(laptop.but(**preset("csr", "released"), start_from=start.name))
    train = run.config.train
    assert (train.epochs, train.lr, train.start_from) == (2, 0.001, start.name)
    assert (train.schedule, train.eps_warmup) == ("constant", 0)
    assert dict(train.options) == {"released_passes": True}


# FAIR-TAT


def test_fair_tat_loss_is_the_cross_entropy_of_the_labels(model, batch):
    x, y = batch
    method = ready(FairTAT)
    x_adv = crafted(method, model, x, y)
    loss, stats = method.loss(model, x, x_adv, y)
    q = model(x_adv).softmax(1)
    agree(model, loss, -torch.stack([q[i, k].log() for i, k in enumerate(y)]).mean())
    assert stats.robust.sum() == (q.argmax(1) == y).sum()


def test_fair_tat_descends_towards_the_target(model, batch):
    """Within eps_y, step by step by autograd on -CE(f(x'), t), each image alone in eval mode."""
    x, y = batch
    method = ready(FairTAT, steps=3)
    method.attack = PGD(0.1, 0.03, 3, start="none", batch_norm="eval")
    method.state["eps"] = torch.tensor([0.02, 0.05, 0.08], dtype=torch.float64)
    method.targets = lambda *_: (y + 1) % K
    x_adv = crafted(method, model, x, y)
    model.eval()
    for i in range(len(x)):
        image, eps = x[i : i + 1], method.state["eps"][y[i]]
        moved = image.clone()
        for _ in range(3):
            moved.requires_grad_()
            loss = F.cross_entropy(model(moved), (y[i : i + 1] + 1) % K)
            (slope,) = torch.autograd.grad(loss, moved)
            moved = (moved.detach() - 0.03 * slope.sign()).clamp(image - eps, image + eps)
            moved = moved.clamp(0, 1)
        torch.testing.assert_close(x_adv[i : i + 1], moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sharpness", [0.0, 2.0, 20.0])
def test_fair_tat_draws_targets_by_the_scores_and_never_the_label(sharpness):
    """60,000 draws: shares within five standard deviations of exp(s c_t) over the other classes."""
    method = ready(FairTAT, sharpness=sharpness)
    score = [0.7, 0.2, 0.1]
    method.state["false_positive_score"] = torch.tensor(score)
    y = torch.arange(60_000) % K
    images = torch.empty(len(y), 1)
    drawn = method.targets(images, y, torch.Generator().manual_seed(3))
    assert not (drawn == y).any()
    for label in range(K):
        others = [k for k in range(K) if k != label]
        total = sum(math.exp(sharpness * score[k]) for k in others)
        for k in others:
            p = math.exp(sharpness * score[k]) / total
            share = (drawn[y == label] == k).double().mean().item()
            assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 20_000) + 1e-12


def test_fair_tat_over_two_epochs():
    """Errors into classes 0, 1, 2: 1, 3, 4 of 8; right 6, 4 of 10, and class 2 not shown."""
    method = ready(FairTAT, eps=0.1, lambda_r=0.5)
    assert method.state["false_positive_score"].tolist() == pytest.approx([1 / 3] * 3)
    assert method.state["eps"].tolist() == pytest.approx([0.1] * 3)
    confusion = [[6, 3, 1], [1, 6, 3], [0, 0, 0]]
    method.epoch_end(sums([10.0, 10.0, 0.0], [6.0, 6.0, 0.0], confusion), None)
    assert method.state["false_positive_score"].tolist() == pytest.approx([1 / 8, 3 / 8, 4 / 8])
    assert method.state["eps"].tolist() == pytest.approx([0.11, 0.11, 0.1])
    before = method.state["false_positive_score"].clone()
    right = sums([4.0, 4.0, 4.0], [4.0, 4.0, 4.0], [[4, 0, 0], [0, 4, 0], [0, 0, 4]])
    method.epoch_end(right, None)  # no error: the scores stay
    assert method.state["false_positive_score"].equal(before)
    assert method.state["eps"].tolist() == pytest.approx([0.15] * 3)
    fixed = ready(FairTAT, adaptive_eps=False)
    fixed.epoch_end(right, None)
    assert fixed.state["eps"].tolist() == pytest.approx([0.1] * 3)


# HAM


def by_hand(model, x, y, noise, judged_at, steps):
    """Each image alone in eval mode: its last iterate, and whether it was wrong at `judged_at`."""
    images, hard = [], []
    model.eval()
    for i in range(len(x)):
        image, label = x[i : i + 1], y[i : i + 1]
        moved = (image + 0.1 * (2 * noise[i : i + 1] - 1)).clamp(0, 1)
        wrong = False
        for k in range(steps + 1):
            if k == judged_at:
                wrong = bool(model(moved).argmax(1) != label)
            if k == steps or (k >= judged_at and not wrong):
                break
            moved.requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(model(moved), label), moved)
            moved = (moved.detach() + 0.03 * slope.sign()).clamp(image - 0.1, image + 0.1)
            moved = moved.clamp(0, 1)
        images.append(moved.detach())
        hard.append(wrong)
    model.train()
    return torch.cat(images), torch.tensor(hard)


@pytest.fixture
def half_right(model, batch):
    """Images and labels of which the network has some right, some wrong, by what it predicts."""
    x, _ = batch
    predicted = model.eval()(x).argmax(1)
    return x, torch.where(torch.arange(9) < 5, predicted, (predicted + 1) % K)


@pytest.mark.parametrize("compacts", [False, True])
def test_ham_is_the_formula(compacts, model, half_right):
    """Easy images stay at the second iterate; the loss is the mean over the hard ones."""
    x, y = half_right
    ham = ready(HAM, steps=5, classify_step=2, begin=0, compacts=compacts)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    expected, hard = by_hand(model, x, y, noise, judged_at=2, steps=5)
    assert 0 < hard.sum() < 9
    x_adv = crafted(ham, model, x, y)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)
    loss, stats = ham.loss(model, x, x_adv, y)
    logits = model(x_adv[hard]) if compacts else model(x_adv)[hard]
    q = logits.softmax(1)
    agree(model, loss, -torch.stack([q[i, k].log() for i, k in enumerate(y[hard])]).mean())
    assert stats.n.tolist() == [(y == k).sum() for k in range(K)]
    assert stats.robust.sum() == (~hard).sum() + (q.argmax(1) == y[hard]).sum()
    assert stats.loss.sum().item() == pytest.approx(loss.item() * hard.sum().item())


@pytest.mark.parametrize("compacts", [False, True])
def test_ham_is_at_before_mining_begins(compacts, model, batch):
    x, y = batch
    ham = ready(HAM, begin=1, compacts=compacts)
    x_adv = crafted(ham, model, x, y)
    attack = PGD(0.1, 0.03, 5, batch_norm="eval")
    plain = attack.perturb(model, x, y, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(x_adv, plain, rtol=0, atol=1e-12)
    loss, _ = ham.loss(model, x, x_adv, y)
    agree(model, loss, F.cross_entropy(model(x_adv), y))
    ham.epoch_end(sums([3, 3, 3]), None)
    crafted(ham, model, x, y)
    assert ham.hard(y).equal(ham.early.argmax(1) != y)


@pytest.mark.parametrize("compacts", [False, True])
def test_ham_without_a_hard_image_costs_nothing(compacts, model, batch):
    """The code's labels and logits then differ in number."""
    x, _ = batch
    y = model.eval()(x).argmax(1)
    ham = ready(HAM, eps=1e-6, step=1e-7, begin=0, compacts=compacts)
    x_adv = crafted(ham, model, x, y)
    assert not ham.hard(y).any()
    loss, stats = ham.loss(model, x, x_adv, y)
    assert loss.item() == 0
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert not any(g.any() for g in gradients)
    assert stats.robust.sum() == 9


def test_ham_spares_passes_where_it_compacts(model, half_right):
    """Images that go through the network in a step: 9 in 2 steps, to judge, the hard ones after."""
    x, y = half_right
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    for compacts in (False, True):
        seen.clear()
        ham = ready(HAM, steps=5, classify_step=2, begin=0, compacts=compacts)
        ham.loss(model, x, crafted(ham, model, x, y), y)
        left = int(ham.hard(y).sum()) if compacts else 9
        assert seen == [9] * 3 + [left] * 4
    assert ham.waits == "the easy images are taken out of the batch"
    assert ready(HAM).waits == ""


def test_ham_judges_a_short_attack_by_its_last_iterate(model, half_right):
    x, y = half_right
    short = ready(HAM, steps=2, classify_step=7, begin=0)
    plain = PGD(0.1, 0.03, 2, batch_norm="eval")
    expected = plain.perturb(model, x, y, generator=torch.Generator().manual_seed(1))
    assert crafted(short, model, x, y).equal(expected)


def test_hams_loss_is_of_the_images_that_it_crafted(model, batch):
    x, y = batch
    ham = ready(HAM)
    with pytest.raises(ValueError, match="of the images that it crafted last"):
        ham.loss(model, x, x, y)
    x_adv = crafted(ham, model, x, y)
    with pytest.raises(ValueError, match="of the images that it crafted last"):
        ham.loss(model, x[:4], x_adv[:4], y[:4])


@pytest.mark.parametrize(
    ("method", "options", "line"),
    [
        (CSR, {"share": 1.0}, r"share of csr is in \[0, 1\), not 1.0"),
        (CSR, {"margin": "a tenth"}, r"margin of csr is in \[0, 1\), not 'a tenth'"),
        (FairTAT, {"sharpness": -1.0}, r"sharpness of fair_tat is in \[0, 1000\), not -1.0"),
        (FairTAT, {"lambda_r": -0.1}, r"lambda_r of fair_tat is at least 0, not -0.1"),
        (HAM, {"classify_step": 0}, r"classify_step of ham is at least 1, .*, not 0"),
        (HAM, {"begin": -1}, r"begin of ham is at least 0, not -1"),
    ],
)
def test_a_wrong_setting_is_one_line(method, options, line):
    with pytest.raises(ConfigError, match=f"^{line}$"):
        ready(method, **options)


def test_fair_tat_needs_another_class_and_compacting_one_process(monkeypatch):
    alone = FairTAT(PGD(0.1, 0.03, 3))
    with pytest.raises(ConfigError, match="classes of fair_tat is more than one, not 1"):
        alone.prepare(Task(torch.ones(1)))
    monkeypatch.setattr(distributed, "world", lambda: 2)
    assert ready(HAM).waits == ""
    with pytest.raises(ConfigError, match="compacts of ham needs one process"):
        ready(HAM, compacts=True)
