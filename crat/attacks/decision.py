"""The decision function: which logits of a model answer, and at which scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Decision(nn.Module):
    """A model as it decides: some of its logits (N, K), times a scale; nothing is trained or copied.

    logit_slice: a slice (label augmentation answers with its first K outputs: `slice(K)`) or the indices of the classes
    that may be answered; None: all. scale: s of a cosine head that was trained on s * cos but returns cos: attacks that
    ascend a loss of unscaled cosines are weak (its softmax is nearly flat).
    """

    index: Tensor | None

    def __init__(
        self, model: nn.Module, logit_slice: slice | Sequence[int] | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.model, self.scale = model, scale
        self.slice = logit_slice if isinstance(logit_slice, slice) else slice(None)
        listed = None if logit_slice is None or isinstance(logit_slice, slice) else torch.tensor(list(logit_slice))
        self.register_buffer("index", listed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, number of answers)."""
        logits = self.model(x)[:, self.slice]
        return self.scale * (logits if self.index is None else logits.index_select(1, self.index))
