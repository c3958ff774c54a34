"""The decision function: which logits of a model answer, at which scale, and with which bias."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from crat.attacks.logits import logits_of
from crat.attacks.objectives import full

fx.wrap("logits_of")  # tracing, as folding does, keeps the call


class Decision(nn.Module):
    """A model as it decides: some of its logits (N, K), times a scale; nothing is trained.

    The model is not copied.

    logit_slice: a slice (label augmentation answers with its first K outputs: `slice(K)`) or the
        indices of the classes that may be answered; None: all.
    scale: s of a cosine head that was trained on s * cos but returns cos: attacks that ascend a
        loss of unscaled cosines are weak (its softmax is nearly flat).
    """

    index: Tensor | None

    def __init__(
        self, model: nn.Module, logit_slice: slice | Sequence[int] | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.model, self.scale = model, scale
        self.slice = logit_slice if isinstance(logit_slice, slice) else slice(None)
        listed = None
        if logit_slice is not None and not isinstance(logit_slice, slice):
            listed = torch.tensor(list(logit_slice))
        self.register_buffer("index", listed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, number of answers)."""
        logits = logits_of(self.model(x), x)[:, self.slice]
        return self.scale * (logits if self.index is None else logits.index_select(1, self.index))


class LogitBias(nn.Module):
    """A model with an offset per class, z_k / T_k + b_k, both seen by attacks; nothing is trained.

    bias: (K,), added to the logits.
    temperature: (K,) above 0, by which each logit is divided first; None: 1.
    The model is not copied.

    Raises ValueError where a shape or a temperature is wrong.
    Source: the change at inference of Tian et al. 2021, by its description; the form is ours.
    `crat.defenses.tian2021.fit_bias` finds b.
    """

    bias: Tensor
    temperature: Tensor | None

    def __init__(self, model: nn.Module, bias: Tensor, temperature: Tensor | None = None) -> None:
        super().__init__()
        if bias.ndim != 1 or (temperature is not None and temperature.shape != bias.shape):
            raise ValueError("bias and temperature are vectors with one number a class")
        if temperature is not None and not bool((temperature > 0).all()):
            raise ValueError("temperatures must be above 0")
        self.model = model
        self.register_buffer("bias", bias.detach().clone(), persistent=False)
        divisor = None if temperature is None else temperature.detach().clone()
        self.register_buffer("temperature", divisor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, K), float32 where the model gives less."""
        logits = full(logits_of(self.model(x), x))
        return (logits if self.temperature is None else logits / self.temperature) + self.bias
