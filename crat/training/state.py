"""The state of a training: everything that changes, as tensors and numbers for a checkpoint."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crat.defenses.base import Defense
from crat.device import moved
from crat.training.averaging import EMA, Gate

Meta = dict[str, Any]


@dataclass
class TrainState:
    """The state of a training after `epochs_done` epochs.

    average, gate: None where the config asks for none.
    seconds: time of training, without validation.
    best: epoch, score, average accuracy and weights' fingerprint of the chosen epoch; {} before the
    first epoch.
    collapsed: epochs after which nearly all validation images were assigned to one class.
    start: the card's entry on the weights that it began with (crat.training.start); {}: drawn ones.
    teacher: the card's entry on the network that it learns from (crat.training.start); {}: none.
    rows: the rows of history.csv.
    trace: name -> list of logits (N, K), one array per epoch.
    way: how the last epoch's steps were done (crat.training.proof.Way).
    """

    model: nn.Module
    optimizer: torch.optim.SGD
    defense: Defense
    average: EMA | None = None
    gate: Gate | None = None
    epochs_done: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    collapsed: list[int] = field(default_factory=list)
    start: dict[str, str] = field(default_factory=dict)
    teacher: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    way: str = "eager"
    trace: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights that validation judges: the average once it exists, else the model's."""
        if self.average and self.average.state:
            return self.average.state
        return self.model.state_dict()

    def state_dict(self) -> tuple[dict[str, Tensor], Meta]:
        """The tensors, named "part/name", and the numbers; rows and trace go to other files."""
        parts = {
            "model": self.model.state_dict(),
            "momentum": self._momentum(),
            "average": self.average.state if self.average else {},
            "defense": self.defense.state_dict(),
        }
        tensors = {}
        for name_of_part, values in parts.items():
            for name, value in values.items():
                tensors[f"{name_of_part}/{name}"] = value
        meta = {
            "epoch": self.epochs_done,
            "seconds": self.seconds,
            "best": self.best,
            "collapsed": self.collapsed,
            "start_from": self.start,
            "teacher": self.teacher,
            "averaged": self.average.updates if self.average else 0,
            "gate": vars(self.gate) if self.gate else {},
        }
        return tensors, meta

    def load_state_dict(self, tensors: dict[str, Tensor], meta: Meta) -> None:
        """Restores what `state_dict` returned, on the model's device."""
        device = next(self.model.parameters()).device
        self.model.load_state_dict(part(tensors, "model"))
        for name, buffer in part(tensors, "momentum").items():
            parameter = self.model.get_parameter(name)
            self.optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter)
        if self.average:
            self.average.state = _moved(part(tensors, "average"), device)
            self.average.updates = meta["averaged"]
        if self.gate:
            vars(self.gate).update(meta["gate"])
        self.defense.load_state_dict(_moved(part(tensors, "defense"), device))
        self.epochs_done = meta["epoch"]
        self.seconds = meta["seconds"]
        self.best = meta["best"]
        self.collapsed = meta["collapsed"]

    def _momentum(self) -> dict[str, Tensor]:
        buffers = {
            name: self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            for name, parameter in self.model.named_parameters()
        }
        return {name: buffer for name, buffer in buffers.items() if buffer is not None}


def _moved(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: moved(value, device) for name, value in tensors.items()}


def part(tensors: dict[str, Tensor], name_of_part: str) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint, without the part's prefix."""
    return {
        name.split("/", 1)[1]: value
        for name, value in tensors.items()
        if name.startswith(name_of_part + "/")
    }
