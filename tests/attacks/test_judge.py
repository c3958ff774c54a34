"""Judging batch by batch: it resumes, transfers, and leaves its caller alone."""

import torch
import torch.nn.functional as F
from torch import nn

from crat.attacks import PGD
from crat.attacks.judge import attacked_batches, attacked_logits
from crat.attacks.precision import exact

PGD5 = PGD(0.1, 0.03, 5)


def net_and_batch(n=30):
    torch.manual_seed(0)
    body = [
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 5),
    ]
    generator = torch.Generator().manual_seed(0)
    return nn.Sequential(*body), torch.rand(n, 2, 6, 6, generator=generator), torch.arange(n) % 3


def test_whoever_stops_between_batches_keeps_gradients():
    model, x, y = net_and_batch()
    batches = attacked_batches(model, x, y, PGD5, batch_size=8)
    assert next(batches).broken_by is None
    assert torch.is_grad_enabled()
    assert model.training


def test_verdicts_resume_and_transfer():
    model, x, y = net_and_batch()
    model.eval()
    whole = attacked_logits(model, x, y, PGD5, batch_size=8)
    rest = attacked_logits(model, x, y, PGD5, batch_size=8, begin=16)
    assert torch.equal(whole[16:], rest)
    clean = attacked_logits(model, (x * 255).to(torch.uint8), y, None, batch_size=8)
    torch.testing.assert_close(clean, model((x * 255).to(torch.uint8).float() / 255))
    other = nn.Sequential(nn.Flatten(), nn.Linear(72, 5))
    transferred = attacked_logits(model, x, y, PGD5, batch_size=8, crafted_on=other)
    assert F.cross_entropy(transferred, y) < F.cross_entropy(whole, y)


def test_float32_is_not_tf32_while_judging():
    before = torch.backends.cudnn.allow_tf32
    with exact():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
