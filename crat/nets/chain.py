"""Chains of conv-BatchNorm-ReLU on a CPU: autograd's numbers, bit for bit, in less time.

`through(body, x)` is `body(x)`. Where the body is such a chain (small_cnn), two things are done
otherwise, and every element stays what it was:

- An attack's pass (frozen parameters, images that ask for a gradient) is one node of the graph. Its
  backward runs the operators that autograd would run, but writes each ReLU's gradient in the place
  of the one above, and reads bfloat16 as 16-bit integers there.
- The gradient of the flattened features comes back in the memory order of the images (channels
  last). In the other order the last ReLU's backward takes ten times as long.

The input gradient of the first convolution is also computed for GROUP neighbouring pixels at a time
(`_InputGradient`), but only where a trial on this machine gave the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

GROUP = 4  # pixels of a row whose gradients one convolution gives as its channels
LANES = 16  # numbers in a register of a CPU with AVX-512; more channels than that gain nothing
IMAGES = 32  # batches of a multiple of this are tried; others would need a trial each
HALVES = (torch.bfloat16, torch.float16)

_SAME_BITS: dict[tuple, bool] = {}  # the shapes for which the two forms of a gradient were compared


class Link(NamedTuple):
    """A convolution without bias and the BatchNorm behind it; a ReLU follows."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    @property
    def by_batch(self) -> bool:
        """Whether BatchNorm normalises by the batch."""
        return self.norm.training or self.norm.running_mean is None


def through(body: nn.Module, x: Tensor) -> Tensor:
    """`body(x)`: (N, C, H, W) -> (N, D), with the same bits in the result and in all gradients."""
    if not _ordinary(x):
        return cast(Tensor, body(x))
    chain = links(body)
    if not chain:
        return cast(Tensor, body(x))
    if x.requires_grad and _of_an_attack(chain, x):
        return cast(Tensor, _Pass.apply(x, chain))  # type: ignore[no-untyped-call]
    for layer in list(cast(nn.Sequential, body))[:-1]:
        x = layer(x)
    if x.requires_grad and x.is_contiguous(memory_format=torch.channels_last):
        return cast(Tensor, _Flattened.apply(x))  # type: ignore[no-untyped-call]
    return x.flatten(1)


def links(body: nn.Module) -> tuple[Link, ...]:
    """The links of a chain; () for other bodies, and for layers with hooks or another forward."""
    if type(body) is not nn.Sequential or len(body) % 3 != 1:
        return ()
    layers = list(body)
    if any(_changed(layer) for layer in (body, *layers)):
        return ()
    kinds = [type(layer) for layer in layers]
    if kinds != [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * (len(layers) // 3) + [nn.Flatten]:
        return ()
    convs = cast(list[nn.Conv2d], layers[:-1:3])
    norms = cast(list[nn.BatchNorm2d], layers[1::3])
    chain = tuple(map(Link, convs, norms))
    flatten = cast(nn.Flatten, layers[-1])
    whole = (flatten.start_dim, flatten.end_dim) == (1, -1)
    in_place = all(cast(nn.ReLU, relu).inplace for relu in layers[2::3])
    return chain if whole and in_place and all(map(_usual, chain)) else ()


def _usual(link: Link) -> bool:
    conv, norm = link
    plain = conv.bias is None and conv.groups == 1 and conv.dilation == (1, 1)
    padded = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and padded and norm.weight is not None and norm.bias is not None


def _changed(layer: nn.Module) -> bool:
    """Whether a call of a layer does more than its class says: hooks, a forward of its own."""
    held = vars(layer)
    return "forward" in held or any(held[name] for name in held if name.endswith("_hooks"))


def _ordinary(x: Tensor) -> bool:
    """Whether x is a tensor of a CPU that no tracer, compiler or transform looks at."""
    if type(x) is not Tensor or x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return x.ndim == 4 and not nn.modules.module._has_any_global_hook()


def _of_an_attack(chain: tuple[Link, ...], x: Tensor) -> bool:
    """Whether only the images ask for a gradient, and no running statistics would move."""
    dtype = _dtype(x)
    for conv, norm in chain:
        if any(p.requires_grad for p in (conv.weight, norm.weight, norm.bias)):
            return False
        if norm.training and norm.track_running_stats:
            return False
        if conv.weight.dtype != dtype and not torch.is_autocast_enabled("cpu"):
            return False
    return dtype in (torch.float32, torch.float64, *HALVES)


def _dtype(x: Tensor) -> torch.dtype:
    """The precision of the convolutions: autocast's, else that of x."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


class _Pass(torch.autograd.Function):
    """A chain with frozen parameters: images (N, C, H, W) -> (N, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chain: tuple[Link, ...]) -> Tensor:
        ctx.chain = [(link, link.by_batch) for link in chain]
        ctx.given = x.dtype
        saved: list[Tensor | None] = []
        x = x.to(_dtype(x))
        for link in chain:
            conv, norm = link
            weight = conv.weight.to(x.dtype)
            out = torch.conv2d(x, weight, None, conv.stride, conv.padding)
            moments = (None, None) if link.by_batch else (norm.running_mean, norm.running_var)
            # the momentum is not read: no running statistics are given, or none move
            normal, mean, inverse = torch.native_batch_norm(
                out, norm.weight, norm.bias, *moments, link.by_batch, 0.0, norm.eps
            )
            active = normal.relu_()
            saved += [x, weight, out, norm.weight, *moments, mean, inverse, active]
            x = active
        ctx.save_for_backward(*saved)
        return x.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        saved = list(ctx.saved_tensors)
        active = saved[-1]
        # a copy, which is then written over; what came may belong to others
        g = torch.empty_like(active).copy_(gradient.reshape(active.shape))
        with torch.autocast("cpu", enabled=False):  # the precision is that of the pass forward
            for place, (link, by_batch) in reversed(list(enumerate(ctx.chain))):
                x, weight, out, scale, mean, variance, own_mean, inverse, active = saved[-9:]
                del saved[-9:]
                g = torch.ops.aten.native_batch_norm_backward(
                    _through_relu(g, active),
                    *(out, scale, mean, variance, own_mean, inverse),
                    *(by_batch, link.norm.eps, [True, False, False]),
                )[0]
                g = _through_conv(g, x, weight, link.conv, first=place == 0)
        return g.to(ctx.given), None


def _through_relu(gradient: Tensor, active: Tensor) -> Tensor:
    """The gradient in front of a ReLU, in the place of the one behind it; active: its output.

    A number of 16 bits is above 0 where the integer of the same bits is, so integers decide: the
    CPU widens bfloat16 to float32 for each comparison.
    """
    if gradient.dtype in HALVES:
        bits, kept = gradient.view(torch.int16), active.view(torch.int16)
    else:
        bits, kept = gradient, active
    torch.ops.aten.threshold_backward.grad_input(bits, kept, 0, grad_input=bits)
    return gradient


def _through_conv(g: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d, first: bool) -> Tensor:
    if first and _groups(g, x, weight, conv):
        return _grouped(g, weight)
    return _plain(g, x, weight, conv)


def _plain(g: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution's gradient by its input x, as autograd computes it."""
    settings = (conv.stride, conv.padding, conv.dilation, False, [0, 0], 1)
    return torch.ops.aten.convolution_backward(g, x, weight, None, *settings, [True, False, False])[
        0
    ]


def _grouped(g: Tensor, weight: Tensor) -> Tensor:
    """The same for few channels C, kernel 3, stride 1, padding 1: (N, O, H, W) -> (N, C, H, W).

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


def _groups(g: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d) -> bool:
    """Whether `_grouped` serves for these images: it fits, and gave the bits of `_plain` here."""
    n, channels, _, width = x.shape
    if GROUP * channels > LANES or width % GROUP or n % IMAGES:
        return False
    if x.dtype not in (torch.bfloat16, torch.float32):
        return False
    if (conv.kernel_size, conv.stride, conv.padding) != ((3, 3), (1, 1), (1, 1)):
        return False
    if not g.is_contiguous(memory_format=torch.channels_last):
        return False
    # the strides decide, too, by which algorithm the library computes
    layout = tuple((t.shape, t.stride()) for t in (g, x, weight))
    key = (*layout, x.dtype, torch.get_num_threads())
    if key not in _SAME_BITS:
        _SAME_BITS[key] = _tried(g, x, weight, conv)
    return _SAME_BITS[key]


def _tried(g: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d) -> bool:
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
    return torch.equal(_grouped(terms, kernel), _plain(terms, x, kernel, conv))


class _Flattened(torch.autograd.Function):
    """x.flatten(1), whose gradient comes back channels last, as x lies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.flatten(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view(ctx.shape).contiguous(memory_format=torch.channels_last)
