"""An attack leaves the model as it found it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BATCH_NORM_MODES = ("eval", "train", "moving", "as_is")


@contextmanager
def frozen(model: nn.Module, batch_norm: str = "eval") -> Iterator[nn.Module]:
    """Within: no parameter asks for a gradient, and BatchNorm is in the mode of the paper's attack.

    batch_norm: "eval" runs the whole model in eval mode (TRADES, and every evaluation); "train"
        normalises by the batch, as AT in CFA and FAT do, but leaves the running statistics alone
        and dropout off; "moving" lets every pass move them, as the released code of CFA does;
        "as_is" changes no mode.
    After it, the mode of every module, requires_grad, .grad and all buffers (but under "moving")
    are what they were.
    """
    if batch_norm not in BATCH_NORM_MODES:
        raise ValueError(f"batch_norm is one of {', '.join(BATCH_NORM_MODES)}, not {batch_norm!r}")
    modes = [(module, module.training) for module in model.modules()]
    wanted_gradients = [p for p in model.parameters() if p.requires_grad]
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for parameter in wanted_gradients:
            parameter.requires_grad_(False)
        if batch_norm != "as_is":
            model.eval()
        for norm in norms:
            norm.training |= batch_norm in ("train", "moving")
            # Without tracking, train mode normalises by the batch and writes no buffer.
            norm.track_running_stats = batch_norm == "moving" or not norm.training
        yield model
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for module, training in modes:
            module.training = training
        for parameter in wanted_gradients:
            parameter.requires_grad_(True)
