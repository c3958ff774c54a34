"""Single-step methods and Free AT: each step by hand, what is carried, a batch's updates."""

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import TINY
from torch import nn

from crat import data, distributed
from crat.attacks import PGD
from crat.attacks.objectives import PlainCrossEntropy
from crat.config import ConfigError
from crat.defenses import Task, make_defense, preset
from crat.defenses.fgsm import FGSM, FGSMPGI, FGSMRS, NFGSM, GradAlign, cosines
from crat.defenses.free_at import FreeAT
from crat.training.trainer import Trainer, train

EPS, SHAPE, K = 0.1, (1, 4, 4), 3


def ready(method, batch_size=6, **options):
    """A method that ascends the cross-entropy itself, with BatchNorm by the batch, in float64."""
    made = method(PGD(EPS, 0.03, 4, objective=PlainCrossEntropy(), batch_norm="train"), **options)
    made.prepare(Task(torch.ones(K), SHAPE, batch_size=batch_size))
    made.state = {name: value.double() for name, value in made.state.items()}
    return made


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, K))
    return nn.Sequential(*layers).double().train()


def batch(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64)
    return x, torch.arange(n) % K


def slope(model, x, y):
    """The gradient of the summed cross-entropy at x."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0]


def drawn(x, seed=1):
    """The uniform noise in [-1, 1) that a generator of this seed gives first."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1


def crafted(method, model, x, y):
    return method.craft(model, x, y, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("method", "noise", "step", "clipped"),
    [(FGSM, 0.0, 1.0, True), (FGSMRS, 1.0, 1.25, True), (NFGSM, 2.0, 1.0, False)],
)
def test_one_step_from_the_methods_own_start(model, method, noise, step, clipped):
    x, y = batch()
    start = (x + noise * EPS * drawn(x)).clamp(0, 1)
    expected = start + step * EPS * slope(model, start, y).sign()
    if clipped:
        expected = x + (expected - x).clamp(-EPS, EPS)
    assert torch.allclose(crafted(ready(method), model, x, y), expected.clamp(0, 1))


def test_only_n_fgsm_leaves_the_ball(model):
    x, y = batch()
    reach = {m: (crafted(ready(m), model, x, y) - x).abs().max() for m in (FGSM, FGSMRS, NFGSM)}
    assert reach[FGSM] <= EPS + 1e-12
    assert reach[FGSMRS] <= EPS + 1e-12
    assert 1.5 * EPS < reach[NFGSM] <= 3 * EPS + 1e-12


@pytest.mark.parametrize("steps", [1, 7])
def test_the_steps_and_the_step_size_of_the_run_are_not_read(model, steps):
    x, y = batch()
    attack = PGD(EPS, 0.001 * steps, steps, objective=PlainCrossEntropy(), batch_norm="train")
    assert torch.equal(crafted(FGSMRS(attack), model, x, y), crafted(ready(FGSMRS), model, x, y))


def test_grad_align_asks_parallel_gradients(model):
    x, y = batch()
    method = ready(GradAlign, weight=0.7)
    x_adv = crafted(method, model, x, y)
    loss, _ = method.loss(model, x, x_adv, y)
    beside = (x + EPS * drawn(x)).requires_grad_()  # not cut to [0, 1]
    total = F.cross_entropy(model(beside), y, reduction="sum")
    (other,) = torch.autograd.grad(total, beside, create_graph=True)
    cosine = F.cosine_similarity(slope(model, x, y).flatten(1), other.flatten(1))
    expected = F.cross_entropy(model(x_adv), y) + 0.7 * (1 - cosine.mean())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(method.loss(model, x, x_adv, y)[0], parameters)
    for a, b in zip(ours, torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-10)


def test_a_gradient_of_zero_has_a_cosine_of_zero_and_a_finite_slope():
    a = torch.ones(2, *SHAPE)
    b = torch.stack([torch.zeros(SHAPE), 2 * torch.ones(SHAPE)]).requires_grad_()
    found = cosines(a, b)
    assert found.tolist() == pytest.approx([0, 1])
    assert torch.autograd.grad(found.sum(), b)[0].isfinite().all()


def test_pgi_starts_where_the_last_batch_ended(model):
    """Of a smaller batch only its places change."""
    method, ended = ready(FGSMPGI, weight=3.0), torch.zeros(6, *SHAPE, dtype=torch.float64)
    for seed, n in enumerate((6, 4, 6)):
        x, y = batch(n, seed)
        begun = (x + ended[:n]).clamp(0, 1)
        expected = begun + EPS * slope(model, begun, y).sign()
        expected = (x + (expected - x).clamp(-EPS, EPS)).clamp(0, 1)
        x_adv = method.craft(model, x, y)
        assert torch.allclose(x_adv, expected)
        ended = torch.cat([expected - x, ended[n:]])
        assert torch.allclose(method.state["prior"], ended)
    loss, _ = method.loss(model, x, x_adv, y)
    apart = ((model(x_adv) - model(begun)) ** 2).mean()
    expected = F.cross_entropy(model(x_adv), y) + 3 * apart
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


def test_free_at_climbs_by_the_gradient_that_moved_the_weights(model):
    method, delta = ready(FreeAT, replays=3), torch.zeros(6, *SHAPE, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed, n in enumerate((6, 4)):
        x, y = batch(n, seed)
        for _ in range(method.updates_a_batch):
            moved = (x + delta[:n]).requires_grad_()
            total = slope(model, moved.clamp(0, 1), y) * ((moved >= 0) & (moved <= 1))
            x_adv = method.craft(model, x, y)
            assert torch.equal(x_adv, moved.detach().clamp(0, 1))
            optimizer.zero_grad()
            method.loss(model, x, x_adv, y)[0].backward()
            optimizer.step()
            method.after_step(model, x, y)
            climbed = (delta[:n] + EPS * total.sign()).clamp(-EPS, EPS)
            delta = torch.cat([climbed, delta[n:]])
            assert torch.allclose(method.state["delta"], delta)
    assert delta.abs().max() == pytest.approx(EPS)


def test_free_at_without_a_pass_back_moves_nothing(model):
    method, (x, y) = ready(FreeAT), batch()
    method.loss(model, x, method.craft(model, x, y), y)
    method.after_step(model, x, y)
    assert not method.state["delta"].any()


def updates(monkeypatch, config):
    """The optimizer's steps and the images that are counted in an epoch."""
    made = []
    inner = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: (made.append(1), inner(self, *a))[1]
    )
    run = train(config, progress="none", device="cpu")
    return len(made), Trainer(run, torch.device("cpu"))


@pytest.mark.usefixtures("own_store")
@pytest.mark.parametrize("average", ["none", "ema_update"])
def test_a_batch_is_replayed_and_the_average_counts_each_update(monkeypatch, average):
    config = TINY.but(**preset("free_at", replays=4)).but(average=average, epochs=2, batch_size=64)
    steps, trainer = updates(monkeypatch, config)
    images = data.load(config.data)
    batches = -(-len(images.x_train) // 64)
    assert steps == 2 * 4 * batches
    assert trainer.state.epochs_done == 2
    assert trainer.state.average is None or trainer.state.average.updates == steps
    assert trainer.defense.state["delta"].shape == (64, 1, 28, 28)
    assert trainer.defense.state["delta"].any()


def test_the_others_use_a_batch_once():
    for name in ("pgd_at", "fgsm_rs", "fgsm_pgi", "grad_align"):
        config = TINY.but(**preset(name)).resolved().train
        assert make_defense(config, K).updates_a_batch == 1


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("fgsm_rs", {"noise": -1.0}, "noise is at least 0 and finite, not -1.0"),
        ("n_fgsm", {"step": float("inf")}, "step is at least 0 and finite, not inf"),
        ("free_at", {"replays": 0}, "replays is at least 1, not 0"),
        ("grad_align", {"weight": -0.5}, "weight is at least 0 and finite, not -0.5"),
        ("fgsm_pgi", {"weight": -0.5}, "weight is at least 0 and finite, not -0.5"),
    ],
)
def test_a_setting_out_of_range_is_refused(name, options, line):
    config = TINY.but(defense=name, options=options).resolved().train
    with pytest.raises(ConfigError, match=line):
        make_defense(config, K)


def test_grad_align_refuses_several_processes(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(ConfigError, match="grad_align trains in one process"):
        ready(GradAlign)
