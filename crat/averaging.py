"""Weight averaging: an exponential moving average of everything in state_dict, BatchNorm's statistics included."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """theta_bar <- decay theta_bar + (1 - decay) theta; the first update copies (CFA's code does the same).

    One class serves both habits, which differ in when `update` is called: once an epoch (CFA; decay 0.85 in the
    paper, 0.88 in its code) or once an optimizer update (decay near 0.999). warm_up: the decay of update t is at most
    (1 + t) / (10 + t), so that a short run does not keep its first weights. Integer buffers are copied.
    """

    def __init__(self, decay: float, *, warm_up: bool = False):
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of a moving average lies in [0, 1), not {decay!r}")
        self.decay, self.warm_up, self.updates = decay, warm_up, 0
        self.state: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the model's present weights into the average; no host synchronisation."""
        new = model.state_dict()
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warm_up else self.decay
        if not self.state:
            self.state = {name: value.clone() for name, value in new.items()}
            return
        floating = [name for name, value in new.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in floating], [new[n] for n in floating], 1 - decay)
        for name in new.keys() - set(floating):
            self.state[name].copy_(new[name])
