"""The teacher of a training: the network of another run, or of a file, that a distillation asks.

The config names it as it names a start (crat.training.start), so that it decides the key. The card
has the fingerprint of its weights, as the same run may have other weights on another machine; a
training that is resumed must find the same. The teacher answers in eval mode, with float32 weights
under the training's autocast. It is not trained, and no part of the checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from crat import store
from crat.attacks import Decision
from crat.config import DATASETS, ConfigError, RunConfig
from crat.defenses import method_named
from crat.nets import models
from crat.training.run import Run, build_model
from crat.training.start import best_network, finished_run, kept_file


def teacher_of(
    run: Run, device: torch.device, published: Path | None = None
) -> tuple[nn.Module | None, dict[str, str]]:
    """A run's teacher on the device, frozen and in eval mode, and the card's entry on it.

    published: the folder of published runs (None: they are left aside).

    A run's teacher may be of another network than the student. The weights of a file are of the
    student's own, for a file does not say its network. The entry has the name and the fingerprint
    of the weights; (None, {}) where the method needs no teacher.
    Raises ConfigError where the method needs one and the config names none, or where it does not
    fit; MissingStart where it is not trained; and as `crat.training.start.begin`.
    """
    name = run.config.train.teacher
    method = run.config.train.defense
    if not name:
        if method_named(method).taught:
            raise ConfigError(
                f"{method} learns from a teacher and none is named: train one, such as pgd_at, "
                "and give its name, --teacher RUN or teacher=Run.of(config).name"
            )
        return None, {}
    if run.config.model.head == "augmented":
        raise ConfigError(
            "a teacher answers with one output a class, and the augmented head has more: "
            "choose another head"
        )
    if file := kept_file(run, name):
        network: nn.Module = build_model(run.config)
        if not models.load_start(network, file):
            raise ConfigError(f"the head of {name} has other classes than the run that it teaches")
        network = network.to(device).to(memory_format=torch.channels_last)
        entry = {"file": name, "weights": store.fingerprint(store.read_tensors(file)[0])}
    else:
        found = finished_run(run, name, published, "learns from")
        _must_fit(run.config, found)
        network, weights = best_network(found, device)
        entry = {"run": name, "which": "best", "weights": weights}
        if found.config.model.head == "augmented":
            network = Decision(network, slice(len(found.config.data.kept_classes())))
    return network.requires_grad_(False).eval(), entry


def _must_fit(config: RunConfig, teacher: Run) -> None:
    """Raises ConfigError where a teacher knows other classes or images of another shape."""
    there, here = teacher.config.data, config.data
    classes = (there.kept_classes(), here.kept_classes())
    shapes = (DATASETS[there.name].image_shape, DATASETS[here.name].image_shape)
    problem = ""
    if len(classes[0]) != len(classes[1]):
        problem = f"{len(classes[0])} classes, not {len(classes[1])}"
    elif there.name == here.name and classes[0] != classes[1]:
        problem = f"the classes {classes[0]}, not {classes[1]}"
    elif shapes[0] != shapes[1]:
        problem = f"images of shape {shapes[0]}, not {shapes[1]}"
    if problem:
        raise ConfigError(f"{teacher.name} cannot teach this run: it has {problem}")
