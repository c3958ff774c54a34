"""CROWN: a lower bound of every margin within eps, so of the robust accuracy of every class.

An attack shows that an image can be broken; this shows that one cannot. In every class the share
that is certified, the true robust accuracy and AutoAttack's stand in this order: a bracket.

An unstable ReLU, whose input z lies in [l, u] with l < 0 < u, is at most the line through (l, 0)
and (u, u) and at least a z, 0 <= a <= 1. A linear form of a layer thus becomes one of the layer
before, down to the image, where the worst image of the box is known. The inputs' l and u come from
the same, layer by layer. Zhang et al. 2018 (CROWN, arXiv 1811.00866): a = 1 where u > -l, else 0.
Xu et al. 2021 (alpha-CROWN, arXiv 2011.13824): every a in [0, 1] is valid, and the best is sought.

Convolutions stay convolutions: their transpose is the gradient that autograd has. On the same
layers as matrices PyPI's bound-propagation 0.4.7 gave the same CROWN bounds to 1e-6 of theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crat.attacks.door import check_classes, check_images, check_labels, check_model, check_radius
from crat.attacks.frozen import frozen
from crat.attacks.logits import AttackError, finite_logits
from crat.nets.chain import changed
from crat.nets.models import Classifier, Normalize

AFFINE = (
    nn.AdaptiveAvgPool2d,
    nn.AvgPool2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.Conv2d,
    nn.Dropout,
    nn.Flatten,
    nn.Identity,
    nn.Linear,
    Normalize,
)
NUMBERS = 2**18  # of one pass: 2 MB of float64 stay in a cache
RATE = 0.1  # of Adam, as in alpha-CROWN
SAME = 1e-3  # of the largest logit: how far float32 may be from the layers in float64


@dataclass(frozen=True)
class CROWN:
    """CROWN(eps=0.1)(model, x, y) -> lower bounds (N, K) of the margins z_y - z_k; inf at k = y.

    eps: the radius in L-inf; images also stay in [0, 1].
    steps: of Adam on the slopes a of an image that CROWN leaves open and that is right without an
        attack; 0: CROWN alone. The best bound of all steps counts. The hidden layers' l and u are
        CROWN's throughout (the paper can ascend in theirs, too), and none is wider than interval
        arithmetic's.

    An image is certified where the smallest of its bounds is above 0. The computation is in float64
    and rounds as usual, to the nearest: what it certifies holds up to that rounding.
    """

    eps: float
    steps: int = 20

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seen: Callable[[Iterable[int]], Iterable[int]] = iter,
    ) -> Tensor:
        """Lower bounds (N, K) in float64, on the device of x.

        model: a `Classifier` or nn.Sequential whose layers are ReLU and AFFINE; it is judged in
            eval mode and left as it was. x: (N, C, H, W) in [0, 1]. y: (N,) int64.
        seen: wraps the images' numbers, such as a progress bar.
        Raises AttackError on other layers, images or labels.
        """
        net, x, y = _admitted(self, model, x, y)
        rows = [self._of_image(net, x[i : i + 1], int(y[i])) for i in seen(range(len(x)))]
        return torch.stack(rows) if rows else x.new_zeros(0, net.classes)

    def _of_image(self, net: Chain, x: Tensor, y: int) -> Tensor:
        """The bounds (K,) of one image x (1, C, H, W)."""
        box = _ball(x, self.eps)
        hidden = net.hidden(box, crown=True)
        forms = _margins(y, net.classes, x)
        bound = net.lower(forms, hidden, box)
        bound = torch.maximum(bound, net.in_intervals(forms, box))
        ascends = self.steps and hidden
        if ascends and bound.min() <= 0 < (forms @ net.logits(x)[0]).min():
            bound = torch.maximum(bound, self._ascended(net, forms, hidden, box))
        return torch.cat([bound[:y], bound.new_full((1,), torch.inf), bound[y:]])

    def _ascended(self, net: Chain, forms: Tensor, hidden: Sequence[Box], box: Box) -> Tensor:
        """The best bounds of the forms over the steps; each form has slopes of its own."""
        slopes = [
            _slope(inputs).expand(len(forms), *inputs.low.shape[1:]).clone().requires_grad_()
            for inputs in hidden
        ]
        optimizer = torch.optim.Adam(slopes, lr=RATE)
        best = forms.new_full((len(forms),), -torch.inf)
        for _ in range(self.steps):
            bound = net.lower(forms, hidden, box, slopes)
            best = torch.maximum(best, bound.detach())
            gradients = torch.autograd.grad(-bound.sum(), slopes, retain_graph=True)
            for slope, gradient in zip(slopes, gradients, strict=True):
                slope.grad = gradient
            optimizer.step()
            with torch.no_grad():
                for slope in slopes:
                    slope.clamp_(0, 1)
        return torch.maximum(best, net.lower(forms, hidden, box, slopes).detach())


def interval_margins(eps: float, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same bounds (N, K) by interval arithmetic alone (Gowal et al. 2018, arXiv 1810.12715)."""
    net, x, y = _admitted(CROWN(eps), model, x, y)
    bounds = x.new_full((len(x), net.classes), torch.inf)
    for i, label in enumerate(y.tolist()):
        others = torch.arange(net.classes, device=x.device) != label
        forms = _margins(label, net.classes, x)
        bounds[i, others] = net.in_intervals(forms, _ball(x[i : i + 1], eps))
    return bounds


class Box(NamedTuple):
    """The lowest and highest values (1, ...) of the inputs of a layer."""

    low: Tensor
    high: Tensor


class Chain:
    """A network as affine blocks with a ReLU between each two, in float64."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.blocks = [nn.Sequential()]
        for layer in _layers(model):
            if isinstance(layer, nn.ReLU):
                self.blocks.append(nn.Sequential())
            else:
                self.blocks[-1].append(copy.deepcopy(layer).double().eval().requires_grad_(False))
        self.sizes = [nn.Sequential(*map(_absolute, block)) for block in self.blocks]
        self.zeros: list[Tensor] = []  # an input of each block
        self.biases: list[Tensor] = []  # its answer to that
        answer = torch.zeros_like(x[:1], dtype=torch.float64)
        for block in self.blocks:
            self.zeros.append(torch.zeros_like(answer))
            answer = block(self.zeros[-1])
            self.biases.append(answer)
        self.classes = answer.shape[1]
        self.passes: dict[int, tuple[Tensor, Tensor]] = {}

    def logits(self, x: Tensor) -> Tensor:
        """The logits (N, K) of images (N, C, H, W) in float64."""
        for block in self.blocks[:-1]:
            x = block(x).relu()
        answer: Tensor = self.blocks[-1](x)
        return answer

    def hidden(self, box: Box, crown: bool) -> list[Box]:
        """The boxes of the inputs of all ReLUs; crown: or those of interval arithmetic alone."""
        found: list[Box] = []
        for block, size, bias in zip(self.blocks[:-1], self.sizes, self.biases, strict=False):
            before = Box(*(end.relu() for end in found[-1])) if found else box
            centre = block((before.low + before.high) / 2)
            radius = size((before.high - before.low) / 2)
            low = (centre - radius).flatten()
            high = (centre + radius).flatten()
            if crown and found:  # in the first layer the intervals are exact
                unstable = ((low < 0) & (high > 0)).nonzero()[:, 0]
                numbers = max(
                    bias.numel(), *(zero.numel() for zero in self.zeros[: len(found) + 1])
                )
                for some in unstable.split(max(1, NUMBERS // (2 * numbers))):
                    forms = low.new_zeros(len(some), len(low))
                    forms[torch.arange(len(some)), some] = 1
                    ends = self.lower(torch.cat([forms, -forms]), found, box)
                    low[some] = torch.maximum(low[some], ends[: len(some)])
                    high[some] = torch.minimum(high[some], -ends[len(some) :])
            found.append(Box(low.view_as(bias), high.view_as(bias)))
        return found

    def lower(
        self,
        forms: Tensor,
        hidden: Sequence[Box],
        box: Box,
        slopes: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The lower bounds (R,) of linear forms (R, D) of the outputs of block len(hidden).

        hidden: the boxes of the ReLUs' inputs before that block. box: of the images.
        slopes: the a (R, ...) of each ReLU; None: CROWN's. Those of stable ReLUs are not used.
        """
        forms, bound = self._before(len(hidden), forms)
        for i in range(len(hidden) - 1, -1, -1):
            low, high = hidden[i]
            unstable = (low < 0) & (high > 0)
            chord = high / torch.where(unstable, high - low, 1)
            above = torch.where(unstable, chord, (low >= 0).double())
            below = above
            if slopes is not None:
                below = torch.where(unstable, slopes[i], above)
            elif unstable.any():
                below = torch.where(unstable, _slope(hidden[i]), above)
            falling = forms.clamp(max=0)
            offset = torch.where(unstable, -low * above, 0)
            bound = bound + (falling * offset).flatten(1).sum(1)
            forms, constant = self._before(i, forms.clamp(min=0) * below + falling * above)
            bound = bound + constant
        return bound + _least(forms, box)

    def in_intervals(self, forms: Tensor, box: Box) -> Tensor:
        """The lower bounds (R,) of linear forms (R, K) of the logits by interval arithmetic."""
        hidden = self.hidden(box, crown=False)
        before = Box(*(end.relu() for end in hidden[-1])) if hidden else box
        forms, constant = self._before(len(self.blocks) - 1, forms)
        return _least(forms, before) + constant

    def _before(self, i: int, forms: Tensor) -> tuple[Tensor, Tensor]:
        """Forms (R, ...) of the outputs of block i as forms of its inputs, and constants (R,)."""
        bias = self.biases[i]
        forms = forms.view(len(forms), *bias.shape[1:])
        constant = (forms * bias).flatten(1).sum(1)
        inputs, outputs = self._pass(i, len(forms))
        wanted = forms.requires_grad
        (moved,) = torch.autograd.grad(
            outputs, inputs, forms, retain_graph=True, create_graph=wanted
        )
        return moved, constant

    def _pass(self, i: int, rows: int) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of block i, whose gradient is the same at all inputs; made once."""
        if i not in self.passes or len(self.passes[i][0]) != rows:
            with torch.enable_grad():
                shape = (rows, *self.zeros[i].shape[1:])
                inputs = self.zeros[i].expand(shape).contiguous().requires_grad_()
                self.passes[i] = (inputs, self.blocks[i](inputs))
        return self.passes[i]


def _least(forms: Tensor, box: Box) -> Tensor:
    """The least value (R,) of each form (R, ...) in a box."""
    centre = (forms * ((box.low + box.high) / 2)).flatten(1).sum(1)
    return centre - (forms.abs() * ((box.high - box.low) / 2)).flatten(1).sum(1)


def _slope(inputs: Box) -> Tensor:
    """CROWN's a: of the two ends the one with the smaller triangle."""
    return (inputs.high > -inputs.low).double()


def _ball(x: Tensor, eps: float) -> Box:
    return Box((x - eps).clamp(0, 1), (x + eps).clamp(0, 1))


def _margins(y: int, classes: int, x: Tensor) -> Tensor:
    """The forms (K - 1, K) z_y - z_k of the logits, k in the order of the classes without y."""
    eye = torch.eye(classes, dtype=x.dtype, device=x.device)
    forms = eye[y] - eye
    return torch.cat([forms[:y], forms[y + 1 :]])


def _admitted(crown: CROWN, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Chain, Tensor, Tensor]:
    """The chain, images in float64 and labels; raises AttackError on what cannot be bounded."""
    check_model(model)
    x = check_images(x)
    y = check_labels(y, x)
    check_radius(crown.eps, "Linf", x)
    if x.device.type == "mps":
        raise AttackError("bounds are computed in float64, which Apple's GPU has not: --device cpu")
    net = Chain(model, x)
    exact = x.double().clamp(0, 1)
    if len(x):
        with frozen(model):
            logits = finite_logits(model, x[:8])
        check_classes(y, logits)
        ours = net.logits(exact[:8])
        if not (ours - logits).abs().max() <= SAME * logits.abs().max():
            raise AttackError("the model's logits are not those of its layers one behind another")
    return net, exact, y


def _layers(module: nn.Module) -> list[nn.Module]:
    """The layers in the order of their calls; raises AttackError on one that cannot be bounded."""
    if isinstance(module, Classifier):
        return [module.normalize, *_layers(module.body), *_layers(module.head)]
    if type(module) is nn.Sequential:
        return [layer for part in module for layer in _layers(part)]
    tracked = getattr(module, "running_mean", module) is not None
    if type(module) in (*AFFINE, nn.ReLU) and tracked and not changed(module):
        return [module]
    known = ", ".join(kind.__name__ for kind in (nn.ReLU, *AFFINE))
    hooks = " with hooks or a forward of its own" if changed(module) else ""
    raise AttackError(
        f"no bound goes through {type(module).__name__}{hooks}: it goes through {known}"
    )


def _absolute(layer: nn.Module) -> nn.Module:
    """A layer with the absolute values of the matrix and no bias: radius -> radius."""
    layer = copy.deepcopy(layer)
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        if name == "weight":
            tensor.data.abs_()
        elif name in ("bias", "mean", "running_mean"):
            tensor.data.zero_()
    return layer
