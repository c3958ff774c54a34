"""Chains of conv-BatchNorm-ReLU on a CPU: autograd's numbers, bit for bit, in less time.

`through(body, x)` is `body(x)`. Where the body is such a chain (small_cnn), two gradients are
computed otherwise, and every element stays what it was:

- The gradient of the flattened features comes back in the memory order of the images (channels
  last). In the other order the last ReLU's backward takes ten times as long.
- The gradient by the images is computed for GROUP neighbouring pixels at a time (`_grouped`), in
  the passes of an attack, and only where a trial on this machine gave the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

GROUP = 4  # pixels of a row whose gradients one convolution gives as its channels
LANES = 16  # numbers in a register of a CPU with AVX-512; more channels than that gain nothing
IMAGES = 32  # batches of a multiple of this are tried; others would need a trial each
PRECISIONS = (torch.float32, torch.bfloat16)
# torch's own question for them is younger than torch 2.4
HOOKS_ON_ALL = tuple(
    f"_global_{kind}_hooks" for kind in ("forward", "forward_pre", "backward", "backward_pre")
)

_SAME_BITS: dict[tuple, bool] = {}  # the shapes for which the two forms of a gradient were compared


def through(body: nn.Module, x: Tensor) -> Tensor:
    """`body(x)`: (N, C, H, W) -> (N, D), with the same bits in the result and in all gradients."""
    if not (_ordinary(x) and is_chain(body)):
        return cast(Tensor, body(x))
    layers: list[Callable[[Tensor], Tensor]] = [*cast(nn.Sequential, body)][:-1]
    conv = cast(nn.Conv2d, layers[0])
    if x.requires_grad and not conv.weight.requires_grad:
        layers[0] = lambda images: _first(images, conv)
    for layer in layers:
        x = layer(x)
    if x.requires_grad and x.is_contiguous(memory_format=torch.channels_last):
        return cast(Tensor, _Flattened.apply(x))  # type: ignore[no-untyped-call]
    return x.flatten(1)


def is_chain(body: nn.Module) -> bool:
    """Whether a body is conv-BatchNorm-ReLU some times, then flattened, and nothing else.

    Layers with hooks or a forward of their own are something else.
    """
    if type(body) is not nn.Sequential or len(body) < 4 or len(body) % 3 != 1:
        return False
    layers = list(body)
    kinds = [type(layer) for layer in layers]
    if kinds != [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * (len(layers) // 3) + [nn.Flatten]:
        return False
    flatten = cast(nn.Flatten, layers[-1])
    if (flatten.start_dim, flatten.end_dim) != (1, -1):
        return False
    return not any(changed(layer) for layer in (body, *layers))


def changed(layer: nn.Module) -> bool:
    """Whether a call of a layer does more than its class says: hooks, a forward of its own."""
    held = vars(layer)
    return "forward" in held or any(held[name] for name in held if name.endswith("_hooks"))


def _ordinary(x: Tensor) -> bool:
    """Whether x is a tensor of a CPU that no tracer, compiler or transform looks at."""
    if type(x) is not Tensor or x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return x.ndim == 4 and not any(getattr(nn.modules.module, name) for name in HOOKS_ON_ALL)


def _first(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The first convolution, with frozen weights, of images (N, C, H, W) -> (N, O, H', W')."""
    by_autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if by_autocast else x.dtype
    fits = conv.bias is None and conv.groups == 1 and conv.dilation == (1, 1)
    plain = conv.padding_mode == "zeros" and _kernel(conv) == ((3, 3), (1, 1), (1, 1))
    alike = by_autocast or conv.weight.dtype == x.dtype
    if not (fits and plain and alike and dtype in PRECISIONS):
        return cast(Tensor, conv(x))
    # as autocast casts them
    out = _Convolved.apply(x.to(dtype), conv.weight.to(dtype))  # type: ignore[no-untyped-call]
    return cast(Tensor, out)


def _kernel(conv: nn.Conv2d) -> tuple:
    return (conv.kernel_size, conv.stride, conv.padding)


class _Convolved(torch.autograd.Function):
    """A convolution with frozen weights, kernel 3, stride 1, padding 1, without bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.conv2d(x, weight, None, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        x, weight = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):  # the precision is that of the pass forward
            if _groups(g, x, weight):
                return _grouped(g, weight), None
            return _plain(g, x, weight), None


def _plain(g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution's gradient by its input x, as autograd computes it."""
    settings = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    return torch.ops.aten.convolution_backward(g, x, weight, None, *settings, [True, False, False])[
        0
    ]


def _grouped(g: Tensor, weight: Tensor) -> Tensor:
    """The same for few channels C: (N, O, H, W) -> (N, C, H, W).

    The gradient by x is the convolution of g with the turned kernel, C channels out. A CPU computes
    as many channels as a register has lanes, so most of them are wasted for C = 1. Here the output
    channels are the C channels of GROUP pixels beside each other, the stride in a row is GROUP, and
    the kernel is wide enough for all of them, with zeros elsewhere. In memory (channels last) the
    result lies just as the images do. The order of the sums is kept, and zeros add nothing.
    """
    n, _, height, width = g.shape
    channels = weight.shape[1]
    wide = torch.conv2d(g, _wide_kernel(weight), stride=(1, GROUP), padding=1)
    wide = wide.permute(0, 2, 3, 1).reshape(n, height, width, channels)
    return wide.permute(0, 3, 1, 2)


def _wide_kernel(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (GROUP C, O, 3, GROUP + 2): the turned kernel, moved by a pixel each time."""
    outside, channels = weight.shape[:2]
    turned = weight.flip(2, 3).transpose(0, 1)
    wide = weight.new_zeros(GROUP, channels, outside, 3, GROUP + 2)
    for pixel in range(GROUP):
        wide[pixel, ..., pixel : pixel + 3] = turned
    flat = wide.view(GROUP * channels, outside, 3, GROUP + 2)
    return flat.contiguous(memory_format=torch.channels_last)


def _groups(g: Tensor, x: Tensor, weight: Tensor) -> bool:
    """Whether `_grouped` serves for these images: it fits, and gave the bits of `_plain` here."""
    n, channels, _, width = x.shape
    if GROUP * channels > LANES or width % GROUP or n % IMAGES:
        return False
    if not g.is_contiguous(memory_format=torch.channels_last):
        return False
    # the strides decide, too, by which algorithm the library computes
    layout = tuple((t.shape, t.stride()) for t in (g, x, weight))
    key = (*layout, x.dtype, torch.get_num_threads())
    if key not in _SAME_BITS:
        _SAME_BITS[key] = _tried(g, x, weight)
    return _SAME_BITS[key]


def _tried(g: Tensor, x: Tensor, weight: Tensor) -> bool:
    """Whether both forms give the same bits for a gradient in which another order would show.

    Each kernel's nine numbers add up to 0, the gradient hardly changes from place to place, and the
    channels have sizes from 2^-8 to 2^8: the sums nearly cancel, and float32 rounds each of them.
    What is given says how the tensors lie.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = torch.linspace(-8, 8, len(weight)).exp2()[None, :, None, None]
    terms = sizes * (1 + torch.rand(g.shape, generator=generator) / 64)
    terms = torch.empty_like(g).copy_(terms)
    kernel = torch.randint(-8, 9, weight.shape, generator=generator).float()
    kernel[..., 2, 2] -= kernel.sum((2, 3))
    kernel = torch.empty_like(weight).copy_(kernel)
    return torch.equal(_grouped(terms, kernel), _plain(terms, x, kernel))


class _Flattened(torch.autograd.Function):
    """x.flatten(1), whose gradient comes back channels last, as x lies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.flatten(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view(ctx.shape).contiguous(memory_format=torch.channels_last)
