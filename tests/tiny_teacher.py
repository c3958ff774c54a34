"""A teacher for tiny trainings: a drawn network, kept as a file in the present store."""

import tempfile
from pathlib import Path

import torch

from crat.defenses import DEFENSES
from crat.training.run import build_model
from crat.training.start import keep_file


def teacher(config, n_classes=None):
    """An untrained network as the config's, drawn by another seed, frozen and in eval mode."""
    network = build_model(config.but(seed=config.train.seed + 1), n_classes)
    return network.requires_grad_(False).eval()


def taught(config):
    """The config with such a teacher where its method needs one; the same name in every store."""
    if not DEFENSES[config.train.defense].taught:
        return config
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "drawn.pt")
        torch.save(teacher(config).state_dict(), file)
        return config.but(teacher=keep_file(file))
