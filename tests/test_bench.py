"""The benchmark: both sides do the same work, and the table says what it measured."""

import torch

from crat import bench
from crat.attacks import PGD
from crat.config import ModelConfig
from crat.nets import models


def test_the_two_attacks_take_the_same_steps():
    model = models.build(ModelConfig("small_cnn", width=4), 10, seed=0).double().eval()
    x, y = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double(), torch.arange(4)
    plain = bench.textbook_pgd(model, x, y, bench.EPS, 3, torch.Generator().manual_seed(1))
    assert all(p.grad is not None for p in model.parameters())  # the textbook pays for these

    class Noise(PGD):
        def _start(self, images, eps, generator):
            return (images + torch.empty_like(images).uniform_(-eps, eps, generator=generator)).clamp(0, 1)

    ours = Noise(bench.EPS, bench.STEP, 3)(model, x, y, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


def test_one_table_in_one_run(capsys):
    bench.main(["small_cnn"], batch=8, steps=2)
    lines = capsys.readouterr().out.splitlines()
    assert "torch" in lines[0]
    assert lines[1].split() == ["model", "work", "unit", "textbook", "crat", "ratio"]
    assert [line.split()[0] for line in lines[2:]] == ["small_cnn", "small_cnn"]
