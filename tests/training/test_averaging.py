"""FAWA's gate, SWA and adversarial weight perturbation, each against its definition, and in the
trainer.
"""

import pytest
import torch
from tiny_runs import TINY, same, weights
from torch import nn

from crat import data
from crat.config import TrainConfig
from crat.training.averaging import SWA, Gate, make_average, make_gate, scaled_decay
from crat.training.awp import perturbed
from crat.training.run import build_model
from crat.training.trainer import train

pytestmark = pytest.mark.usefixtures("own_store")


def test_a_fixed_threshold_opens_as_in_the_paper():
    gate = Gate(0.2, start=2)
    assert [gate.opens(worst) for worst in (0.5, 0.5, 0.19, 0.2, 0.3)] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert gate.accepted == [4, 5]


def test_without_one_the_median_of_the_minima_opens():
    gate = Gate(None, start=0)
    assert [gate.opens(worst) for worst in (0.1, 0.0, 0.2, 0.05, 0.2)] == [
        True,
        False,
        True,
        False,
        True,
    ]


def test_starts_and_decays_scale_with_the_epochs():
    assert make_gate(TrainConfig(average="fawa", epochs=200)).start == 50
    assert make_gate(TrainConfig(average="fawa", epochs=12)).start == 3
    assert make_gate(TrainConfig(average="swa", epochs=12)).start == 6
    assert make_gate(TrainConfig(average="fawa", average_start=1)).start == 1
    assert make_gate(TrainConfig(average="ema_epoch")) is None
    assert scaled_decay(200) == scaled_decay(400) == 0.85
    assert scaled_decay(20) == pytest.approx(0.85**10)
    assert make_average(TrainConfig(average="fawa", epochs=200)).decay == 0.85
    assert make_average(TrainConfig(average="fawa", average_decay=0.5)).decay == 0.5
    assert make_average(TrainConfig()) is None
    per_update, per_epoch = (
        make_average(TrainConfig(average=a, epochs=100)) for a in ("ema_update", "ema_epoch")
    )
    assert (per_update.decay, per_update.warm_up) == (0.999, True)
    assert (per_epoch.decay, per_epoch.warm_up) == (pytest.approx(0.85**2), False)
    with_start = [
        make_gate(TrainConfig(average=a, epochs=12, average_start=0)) for a in ("swa", "fawa")
    ]
    assert [(g.start, g.threshold) for g in with_start] == [(0, 0.0), (0, None)]
    assert make_gate(TrainConfig(average="fawa", fawa_threshold=0.2)).threshold == 0.2


def test_swa_is_the_mean():
    model, swa, seen = nn.Linear(2, 2), SWA(), []
    for i in range(3):
        with torch.no_grad():
            model.bias.fill_(float(i**2))
        swa.update(model)
        seen.append(model.bias.clone())
    torch.testing.assert_close(swa.state["bias"], torch.stack(seen).mean(0).detach())


def test_swa_takes_batch_norm_statistics_anew():
    """The averaged network, passed over the training images: the first BatchNorm's mean is that
    of its input.
    """
    run = train(TINY.but(average="swa", average_start=1), progress="none", device="cpu")
    assert run.card()["accepted_epochs"] == [2, 3]
    model, images = run.model("last", "cpu"), data.load(TINY.data)
    with torch.no_grad():
        seen = model.body.conv1(model.normalize(images.x_train.float() / 255)).mean((0, 2, 3))
    torch.testing.assert_close(model.body.bn1.running_mean, seen, rtol=1e-3, atol=1e-4)


def test_a_gate_that_never_opens_leaves_the_plain_weights_and_says_so():
    shut = train(TINY.but(average="fawa", fawa_threshold=1.0), progress="none", device="cpu")
    assert shut.card()["accepted_epochs"] == []
    assert same(weights(shut), weights(train(TINY, progress="none", device="cpu")))
    history = shut.history()
    assert not history[history.split == "train"].accepted.astype(str).eq("True").any()


def test_an_open_gate_is_the_recursion():
    gated = TINY.but(average="fawa", fawa_threshold=0.0, average_start=0, average_decay=0.6)
    both = train(gated, progress="none", device="cpu")
    plain = train(TINY.but(average="ema_epoch", average_decay=0.6), progress="none", device="cpu")
    assert same(weights(both), weights(plain))
    assert both.card()["accepted_epochs"] == [1, 2, 3]


def test_weights_move_by_gamma_of_their_length_along_the_gradient_and_come_back():
    model = build_model(TINY).double().train()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 28, 28, generator=generator, dtype=torch.float64)
    y = torch.arange(6)

    def loss():
        return nn.functional.cross_entropy(model(x), y)

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    wanted = [name for name, p in model.named_parameters() if p.ndim > 1]
    copy = build_model(TINY).double().train()
    found = torch.autograd.grad(nn.functional.cross_entropy(copy(x), y), copy.parameters())
    along = {name: g / g.norm() for name, g in zip(before, found, strict=True)}
    at_rest = loss().item()
    model.load_state_dict({**before, **buffers})
    with perturbed(model, 0.01, loss):
        assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
        for name, p in model.named_parameters():
            move = p.detach() - before[name]
            expected = 0.01 * before[name].norm() * along[name] if name in wanted else 0 * move
            torch.testing.assert_close(move, expected, rtol=1e-6, atol=1e-12, msg=name)
        assert loss().item() > at_rest
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=1e-12)


def test_awp_waits_for_its_warm_up():
    plain = train(TINY, progress="none", device="cpu")
    late = train(TINY.but(awp=0.01, awp_warmup=3), progress="none", device="cpu")
    assert same(weights(plain), weights(late))
    assert not same(
        weights(plain), weights(train(TINY.but(awp=0.01), progress="none", device="cpu"))
    )
