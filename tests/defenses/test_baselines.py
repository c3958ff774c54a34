"""MART, ALP, HE, TRADES and FAT against their formulas written out, and FAT's stopping rule
against a loop.
"""

import pytest
import torch
from torch import nn

from crat.attacks import PGD
from crat.config import ConfigError
from crat.defenses import Task
from crat.defenses.alp import ALP
from crat.defenses.fat import FAT
from crat.defenses.he import HE, MARGINS
from crat.defenses.mart import MART
from crat.defenses.trades import TRADES
from crat.nets.models import CosineHead

ATTACK = PGD(0.1, 0.03, 3, start="gaussian")
S = 7.0
HE_ON = {f"he {base}": base for base in MARGINS}


def network(head=None):
    torch.manual_seed(0)
    head = nn.Linear(64, 3) if head is None else head
    return (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), head)
        .double()
        .train()
    )


def hypersphere():
    return network(CosineHead(64, 3, S, bias=False))


def images(classes=(0, 1, 2)):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.tensor(classes).repeat(8)[:8]


def ready(method):
    method.prepare(Task(torch.ones(3), (1, 6, 6), 12))
    return method


def p_of(z, y=None):
    p = z.exp() / z.exp().sum(1, keepdim=True)
    return p if y is None else p[torch.arange(len(y)), y]


def mart_formula(z, z_adv, y, beta):
    q = p_of(z_adv)
    wrong = torch.stack([max(q[i, k] for k in range(3) if k != y[i]) for i in range(len(y))])
    boosted = -p_of(z_adv, y).log() - (1.0001 - wrong).log()
    kl = (p_of(z) * (p_of(z) / q).log()).sum(1)
    return (boosted + beta * kl * (1.0000001 - p_of(z, y))).mean()


def alp_formula(z, z_adv, y, weight):
    pairs = sum(((a - b) ** 2).sum() for a, b in zip(z, z_adv, strict=True)) / 3
    return (-p_of(z, y).log() / 2 - p_of(z_adv, y).log() / 2).mean() + weight * pairs / len(y)


def he_formula(cos, cos_adv, y, base, m):
    def with_margin(c):
        rows = [[S * (c[i, k] - m * int(k == y[i])) for k in range(3)] for i in range(len(y))]
        moved = torch.stack([torch.stack(row) for row in rows])
        return -p_of(moved, y).log()

    if base == "pgd_at":
        return with_margin(cos_adv).mean()
    if base == "trades":
        p, q = p_of(S * cos), p_of(S * cos_adv)
        return with_margin(cos).mean() + 6 * (p * (p / q).log()).sum() / len(y)
    pairs = ((cos - cos_adv) ** 2).sum() / 3 / len(y)
    return (with_margin(cos) / 2 + with_margin(cos_adv) / 2).mean() + 0.5 * pairs


def agree(model, method, formula, x, x_adv, y):
    """Value, whole gradient and class sums."""
    loss, stats = method.loss(model, x, x_adv, y)
    expected = formula(model, x, x_adv)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    pairs = [
        torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        for value in (loss, expected)
    ]
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
    assert stats.n.tolist() == [float((y == k).sum()) for k in range(3)]
    torch.testing.assert_close(stats.loss.sum() / len(y), loss.detach())
    return stats


@pytest.mark.parametrize("classes", [(0, 1, 2), (0, 2), (1,)], ids=str)
@pytest.mark.parametrize("name", ["mart", "alp", "alp joint", *HE_ON])
def test_loss_is_the_formula_with_its_whole_gradient(name, classes):
    x, y = images(classes)
    if name in HE_ON:
        model, method = hypersphere(), ready(HE(ATTACK, HE_ON[name]))
        m = 0.3 if name == "he alp" else 0.2

        def formula(model, x, x_adv):
            return he_formula(model(x) / S, model(x_adv) / S, y, HE_ON[name], m)
    elif name == "mart":
        model, method = network(), ready(MART(ATTACK, 4.0))

        def formula(model, x, x_adv):
            return mart_formula(model(x), model(x_adv), y, 4.0)
    else:
        model, method = network(), ready(ALP(ATTACK, 0.8, joint=name == "alp joint"))

        def formula(model, x, x_adv):
            both = model(torch.cat([x, x_adv]))
            pair = (both[:8], both[8:]) if method.joint else (model(x), model(x_adv))
            return alp_formula(*pair, y, 0.8)

    x_adv = method.craft(model, x, y, generator=torch.Generator().manual_seed(1))
    assert 0.02 < (x_adv - x).abs().max() <= 0.1 + 1e-12
    stats = agree(model, method, formula, x, x_adv, y)
    assert stats.clean.isnan().all() == (name == "he pgd_at")


def test_mart_stays_finite_where_a_probability_is_one_or_none():
    logits = torch.tensor([[300.0, 0.0, -300.0], [0.0, 300.0, -300.0]])
    z = nn.Parameter(logits)
    for y in (torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([2, 2])):
        loss, _ = MART(ATTACK).loss(lambda x: z if x is None else z.flip(0), None, 1, y)
        (gradient,) = torch.autograd.grad(loss, z)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def ascended_by_hand(model, x, y, noise, loss):
    """Eval mode, start x + 0.001 N(0, 1), sign steps back into the ball and the box."""
    model.eval()
    x_adv = x + 0.001 * noise
    for _ in range(ATTACK.steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model, x_adv), x_adv)
        x_adv = (x_adv + 0.03 * gradient.sign()).detach()
        x_adv = torch.min(torch.max(x_adv, x - 0.1), x + 0.1).clamp(0, 1)
    model.train()
    return x_adv


@pytest.mark.parametrize("name", ["mart", "alp", *HE_ON])
def test_crafts_from_a_gaussian_start_in_eval_mode_and_knows_no_margin(name):
    x, y = images()
    assert MART.crafting() == ALP.crafting() == HE.crafting() == ("gaussian", "eval")
    model = hypersphere() if name in HE_ON else network()
    method = (
        HE(ATTACK, HE_ON[name], 1.0)
        if name in HE_ON
        else {"mart": MART(ATTACK), "alp": ALP(ATTACK)}[name]
    )

    def cross_entropy(model, x_adv):
        return -p_of(model(x_adv), y).log().sum()

    def kl(model, x_adv):
        p = p_of(model(x)).detach()
        return (p * (p / p_of(model(x_adv))).log()).sum()

    made = ready(method).craft(model, x, y, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    expected = ascended_by_hand(model, x, y, noise, kl if name == "he trades" else cross_entropy)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "passes", ["clean adversarial", "clean adversarial clean", "adversarial clean clean"]
)
def test_passes_of_trades_move_the_running_statistics_and_nothing_else(passes):
    x, y = images()
    x_adv = (x + 0.3).clamp(0, 1)
    models = [network(), network(), network()]
    asked = (passes, "clean adversarial")
    losses = [
        ready(TRADES(ATTACK, passes=p)).loss(m, x, x_adv, y)[0]
        for p, m in zip(asked, models[:2], strict=True)
    ]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    for which in passes.split():
        models[2](x if which == "clean" else x_adv)
    torch.testing.assert_close(models[0][1].running_mean, models[2][1].running_mean)
    same = torch.allclose(models[0][1].running_mean, models[1][1].running_mean)
    assert same == (passes == "clean adversarial")


def friendly_by_hand(model, x, y, start, tau, eps, step, steps):
    """One sample at a time, as Algorithm 1 has it; the number of steps that each took, too."""
    made, taken = [], []
    for i in range(len(x)):
        x_adv, left, k = start[i : i + 1], tau, 0
        while k < steps:
            x_adv = x_adv.detach().requires_grad_()
            z = model(x_adv)
            if z.argmax() != y[i]:
                if left == 0:
                    break
                left -= 1
            (gradient,) = torch.autograd.grad(-z.log_softmax(1)[0, y[i]], x_adv)
            x_adv = (x_adv + step * gradient.sign()).detach()
            x_adv = torch.min(torch.max(x_adv, x[i] - eps), x[i] + eps).clamp(0, 1)
            k += 1
        made.append(x_adv.detach())
        taken.append(k)
    return torch.cat(made), taken


@pytest.mark.parametrize("tau", [0, 1, 2, 9])
def test_friendly_images_stop_tau_steps_behind_their_first_error(tau):
    model, (x, _) = network(), images()
    y = model.eval()(x).argmax(1)  # right at first
    y = torch.where(torch.arange(8) < 6, y, (y + 1) % 3)  # but for two, wrong at the start
    method = ready(FAT(PGD(0.3, 0.02, 9), tau, omega=0.0))
    made = method.craft(model.train(), x, y, generator=torch.Generator().manual_seed(3))
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    start = (x + 0.3 * (2 * noise - 1)).clamp(0, 1)
    expected, taken = friendly_by_hand(model.eval(), x, y, start, tau, 0.3, 0.02, 9)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    assert min(taken) == tau
    assert len(set(taken)) > 2 or tau == 9  # neither all at once nor all to the end


def test_tau_grows_as_in_the_code():
    """120 epochs: 0 up to the 50th, 1 up to the 90th, 2 behind it; a short schedule in
    proportion.
    """
    for epochs, expected in (
        (120, [0] * 50 + [1] * 40 + [2] * 30),
        (12, [0] * 5 + [1] * 4 + [2] * 3),
    ):
        method = FAT(ATTACK)
        method.prepare(Task(torch.ones(3), epochs=epochs))
        taus = []
        for _ in range(epochs):
            taus.append(method.slack())
            method.epoch_end(None, None)
        assert taus == expected
    assert ready(FAT(ATTACK, tau=4)).slack() == 4


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (HE(ATTACK, "mart"), "base of he is one of pgd_at, trades, alp, not 'mart'"),
        (HE(ATTACK, margin=-0.1), "margin of he is between 0 and 2, a cosine's range, not -0.1"),
        (HE(ATTACK, "alp", pairing="much"), "pairing of he is at least 0, not 'much'"),
        (ALP(ATTACK, -1.0), "pairing of alp is at least 0, not -1.0"),
        (
            TRADES(ATTACK, passes="clean"),
            "passes of trades is one of 'clean adversarial', .*, not 'clean'",
        ),
    ],
)
def test_wrong_settings_get_one_line(method, line):
    with pytest.raises(ConfigError, match=line):
        ready(method)


def test_hypersphere_embedding_without_its_head_says_so():
    x, y = images()
    with pytest.raises(ConfigError, match="needs a network with a hypersphere head"):
        ready(HE(ATTACK)).loss(network(), x, x, y)
