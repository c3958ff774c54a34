"""Tian et al. 2021 (KDD): changes of training and of inference for the most vulnerable class.

The paper's abstract says that both exist and whom they help; its formulae were not found and no
code is public. The forms here fit the description. They are ours, and no number of theirs speaks
for the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.objectives import full
from crat.defenses.base import Defense, Row, Task, Words, checked
from crat.defenses.stats import ClassStats

FORMS = ("weight", "temperature")


@dataclass
class Tian2021(Defense):
    """AT in which the class most vulnerable after an epoch has a larger factor u_k in the next.

    form "weight": mean[u_y CE(f(x'), y)]. form "temperature": mean[CE(f(x') / T_y, y)] with T_k = 1
    / u_k, whose gradient in the logits is u_y (softmax(u_y z) - onehot(y)): it, too, weighs errors
    by u, and leaves alone what is safely right. After an epoch u of the class with the lowest R_k
    (on validation where there is one) grows by `rate` up to `limit`, and u is divided by its mean.
    The attack is AT's, on the plain cross-entropy.
    """

    form: str = "weight"
    rate: float = 0.1
    limit: float = 3.0  # of u, before it is divided by its mean

    paper: ClassVar[str] = "Tian et al. 2021 (KDD): its abstract"
    rows = (
        Row(
            "form",
            None,
            None,
            Words("weight"),
            "the paper's formula was not found: a weight or a temperature per class fits its "
            "description",
        ),
        Row(
            "rate",
            None,
            None,
            Words("0.1"),
            "ours: the worst class doubles its factor in about eight epochs",
        ),
        Row("limit", None, None, Words("3"), "ours: no class may take the training over"),
        Row(
            "R_k that decides",
            None,
            None,
            "validation's (of the average, where one is kept)",
            "ours",
        ),
    )

    def prepare(self, task: Task) -> None:
        """Begins with u = 1.

        Raises ConfigError on an unknown form or a setting out of range.
        """
        checked("form of tian2021", self.form, lambda f: f in FORMS, f"one of {', '.join(FORMS)}")
        checked("rate of tian2021", self.rate, lambda r: r >= 0, "at least 0")
        checked("limit of tian2021", self.limit, lambda v: v >= 1, "at least 1")
        self.state[self.form] = torch.ones(task.n_classes)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean cross-entropy of the adversarial images, weighted or at the class's temperature."""
        logits = full(model(x_adv))
        of_class = self.state[self.form][y]
        if self.form == "weight":
            losses = of_class * F.cross_entropy(logits, y, reduction="none")
        else:
            losses = F.cross_entropy(logits / of_class[:, None], y, reduction="none")
        return losses.mean(), ClassStats.of(y, losses, logits)

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """Raises the factor of the most vulnerable class, of equals each; skips absent ones."""
        robust = (train if valid is None else valid).accuracy("robust", absent=float("inf"))
        value = self.state[self.form]
        factor = value if self.form == "weight" else 1 / value
        larger = (factor * (1 + self.rate)).clamp_max(self.limit)
        raised = torch.where(robust == robust.min(), larger, factor)
        factor = raised / raised.mean()
        self.state[self.form] = factor if self.form == "weight" else 1 / factor


def fit_bias(
    logits: Tensor,
    y: Tensor,
    *,
    rounds: int = 500,
    step: float = 0.03,
    max_drop: float | None = None,
) -> Tensor:
    """The bias b (K,), mean 0, for `LogitBias`: it lifts the worst class's robust accuracy.

    logits: (N, K), under attack, of held-out images.
    y: (N,).
    max_drop: the mean over classes may fall by at most this share (None: by any).
    Each round raises b of the worst class by step * sd(logits) / sqrt(round). The result is the
    best b on the way, by the worst class, then by the mean over classes. It begins with b = 0, so
    on these logits the worst class never falls. Classes without images are not judged.
    Deterministic.
    The attack must see b in the end: fit on logits under attack on `LogitBias(model, b)` again to
    go on from there (its bias is then b plus what is found).

    Raises ValueError where nothing can be fitted.
    """
    z = held_out(logits, y, "fit_bias")

    def moved(bias: Tensor, worst: Tensor, i: int) -> Tensor:
        bias = bias.index_add(0, worst, (step * z.std() / i**0.5)[None])
        return bias - bias.mean()

    return lifted(y, z.new_zeros(z.shape[1]), lambda b: z + b, moved, rounds, max_drop)


def held_out(logits: Tensor, y: Tensor, who: str) -> Tensor:
    """The logits (N, K) in float32, without a graph; raises ValueError where nothing can be fitted.

    y: (N,). who: the function that asks, for the error.
    """
    if logits.ndim != 2 or len(y) != len(logits) or len(y) == 0:
        raise ValueError(
            f"{who} takes logits (N, K) and labels (N,), "
            f"not {tuple(logits.shape)}, {tuple(y.shape)}"
        )
    return full(logits.detach())


def lifted(
    y: Tensor,
    values: Tensor,
    decided: Callable[[Tensor], Tensor],
    moved: Callable[[Tensor, Tensor, int], Tensor],
    rounds: int,
    max_drop: float | None,
) -> Tensor:
    """The class-wise values (K,) with the best worst class on the way, then by the mean.

    decided: values -> the logits (N, K) that answer under them.
    moved: (values, the worst class (1,), round from 1 on) -> the next values.
    max_drop: the mean over classes may fall by at most this share (None: by any).
    """
    best = values
    value = first = _worst_and_mean(decided(values), y)[0]
    for i in range(1, rounds + 1):
        values = moved(values, _worst_and_mean(decided(values), y)[1], i)
        found, _ = _worst_and_mean(decided(values), y)
        if found > value and (max_drop is None or found[1] >= first[1] - max_drop):
            best, value = values, found
    return best


def _worst_and_mean(z: Tensor, y: Tensor) -> tuple[tuple[float, float], Tensor]:
    """Lowest and mean accuracy over the present classes, and the lowest one's index (1,)."""
    n = y.bincount(minlength=z.shape[1])
    right = y[z.argmax(1) == y].bincount(minlength=z.shape[1])
    accuracy = (right / n).masked_fill(n == 0, float("inf"))
    return (accuracy.min().item(), accuracy[n > 0].mean().item()), accuracy.argmin()[None]
