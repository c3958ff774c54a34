"""SPAT and label augmentation: each loss against its formula written out, the attacks, the
heads, what is refused.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crat.attacks import PGD
from crat.attacks.noise import PerImage
from crat.config import ConfigError, ModelConfig, RunConfig
from crat.defenses import DEFENSES, Task, preset
from crat.defenses.label_augmentation import (
    OPERATIONS,
    LabelAugmentation,
    LabelSmoothing,
    OfClasses,
)
from crat.defenses.pgd_at import PGDAT
from crat.defenses.spat import FORMS, SPAT, cosine_head, hard_pair_divergence, self_paced
from crat.defenses.trades import TRADES
from crat.nets.models import build
from crat.training.run import Run

K, M, N, BETA = 3, 0.2, 0.3, 4.0
ATTACK = PGD(0.1, 0.03, 4)


def network(head="cosine", outputs=0, seed=0):
    config = ModelConfig("small_cnn", width=2, head=head, extra_outputs=outputs)
    model = build(config, K, (1, 8, 8), seed=seed).double().train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(
                0.1
                * torch.randn(
                    p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype
                )
            )
    return model


def images(n=10, seed=0):
    """Class 1 is absent."""
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, (torch.arange(n) % 2) * 2


def ready(method, n_classes=K):
    method.prepare(Task(torch.ones(n_classes)))
    return method


def agree(model, loss, expected):
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    pairs = (
        torch.autograd.grad(v, list(model.parameters()), retain_graph=True)
        for v in (loss, expected)
    )
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12)


def spat_written_out(model, x, x_adv, y, form, squares=True):
    """Image by image and class by class, in cosines, probabilities and plain logarithms."""
    w, b, s = model.head.weight, model.head.bias, model.head.scale

    def cosines(images):
        phi = model.features(images)
        return (
            torch.stack([(phi * w_k).sum(1) / (phi.norm(dim=1) * w_k.norm()) for w_k in w], 1) + b
        )

    z, z_adv = cosines(x), cosines(x_adv)
    p, q = (s * z).exp() / (s * z).exp().sum(1, keepdim=True), (s * z_adv).softmax(1)
    total = 0.0
    for i in range(len(y)):
        u = []
        for j in range(K):
            a = 1 + M - z[i, j] if j == y[i] else z[i, j] + M
            a = a.detach() if form in ("detached", "circle") else a
            a = a.relu() if form in ("clamped", "circle") else a
            u.append(s * z[i, j] * (1 if form == "plain" else a))
        total = total - (u[y[i]].exp() / sum(v.exp() for v in u)).log()
        terms = [p[i, j] * (p[i, j].log() - q[i, j].log()) for j in range(K)]
        total = total + BETA * sum(k * (k + N) if squares else k for k in terms)
    return total / len(y)


@pytest.mark.parametrize(
    ("form", "squares"), [*((form, True) for form in FORMS), ("released", False)]
)
def test_spat_is_the_formula_with_its_whole_gradient(form, squares):
    model, (x, y) = network(), images()
    spat = ready(SPAT(ATTACK, BETA, M, N, form, squares))
    x_adv = (
        x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    ).clamp(0, 1)
    loss, stats = spat.loss(model, x, x_adv, y)
    agree(model, loss, spat_written_out(model, x, x_adv, y, form, squares))
    assert stats.n.tolist() == [5, 0, 5]
    torch.testing.assert_close(stats.loss.sum() / len(y), loss.detach(), check_dtype=False)
    assert stats.clean.sum() == (model(x).argmax(1) == y).sum()


def test_the_forms_differ_where_a_weight_is_negative_and_only_in_gradient_where_none_is():
    z = torch.tensor([[0.5, -0.6, 0.1]], dtype=torch.float64)
    paced = {form: self_paced(z, torch.tensor([0]), M, form) for form in FORMS}
    expected = [(1.2 - 0.5) * 0.5, (-0.6 + 0.2) * -0.6, (0.1 + 0.2) * 0.1]
    torch.testing.assert_close(paced["released"], torch.tensor([expected], dtype=torch.float64))
    assert torch.equal(paced["detached"], paced["released"])
    assert torch.equal(paced["circle"], paced["clamped"])
    assert paced["clamped"][0, 1] == 0 < paced["released"][0, 1]


def test_without_its_two_ideas_spat_is_trades_on_the_cosine_head():
    model, (x, y) = network(), images()
    x_adv = (x + 0.1).clamp(0, 1)
    spat = ready(SPAT(ATTACK, BETA, M, N, form="plain", squares=False))
    trades = ready(TRADES(ATTACK, BETA))
    torch.testing.assert_close(spat.loss(model, x, x_adv, y)[0], trades.loss(model, x, x_adv, y)[0])


def test_released_self_pacing_is_stationary_where_papers_say():
    """u_y peaks at z_y = (1 + m) / 2 and u_j is least at z_j = -m / 2; detached weights push on."""
    z = torch.tensor([[0.6, -0.1]], dtype=torch.float64, requires_grad=True)
    for form, slopes in (("released", [0, 0]), ("detached", [0.6, 0.1])):
        (slope,) = torch.autograd.grad(self_paced(z, torch.tensor([0]), M, form).sum(), z)
        torch.testing.assert_close(
            slope, torch.tensor([slopes], dtype=torch.float64), atol=1e-12, rtol=1e-9
        )
    assert (8 * self_paced(z, torch.tensor([0]), M)).tolist() == [
        [pytest.approx(2.88), pytest.approx(-0.08)]
    ]


def test_hard_pair_divergence_is_zero_only_for_equal_outputs_and_finite_far_out():
    logits = torch.randn(50, K, generator=torch.Generator().manual_seed(0)) * 3
    assert hard_pair_divergence(logits, logits, N).abs().max() == 0
    assert (hard_pair_divergence(logits, logits.flip(0), N) > 0).all()
    far = torch.tensor([[500.0, -500.0, 0.0]], requires_grad=True)
    value = hard_pair_divergence(far, far.detach().flip(1), N).sum()
    assert value.isfinite()
    assert torch.autograd.grad(value, far)[0].isfinite().all()


def test_spat_crafts_as_the_released_code_describes():
    """Start x + 0.001 N(0, 1), eval mode, sign ascent on L_hcp with both outputs anew in every
    step.
    """
    model, (x, y) = network(), images()
    spat = ready(SPAT(PGD(0.1, 0.03, 4, start=SPAT.start, batch_norm=SPAT.batch_norm), BETA, M, N))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ours = spat.craft(model, x, y, generator=torch.Generator().manual_seed(2))
    assert model.training
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    model.eval()
    x_adv = x + 0.001 * torch.randn(
        x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype
    )
    for _ in range(4):
        x_adv.requires_grad_()
        p, q = model(x).softmax(1), model(x_adv).softmax(1)
        k = F.kl_div(q.log(), p, reduction="none")
        (gradient,) = torch.autograd.grad((k * (k + N)).sum() / len(x), x_adv)
        x_adv = x_adv.detach() + 0.03 * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - 0.1), x + 0.1).clamp(0, 1)
    torch.testing.assert_close(ours, x_adv, rtol=0, atol=1e-12)


def test_overwriting_keeps_the_function_and_frees_the_gradient():
    model, (x, y) = network(), images()
    before, w = model(x).detach(), model.head.weight
    (along,) = torch.autograd.grad(ready(SPAT(ATTACK)).loss(model, x, x, y)[0], w)
    torch.testing.assert_close(
        (along * w).sum(1), torch.zeros(K, dtype=w.dtype), atol=1e-12, rtol=0
    )
    loss, _ = ready(SPAT(ATTACK, overwrites=True)).loss(model, x, x, y)
    torch.testing.assert_close(w.norm(dim=1), torch.ones(K, dtype=w.dtype))
    torch.testing.assert_close(model(x), before)
    phi = F.normalize(model.features(x))
    plain = self_paced(F.linear(phi, w, model.head.bias), y, 0.2) * model.head.scale
    (free,), (expected,) = (torch.autograd.grad(v, w) for v in (loss, F.cross_entropy(plain, y)))
    torch.testing.assert_close(free, expected, rtol=1e-9, atol=1e-12)
    assert (free * w).sum(1).abs().max() > 1e-3


def test_spat_needs_a_cosine_head_and_a_known_form():
    with pytest.raises(ConfigError, match="spat needs a cosine head"):
        cosine_head(network("linear"))
    assert cosine_head(nn.DataParallel(network())).scale == 8
    with pytest.raises(ConfigError, match=f"form of spat is one of {', '.join(FORMS)}, not 'hard'"):
        ready(SPAT(ATTACK, form="hard"))


def labels_written_out(model, x, y, operations, delta, outputs):
    """-sum_c label_c log p_c with the label spelt out over K + M outputs."""
    label = torch.zeros(len(y), K + outputs, dtype=x.dtype)
    for i, (k, j) in enumerate(zip(y.tolist(), operations, strict=True)):
        label[i, k], label[i, K + j] = 1 - delta, delta
    assert torch.equal(label.sum(1), torch.ones(len(y), dtype=x.dtype))
    return -(label * model(x).softmax(1).log()).sum(1)


def test_adv_plus_is_the_formula_with_its_whole_gradient():
    # eval: else the joint pass is not the two apart
    model, (x, y) = network("augmented", 2).eval(), images()
    method = ready(LabelAugmentation(ATTACK, delta=0.3, clean_share=0.4))
    x_adv = method.craft(model, x, y, generator=torch.Generator().manual_seed(3))
    loss, stats = method.loss(model, x, x_adv, y)
    clean = labels_written_out(model, x, y, [0] * 10, 0.3, 2)
    attacked = labels_written_out(model, x_adv, y, [1] * 10, 0.3, 2)
    agree(model, loss, (0.4 * clean + 0.6 * attacked).mean())
    assert stats.clean.sum() == (model(x)[:, :K].argmax(1) == y).sum()
    assert stats.robust.sum() == (model(x_adv)[:, :K].argmax(1) == y).sum()
    assert stats.confusion.shape == (K, K)
    assert stats.n.tolist() == [5, 0, 5]


def test_only_attacked_images_and_one_batch_for_batch_norm():
    model, (x, y) = network("augmented", 2), images()
    loss, stats = ready(LabelAugmentation(ATTACK, clean_share=0)).loss(model, x, x.flip(0), y)
    agree(model, loss, labels_written_out(model, x.flip(0), y, [1] * 10, 0.1, 2).mean())
    assert stats.clean.isnan().all()
    passes = []
    model.body.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    ready(LabelAugmentation(ATTACK)).loss(model, x, x.flip(0), y)
    assert passes == [20]


def test_operations_take_turns_and_carry_their_labels():
    method = ready(LabelAugmentation(ATTACK, adversarial=False, delta=0.2, clean_share=0))
    assert (method.names, method.extra_outputs) == (("identity", *OPERATIONS), 5)
    assert method.selects_on == "clean"
    model, (x, y) = network("augmented", 5).eval(), images()
    moved = method.craft(model, x, y, generator=torch.Generator().manual_seed(4))
    for i, name in enumerate(["noise", "blur", "contrast", "brightness"] * 2):
        whole = OPERATIONS[name](x, torch.Generator().manual_seed(4))
        assert torch.equal(moved[i], whole[i])
        assert not torch.equal(moved[i], x[i])
    assert torch.equal(moved, moved.clamp(0, 1))
    turns = [1 + i % 4 for i in range(10)]
    assert method.operation(y).tolist() == turns
    agree(
        model,
        method.loss(model, x, moved, y)[0],
        labels_written_out(model, x * 0 + moved, y, turns, 0.2, 5).mean(),
    )
    both = ready(LabelAugmentation(ATTACK, operations=("noise",)))
    streams = both.craft(network("augmented", 3), x, y, generator=PerImage(0, torch.arange(10)))
    assert torch.equal(
        streams, both.craft(network("augmented", 3), x, y, generator=PerImage(0, torch.arange(10)))
    )
    assert ((streams - x)[1::2].abs() <= 0.1 + 1e-12).all()
    assert ((streams - x)[::2].abs() > 0.1).any()


def test_operations_are_what_they_say():
    x = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(OPERATIONS["blur"](x, None)[..., 2, 2], x[..., 1:4, 1:4].mean((2, 3)))
    assert torch.allclose(OPERATIONS["brightness"](x, None), (x + 0.15).clamp_max(1))
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(OPERATIONS["contrast"](x, None) - mean, 0.4 * (x - mean), atol=1e-6)
    flat = OPERATIONS["noise"](torch.full((1, 1, 100, 100), 0.5), torch.Generator().manual_seed(0))
    assert flat.std().item() == pytest.approx(0.08, rel=0.05)


def test_the_attack_is_on_the_classes_unless_all_outputs_are_asked_for():
    model, (x, y) = network("augmented", 2), images()
    first = nn.Sequential(model, Classes())
    crafted = {
        which: ready(LabelAugmentation(ATTACK, attacked=which)).craft(model, x, y)
        for which in ("classes", "all")
    }
    assert torch.equal(crafted["classes"], PGDAT(ATTACK).craft(first, x, y))
    assert torch.equal(crafted["all"], PGDAT(ATTACK).craft(model, x, y))
    assert not torch.equal(crafted["classes"], crafted["all"])
    assert repr(ready(LabelAugmentation(ATTACK)).ascended()) == repr(OfClasses(K, ATTACK.objective))


class Classes(nn.Module):
    def forward(self, logits):
        return logits[:, :K]


def test_label_smoothing_is_the_formula_and_at_without_it():
    model, (x, y) = network("linear").eval(), images()
    label = 0.7 * F.one_hot(y, K).double() + 0.3 / K
    expected = [-(label * model(v).softmax(1).log()).sum(1) for v in (x, x.flip(0))]
    loss, _ = ready(LabelSmoothing(ATTACK, 0.3, 0.25)).loss(model, x, x.flip(0), y)
    agree(model, loss, (0.25 * expected[0] + 0.75 * expected[1]).mean())
    assert torch.equal(
        ready(LabelSmoothing(ATTACK, 0, 0)).loss(model, x, x, y)[0],
        PGDAT(ATTACK).loss(model, x, x, y)[0],
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LabelAugmentation(ATTACK, delta=1), r"delta is in \[0, 1\), not 1"),
        (lambda: LabelSmoothing(ATTACK, clean_share=1.0), r"clean_share is in \[0, 1\), not 1.0"),
        (
            lambda: LabelAugmentation(ATTACK, operations=("fog",)),
            "operations is a tuple of noise, blur, contrast",
        ),
        (lambda: LabelAugmentation(ATTACK, operations="noise"), "operations is a tuple of noise"),
        (
            lambda: LabelAugmentation(ATTACK, attacked="both"),
            "attacked is 'classes' or 'all', not 'both'",
        ),
    ],
)
def test_settings_out_of_range_are_told(make, told):
    with pytest.raises(ConfigError, match=told) as error:
        ready(make())
    assert "\n" not in str(error.value)


def test_another_number_of_outputs_is_told():
    method, model, (x, y) = ready(LabelAugmentation(ATTACK)), network("augmented", 4), images()
    with pytest.raises(
        ConfigError, match="needs 5 outputs, 3 classes and 2 operations; the head has 7"
    ):
        method.loss(model, x, x, y)


def test_a_run_brings_the_head_and_every_preset_is_a_config(monkeypatch):
    for name, method in {"spat": SPAT, "la": LabelAugmentation, "smooth": LabelSmoothing}.items():
        monkeypatch.setitem(DEFENSES, name, method)
        for which in ("paper", "released", "crat"):
            RunConfig().but(**preset(name, which))
    of = {
        name: RunConfig().but(defense="la", options=options)
        for name, options in {
            "adv+": {},
            "la": {"adversarial": False},
            "noise": {"operations": ["noise"]},
        }.items()
    }
    heads = {name: Run.of(config).config.model for name, config in of.items()}
    assert {name: (m.head, m.extra_outputs) for name, m in heads.items()} == {
        "adv+": ("augmented", 2),
        "la": ("augmented", 5),
        "noise": ("augmented", 3),
    }
    assert Run.of(RunConfig().but(defense="spat")).config.model.head == "cosine"
