"""An Apple GPU in the mind: a device "mps" whose arithmetic is the CPU's, and that refuses what the
real one refuses.

A tensor on it is a wrapper around one of the CPU's. It has no float64 and no complex128, mixes with
no CPU tensor (numbers and indices apart), and gives NumPy nothing. Speed, memory and the rounding
of the real one's kernels are not shown.
"""

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

NAME = "apple"
LACKING = (torch.float64, torch.complex128)
aten = torch.ops.aten
MIXES = (aten.copy_, aten._to_copy, aten.index, aten.index_put_, aten.index_put)  # with the CPU's
CPU_GENERATOR = torch.Generator


class Placed(torch.Tensor):
    """A tensor on the device; `inner` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, inner):
        self.inner = inner

    def tolist(self):
        return self.inner.tolist()

    def __repr__(self):
        return f"Placed({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _on_its_device(func, args, kwargs or {})


class Generator(CPU_GENERATOR):
    """A CPU's generator that says that it belongs to the device."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.place = torch.device(device)
        if made.place.type == NAME:
            made.place = torch.device(NAME, 0)
        return made

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self):
        return self.place


LIBRARY = torch.library.Library("_", "IMPL")


class Backend(backend_registration._DummyBackendModule):
    """What torch asks the module of a device for."""

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


def begin():
    """Makes NAME a device of this process, for good."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    torch.Generator = Generator
    for name in ("tensor", "as_tensor"):  # they go round every dispatcher
        setattr(torch, name, _first_on_the_cpu(getattr(torch, name)))
    # a module's tensors are exchanged, not their numbers, which lie in `inner`
    torch.__future__.set_swap_module_params_on_conversion(True)
    LIBRARY.fallback(_made_there, "PrivateUse1")


def _first_on_the_cpu(make):
    def made(data, *, dtype=None, device=None, **others):
        value = make(data, dtype=dtype, **others)
        return value if device is None else value.to(device)

    return made


def _made_there(func, *args, **kwargs):
    """An operation without a tensor of the device: one that makes its first."""
    return _on_its_device(func, args, kwargs)


def _on_its_device(func, args, kwargs):
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    placed = [value for value in given if isinstance(value, Placed)]
    strange = [value for value in given if not isinstance(value, Placed) and value.ndim]
    if placed and strange and func.overloadpacket not in MIXES:
        raise RuntimeError(f"{func}: tensors of the device and of the CPU, {strange[0].shape}")
    wanted = kwargs.get("device")
    on_device = torch.device(wanted).type == NAME if wanted is not None else bool(placed)
    if func.overloadpacket is aten.copy_:
        on_device = isinstance(args[0], Placed)
    inner_kwargs = tree_map(_inner, kwargs)
    if wanted is not None:
        inner_kwargs["device"] = torch.device("cpu")
        inner_kwargs.pop("pin_memory", None)
    if placed and not on_device:  # the real one converts where the numbers are, then moves them
        to = kwargs.get("dtype") or (args[0].dtype if func.overloadpacket is aten.copy_ else None)
        _refuse(func, to)
    result = func(*tree_map(_inner, args), **inner_kwargs)
    if not on_device:
        return result
    for value in tree_flatten(result)[0]:
        if isinstance(value, torch.Tensor):
            _refuse(func, value.dtype)
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_placed, result))


def _refuse(func, dtype):
    if dtype in LACKING:
        raise TypeError(f"{func}: Cannot convert a MPS Tensor to {dtype} dtype")


def _inner(value):
    return value.inner if isinstance(value, Placed) else value


def _placed(value):
    return Placed(value) if isinstance(value, torch.Tensor) else value
