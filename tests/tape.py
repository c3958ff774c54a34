"""A recording on a CPU that has the manners of a CUDA graph: what Python decides is decided once.

While a function is recorded, every operation is noted with its arguments. A replay repeats the
operations, in their order and without Python, and writes each result where the first one lay. What
a GPU refuses is refused: reading a number from a tensor while recording.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

BATCH_NORM = torch.ops.aten.native_batch_norm.default


class WaitsForTheDevice(RuntimeError):
    """A number was read from a tensor; on a GPU that ends the recording."""


class Tape(TorchDispatchMode):
    """The operations of the work inside; `replay` repeats them."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise WaitsForTheDevice(f"{func} while recording")
        result = func(*args, **kwargs)
        # the places, not the objects: autograd gives saved tensors another object each time
        self.operations.append(
            (func, tree_map(_place, args), tree_map(_place, kwargs), tree_map(_place, result))
        )
        return result

    @torch.no_grad()
    def replay(self):
        """Does the recorded work again, on what now lies in the same places."""
        for func, args, kwargs, result in self.operations:
            again = tree_flatten(func(*args, **kwargs))[0]
            for place, new in zip(tree_flatten(result)[0], again, strict=True):
                # a view, and what was written in place, lies there already
                if isinstance(place, torch.Tensor) and new.data_ptr() != place.data_ptr():
                    place.copy_(new)


def _place(value):
    return value.detach() if isinstance(value, torch.Tensor) else value


def can_record(device):
    """In the place of crat.graphs.can_record."""
    return True


def record(work, device, generators=(), pool=None):
    """In the place of crat.graphs.record.

    The work is done while it is recorded, so what it changed in tensors that were there before is
    put back, and so are the generators: a CUDA graph does nothing while it is recorded.
    """
    tape = Tape()
    states = [generator.get_state() for generator in generators]
    own = torch.get_rng_state()
    with _undone(), tape:
        result = work()
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    torch.set_rng_state(own)
    return tape.replay, result


@contextlib.contextmanager
def _undone():
    """Puts back what in-place operations inside change in tensors that were there before."""
    keeper = _Keeper()
    with keeper:
        yield
    with torch.no_grad():
        # backwards: a later write may have been to a larger part of the same storage
        for tensor, before in reversed(keeper.before.values()):
            tensor.copy_(before)


class _Keeper(TorchDispatchMode):
    """Keeps the value that a tensor had before an operation first wrote to its storage."""

    def __init__(self):
        super().__init__()
        self.before = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        arguments = func._schema.arguments
        given = {a.name: value for a, value in zip(arguments, args, strict=False)} | kwargs
        for argument in arguments:
            writes = argument.alias_info is not None and argument.alias_info.is_write
            # its schema does not say that it moves the running statistics
            if writes or (func is BATCH_NORM and argument.name.startswith("running")):
                self._keep(given.get(argument.name))
        return func(*args, **kwargs)

    def _keep(self, value):
        for tensor in tree_flatten(value)[0]:
            if isinstance(tensor, torch.Tensor):
                place = (tensor.data_ptr(), tensor.shape, tensor.stride())
                if place not in self.before:
                    self.before[place] = (tensor.detach(), tensor.detach().clone())
